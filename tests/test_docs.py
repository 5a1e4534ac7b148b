"""What docs/ says is held to the code: formats, commands, links. `python -m tests.test_docs` writes the tables anew."""

import ast
import dataclasses
import inspect
import json
import re
import shlex
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pytest

from steelray import schema
from steelray.config import ConfigError
from steelray.job import parse
from steelray.models.ensemble import EnsembleInfo, EnsembleMember, NominalScale
from steelray.patchcore.bank import BankInfo
from steelray.provenance import run_record

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
FORMATS = REPOSITORY / "docs" / "formats.md"
SCHEMAS = {"MANIFEST": schema.MANIFEST, "SCORES": schema.SCORES, "BOX": schema.BOX, "QUARANTINE": schema.QUARANTINE}
DESCRIPTIONS: tuple[type, ...] = (BankInfo, EnsembleInfo, EnsembleMember, NominalScale)
"""Dataclasses whose fields are those of a JSON file."""
Rows = list[tuple[str, ...]]


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks, continuations joined."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [" ".join(line.split()) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def schema_rows(fields: pa.Schema | pa.StructType) -> Rows:
    return [(f"`{field.name}`", str(field.type).split("<")[0], "yes" if field.nullable else "no") for field in fields]


def docstrings(kind: type) -> dict[str, str]:
    """The string below each assignment of a class."""
    [body] = [node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef)]
    found, name = {}, ""
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = target.id if isinstance(target, ast.Name) else ""
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            found[name] = " ".join(str(node.value.value).split())
    return found


def value_rows(kind: type[StrEnum]) -> Rows:
    plain = {"OK": "It has a score.", "NORMAL": "At or below the first threshold."}
    return [(f"`{member.value}`", docstrings(kind).get(member.name) or plain[member.name]) for member in kind]


def block(text: str, opening: str) -> str:
    kind = opening.split()[0]
    found = re.search(rf"<!-- {re.escape(opening)} -->\n(.*?)<!-- /{kind} -->", text, re.DOTALL)
    assert found, opening
    return found[1]


def table(text: str) -> Rows:
    """Cells of a Markdown table without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def meanings(name: str) -> dict[str, str]:
    return {row[0]: row[-1] for row in table(block(FORMATS.read_text(), f"schema {name}"))}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_is_documented_as_it_is(name: str) -> None:
    rows = table(block(FORMATS.read_text(), f"schema {name}"))
    assert [row[:3] for row in rows] == schema_rows(SCHEMAS[name]), "python -m tests.test_docs, then say what is new"
    assert all(row[3] for row in rows)


@pytest.mark.parametrize("kind", [schema.Status, schema.Verdict])
def test_every_value_is_documented_as_it_is(kind: type[StrEnum]) -> None:
    rows = table(block(FORMATS.read_text(), f"values {kind.__name__}"))
    assert rows == value_rows(kind), "python -m tests.test_docs"


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_every_description_is_documented_as_it_is(kind: type) -> None:
    rows = table(block(FORMATS.read_text(), f"fields {kind.__name__}"))
    assert [row[0] for row in rows] == [f"`{field.name}`" for field in dataclasses.fields(kind)]
    assert all(row[1] for row in rows)


def test_the_record_of_a_run_is_documented_as_it_is() -> None:
    @dataclasses.dataclass
    class Nothing:
        pass

    record = json.loads(run_record(Nothing(), datetime.now(UTC)))
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in table(block(FORMATS.read_text(), "record"))))
    assert named == list(record)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"(?:deploy|jobs|benchmarks)/[\w./-]*\w", page.read_text()):
        assert (REPOSITORY / name).exists(), name


def job_calls() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in commands(page):
            call = re.search(r"python (jobs/\w+\.py)(.*)$", line)
            if call and "$HOME" not in call[2]:
                found.append((call[1], call[2]))
    return found


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize(("job", "arguments"), job_calls(), ids=lambda text: text.strip()[:60])
def test_every_job_s_command_is_one_that_the_job_takes(job: str, arguments: str) -> None:
    source = (REPOSITORY / job).read_text()
    name = re.search(r"run_job\((\w+), ", source)
    assert name, job
    module = re.search(rf"^from (steelray\.[\w.]+) import .*\b{name[1]}\b", source, re.MULTILINE)
    assert module, job
    config_class = getattr(__import__(module[1], fromlist=[name[1]]), name[1])
    given = shlex.split(arguments.removesuffix(" && exit 0"))
    if job == "jobs/plan_capacity.py":
        given = ["--config", str(REPOSITORY / "jobs/configs/capacity.yaml"), *given]
    try:
        parse(config_class, "", given)
    except ConfigError as error:
        pytest.fail(f"{job}: {error}")


def test_the_nightly_s_settings_are_those_of_the_job(tmp_path: Path) -> None:
    from steelray.runs.config import ScoreArchiveConfig

    [settings] = re.findall(r"^```yaml\n(.*?)^```$", (REPOSITORY / "docs/nightly.md").read_text(), re.M | re.S)
    file = tmp_path / "nightly.yaml"
    file.write_text(settings)
    assert parse(ScoreArchiveConfig, "", ["--config", str(file)]).compute.wait_for_nodes_s == 900


def test_the_nightly_s_script_is_a_script(tmp_path: Path) -> None:
    import subprocess

    [script] = re.findall(r"^```bash\n(.*?)^```$", (REPOSITORY / "docs/nightly.md").read_text(), re.M | re.S)
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def markdown(head: str, rows: Rows) -> str:
    lines = [head, "| " + " | ".join(["---"] * head.count(" | ")) + " | --- |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def write() -> None:
    """Names and types from the code, meanings as they were."""
    text = FORMATS.read_text()
    fresh = {}
    for name, fields in SCHEMAS.items():
        rows = [(*row, meanings(name).get(row[0], "")) for row in schema_rows(fields)]
        fresh[f"schema {name}"] = markdown("| column | type | null | meaning |", rows)
    for kind in (schema.Status, schema.Verdict):
        fresh[f"values {kind.__name__}"] = markdown("| value | meaning |", value_rows(kind))
    for description in DESCRIPTIONS:
        opening = f"fields {description.__name__}"
        said, told = {row[0]: row[-1] for row in table(block(text, opening))}, docstrings(description)
        names = [field.name for field in dataclasses.fields(description)]
        rows = [(f"`{name}`", said.get(f"`{name}`") or told.get(name, "")) for name in names]
        fresh[opening] = markdown("| field | meaning |", rows)
    for opening, content in fresh.items():
        old = block(text, opening)
        start = text.index(f"<!-- {opening} -->\n") + len(f"<!-- {opening} -->\n")
        text = text[:start] + content + text[start + len(old) :]
    FORMATS.write_text(text)


if __name__ == "__main__":
    write()
