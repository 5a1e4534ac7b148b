"""The README's file tree is made from the files themselves; `python -m tests.test_readme` writes it anew."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
FOLDERS = ("jobs", "jobs/configs", "steelray", "benchmarks", "deploy", "docs", "tests")
BLOCK = re.compile(r"(?<=<!-- tree -->\n```text\n).*?(?=```\n)", re.DOTALL)


def tracked_files() -> list[Path]:
    """Files that belong to the project, also those not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return sorted(path for line in listed.splitlines() if (path := Path(line)) and (REPOSITORY / path).is_file())


def describe(path: Path) -> str:
    """What the file says of itself: the first sentence of its docstring, or its first comment."""
    text = (REPOSITORY / path).read_text(errors="replace")
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    elif path.suffix == ".md":
        first = text.partition("\n")[0]
    else:
        first = text.partition("\n")[0] if text.startswith("#") and not text.startswith("#!") else ""
    sentence = re.split(r"(?<=[a-z0-9)])\. |: ", first.lstrip("# "), maxsplit=1)[0]
    return sentence.rstrip(".")


def tree_lines() -> Iterator[str]:
    """One line per file of the code, one per folder of the tests."""
    files = tracked_files()
    for folder in FOLDERS:
        inside = [path for path in files if str(path).startswith(f"{folder}/")]
        if not inside:
            continue
        yield f"{folder}/"
        if folder == "tests":
            yield "  mirrors steelray/; cluster/ on real raylets, jobs/ as processes, report/ in a real browser"
            continue
        for path in inside:
            name = str(path.relative_to(folder))
            nested = folder == "jobs" and name.startswith("configs/")
            if nested or path.name == "__init__.py" or path.suffix not in {".py", ".yaml", ".md"}:
                continue
            if folder == "deploy" and "/" in name:
                continue
            description = describe(path)
            yield f"  {name:34} {description}".rstrip()


def file_tree() -> str:
    return "\n".join(tree_lines()) + "\n"


def test_the_file_tree_is_true() -> None:
    found = BLOCK.search(README.read_text())
    assert found is not None
    assert found.group() == file_tree(), "run `make readme`"


def test_every_command_of_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    text = README.read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for job in set(re.findall(r"jobs/(?:configs/)?[a-z_]+\.(?:py|yaml)", text)):
        assert (REPOSITORY / job).is_file(), job


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [README, *sorted((REPOSITORY / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda _: file_tree(), README.read_text()))
