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
MAX_MODULE_LINES = 300
MAX_JOB_LINES = 100

COLUMNS: tuple[frozenset[str], ...] = (
    frozenset({"config", "schema", "progress"}),
    frozenset({"patchcore_config", "network_config", "description"}),
    frozenset({"job_config", "train_config", "job", "nominal_profile"}),
    frozenset({"data", "models", "memory_bank", "metrics", "drift", "thesis_config", "image_score"}),
    frozenset(
        {
            "scoring",
            "reconstruction_scoring",
            "training",
            "calibration",
            "checkpoint",
            "report",
            "provenance",
            "fitting",
            "stage_timing",
            "capacity",
            "runs",
            "quarantine",
            "verdicts",
        }
    ),
    frozenset({"fusion", "calibration_store"}),
    frozenset({"ensemble"}),
    frozenset({"trained", "batch_scoring", "train_run", "nominal_meter"}),
    frozenset({"evaluation", "demo", "gallery", "increment", "retention", "recalibration", "review"}),
    frozenset({"ablation", "study"}),
    frozenset({"nightly", "thesis"}),
    frozenset({"distributed"}),
)
"""A part of steelray may import what stands in a row above its own, and itself. Not its siblings, nothing below."""

ALLOWED_USERS: dict[str, tuple[str, ...]] = {
    "ray": ("steelray/distributed/",),
    "boto3": ("steelray/data/s3_client.py", "steelray/data/object_store.py"),
    "botocore": ("steelray/data/s3_client.py", "steelray/data/object_store.py"),
    "pyarrow.fs": ("steelray/data/storage.py",),
    "timm": ("steelray/models/patch_embedder.py",),
    "faiss": ("steelray/memory_bank/shard.py",),
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


def column_of(part: str) -> int | None:
    return next((number for number, parts in enumerate(COLUMNS) if part in parts), None)


def layer_violation(path: str, name: str) -> str | None:
    """Why module `path` may not import `name` from steelray; None if it may."""
    if path.startswith("jobs/"):
        return None
    part, imported = Path(path).parts[1].removesuffix(".py"), name.split(".")[1]
    if part == "__init__" or imported in (part, "__version__"):
        return None
    own, other = column_of(part), column_of(imported)
    if own is None or other is None:
        return f"{path}: {part if own is None else imported} has no place in COLUMNS of tests/test_architecture.py"
    return None if other < own else f"{path}: imports {name}, which is not below it"


def violations(root: Path) -> list[str]:
    """One line for every broken rule in root/steelray and root/jobs."""
    found = []
    for file in sorted([*root.glob("steelray/**/*.py"), *root.glob("jobs/**/*.py")]):
        path, source = file.relative_to(root).as_posix(), file.read_text()
        limit = MAX_JOB_LINES if path.startswith("jobs/") else MAX_MODULE_LINES
        if (count := len(source.splitlines())) > limit:
            found.append(f"{path}: {count} lines, at most {limit} are allowed")
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
    return [name for name in names if not name.startswith("steelray.distributed")]


def test_every_rule_holds_in_the_source() -> None:
    assert violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("steelray/scoring.py", "import ray", "imports ray, which only steelray/distributed/ may"),
        ("steelray/metrics.py", "def f():\n    from ray.data import Dataset", "imports ray.data.Dataset"),
        ("jobs/extra.py", "import ray", "imports ray"),
        ("steelray/data/decode.py", "import boto3", "imports boto3"),
        ("steelray/data/archive.py", "from pyarrow import fs", "imports pyarrow.fs"),
        ("steelray/memory_bank/bank.py", "import pickle", "imports pickle, which only nobody may"),
        ("steelray/memory_bank/coreset.py", "from steelray.data.tiling import Tile", "not below it"),
        ("steelray/calibration.py", "import steelray.scoring", "not below it"),
        ("steelray/config.py", "from steelray import metrics", "not below it"),
        ("steelray/scoring.py", "from steelray.distributed.cluster import connected", "not below it"),
        ("steelray/data/decode.py", "from .tiling import Tile", "relative import"),
        ("steelray/data/utils.py", "pass", "does not say what is in it"),
        ("steelray/novelty.py", "import steelray.config", "has no place in COLUMNS"),
        ("steelray/schema.py", "#\n" * MAX_MODULE_LINES, "lines, at most 300 are allowed"),
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


def test_the_core_loads_no_ray() -> None:
    assert "ray" not in loaded_after(core_modules())


def test_a_loaded_package_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "ray.py").touch()
    (tmp_path / "steelray").mkdir()
    (tmp_path / "steelray" / "__init__.py").touch()
    (tmp_path / "steelray" / "config.py").write_text("import ray\n")
    assert "ray" in loaded_after(["steelray.config"], tmp_path)


def test_settings_and_command_line_load_neither_torch_nor_ray() -> None:
    loaded = loaded_after(["steelray.config", "steelray.job_config", "steelray.job", "steelray.schema"])
    assert loaded.isdisjoint({"torch", "ray", "faiss", "timm", "boto3"})


def test_the_parts_of_the_core_load_only_what_they_need() -> None:
    modules = core_modules()
    data = loaded_after([name for name in modules if name.startswith("steelray.data.")])
    assert data.isdisjoint({"faiss", "timm", "openvino"})
    bank = loaded_after([name for name in modules if name.startswith("steelray.memory_bank.")])
    assert bank.isdisjoint({"timm", "openvino", "boto3"})
