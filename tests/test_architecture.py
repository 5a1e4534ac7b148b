"""The import rules: who may use which package, and which way the layers depend on each other.

Two kinds of proof. Reading the source finds every import, also those inside functions; a fresh interpreter finds what
an import drags in. For both there is a test which shows that the check can fail.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_JOB_LINES = 100

FLOORS: tuple[tuple[str, ...], ...] = (
    ("config", "schema"),
    ("storage", "imaging", "job", "provenance", "description"),
    ("patchcore", "reconstruction"),
    ("models",),
    ("runs", "evaluation"),
    ("report", "demo"),
    ("cluster",),
    ("research",),
)
"""The parts of steelray, from the ground up. A part may import floors below its own, and what `SIBLINGS` allows."""

SIBLINGS: dict[str, tuple[str, ...]] = {"provenance": ("job",), "schema": ("config",)}
"""Parts of one floor that may import each other, this way round."""

ALLOWED_USERS: dict[str, tuple[str, ...]] = {
    "ray": ("steelray/cluster/", "steelray/research/study/tune.py", "steelray/research/ablation/remote.py"),
    "boto3": ("steelray/storage/s3_client.py", "steelray/demo/object_store.py"),
    "botocore": ("steelray/storage/s3_client.py", "steelray/demo/object_store.py"),
    "pyarrow.fs": ("steelray/storage/location.py",),
    "timm": ("steelray/patchcore/embedder.py",),
    "faiss": ("steelray/patchcore/index.py",),
    "pydantic": ("steelray/description.py",),
    "pickle": (),
}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "base", "misc"}


def imported_names(source: str) -> Iterator[str]:
    """Dotted names of all imports, wherever in the module they stand; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor_of(part: str) -> int | None:
    return next((number for number, parts in enumerate(FLOORS) if part in parts), None)


def layer_violation(path: str, name: str) -> str | None:
    """Why module `path` may not import `name` from steelray; None if it may."""
    if path.startswith("jobs/"):
        return None
    part, imported = Path(path).parts[1].removesuffix(".py"), name.split(".")[1]
    if part == "__init__" or imported in (part, "__version__", *SIBLINGS.get(part, ())):
        return None
    own, other = floor_of(part), floor_of(imported)
    if own is None or other is None:
        return f"{path}: {part if own is None else imported} has no place in FLOORS of tests/test_architecture.py"
    return None if other < own else f"{path}: imports {name}, which is not below it"


def long_functions(source: str) -> Iterator[str]:
    """Functions with more lines than allowed, their docstrings left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            count = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if count > MAX_FUNCTION_LINES:
                yield f"{node.name} has {count} lines, at most {MAX_FUNCTION_LINES} are allowed"


def violations(root: Path) -> list[str]:
    """One line for every broken rule in root/steelray and root/jobs."""
    found = []
    for file in sorted([*root.glob("steelray/**/*.py"), *root.glob("jobs/**/*.py")]):
        path, source = file.relative_to(root).as_posix(), file.read_text()
        limit = MAX_JOB_LINES if path.startswith("jobs/") else MAX_MODULE_LINES
        if (count := len(source.splitlines())) > limit:
            found.append(f"{path}: {count} lines, at most {limit} are allowed")
        found.extend(f"{path}: {complaint}" for complaint in long_functions(source))
        if VAGUE_NAMES & {word.removesuffix(".py") for word in Path(path).parts}:
            found.append(f"{path}: a name that does not say what is in it")
        for name in imported_names(source):
            if name.startswith("."):
                found.append(f"{path}: relative import of {name}")
            elif name == "steelray" or name.startswith("steelray."):
                found.extend(filter(None, [layer_violation(path, name) if "." in name else None]))
            for package, users in ALLOWED_USERS.items():
                if (name == package or name.startswith(f"{package}.")) and not path.startswith(users or ("\0",)):
                    found.append(f"{path}: imports {name}, which only {' and '.join(users) or 'nobody'} may")
    return found


def loaded_after(modules: Sequence[str], root: Path = REPOSITORY) -> set[str]:
    """Top-level packages that a fresh interpreter holds after it has imported `modules` from `root`."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *modules],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def core_modules() -> list[str]:
    files = sorted(REPOSITORY.glob("steelray/**/*.py"))
    names = [".".join(f.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for f in files]
    users = [user.removesuffix(".py").rstrip("/").replace("/", ".") for user in ALLOWED_USERS["ray"]]
    return [name for name in names if not name.startswith(tuple(users))]


def circles(root: Path) -> list[list[str]]:
    """Modules of steelray that import each other in a loop, imports inside functions included."""
    files = {".".join(f.relative_to(root).with_suffix("").parts): f for f in root.glob("steelray/**/*.py")}
    graph = import_graph(files)
    order: list[str] = []
    while ready := [name for name in graph if name not in order and graph[name] <= set(order)]:
        order += ready
    return [[name, *sorted(graph[name] - set(order))] for name in graph if name not in order]


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports."""
    graph = {}
    for name, file in files.items():
        wanted = {known for one in imported_names(file.read_text()) for known in (one, one.rpartition(".")[0])}
        graph[name] = wanted & files.keys() - {name}
    return graph


def untyped_signatures(source: str) -> int:
    """Count the parameters and results of functions that are `dict[str, Any]`."""
    count = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            hints = [one.annotation for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
            count += sum("dict[str, Any]" in ast.unparse(hint) for hint in [*hints, node.returns] if hint)
    return count


def test_every_rule_holds_in_the_source() -> None:
    assert violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("steelray/patchcore/scorer.py", "import ray", "imports ray, which only steelray/cluster/"),
        ("steelray/evaluation/metrics.py", "def f():\n    from ray.data import Dataset", "imports ray.data.Dataset"),
        ("jobs/extra.py", "import ray", "imports ray"),
        ("steelray/imaging/decode.py", "import boto3", "imports boto3"),
        ("steelray/storage/listing.py", "from pyarrow import fs", "imports pyarrow.fs"),
        ("steelray/models/model.py", "from pydantic import BaseModel", "imports pydantic.BaseModel, which only"),
        ("steelray/patchcore/bank.py", "import pickle", "imports pickle, which only nobody may"),
        ("steelray/imaging/tiling.py", "from steelray.storage.location import Location", "not below it"),
        ("steelray/models/model.py", "import steelray.research.capacity", "not below it"),
        ("steelray/models/calibration.py", "import steelray.runs.run", "not below it"),
        ("steelray/config.py", "from steelray import schema", "not below it"),
        ("steelray/patchcore/scorer.py", "from steelray.cluster.connect import connected", "not below it"),
        ("steelray/imaging/decode.py", "from .tiling import Tile", "relative import"),
        ("steelray/imaging/utils.py", "pass", "does not say what is in it"),
        ("steelray/novelty.py", "import steelray.config", "has no place in FLOORS"),
        ("steelray/schema.py", "#\n" * MAX_MODULE_LINES, "lines, at most 500 are allowed"),
        ("steelray/schema.py", "def f():\n" + "    f()\n" * MAX_FUNCTION_LINES, "at most 60 are allowed"),
        ("jobs/extra.py", "#\n" * (MAX_JOB_LINES + 1), "lines, at most 100 are allowed"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, path: str, line: str, complaint: str) -> None:
    shutil.copytree(REPOSITORY / "steelray", tmp_path / "steelray", ignore=shutil.ignore_patterns("__pycache__"))
    before = set(violations(tmp_path))
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as source:
        source.write(f"\n{line}\n")
    new = set(violations(tmp_path)) - before
    assert any(found.startswith(path) and complaint in found for found in new), new


def test_no_modules_import_each_other_in_a_loop(tmp_path: Path) -> None:
    assert circles(REPOSITORY) == []
    (tmp_path / "steelray").mkdir()
    (tmp_path / "steelray" / "a.py").write_text("from steelray.b import x")
    (tmp_path / "steelray" / "b.py").write_text("def f():\n    import steelray.a")
    assert circles(tmp_path) == [["steelray.a", "steelray.b"], ["steelray.b", "steelray.a"]]


def test_few_modules_stand_at_the_root() -> None:
    assert len(list(REPOSITORY.glob("steelray/*.py"))) <= 6


def test_seams_are_typed() -> None:
    product = [file for file in REPOSITORY.glob("steelray/**/*.py") if "research" not in file.parts]
    assert sum(untyped_signatures(file.read_text()) for file in product) <= 25
    assert untyped_signatures("def f(a: dict[str, Any], *, b: int) -> list[dict[str, Any]]: ...") == 2


def test_the_core_loads_no_ray() -> None:
    assert "ray" not in loaded_after(core_modules())


def test_scoring_actors_load_no_matplotlib() -> None:
    assert "matplotlib" not in loaded_after(["steelray.cluster.scoring_actors", "steelray.runs.batch"])


def test_a_loaded_package_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "ray.py").touch()
    (tmp_path / "steelray").mkdir()
    (tmp_path / "steelray" / "__init__.py").touch()
    (tmp_path / "steelray" / "config.py").write_text("import ray\n")
    assert "ray" in loaded_after(["steelray.config"], tmp_path)


def test_settings_and_command_line_load_neither_torch_nor_ray() -> None:
    loaded = loaded_after(
        ["steelray.config", "steelray.patchcore.config", "steelray.runs.config", "steelray.job", "steelray.schema"]
    )
    assert loaded.isdisjoint({"torch", "ray", "faiss", "timm", "boto3"})


def test_training_and_the_command_line_load_no_pydantic() -> None:
    """It is imported when a file is read: machines that only train may lack it."""
    training = ["session", "synthesis", "checkpoint", "config", "scorer"]
    loaded = loaded_after(["steelray.job", "steelray.description", *(f"steelray.reconstruction.{n}" for n in training)])
    assert "pydantic" not in loaded


def test_the_parts_of_the_core_load_only_what_they_need() -> None:
    modules = core_modules()
    data = loaded_after([name for name in modules if name.startswith(("steelray.storage.", "steelray.imaging."))])
    assert data.isdisjoint({"faiss", "timm", "openvino"})
