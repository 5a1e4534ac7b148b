"""The jobs as processes: arguments, exit codes, one line for an error, one line of JSON at the end."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steelray.demo.object_store import ObjectStore
from steelray.demo.synthetic import DEFECTS, encode, make_strip
from steelray.storage.location import Location

REPOSITORY = Path(__file__).parent.parent.parent
JOBS = sorted((REPOSITORY / "jobs").glob("*.py"))
SECONDS_FOR_AN_ERROR = 30

MOST_OPTIONS = {
    "ablate": 20, "build_memory_bank": 45, "calibrate": 11, "demo": 5, "diagnose_data": 20, "evaluate": 45,
    "fuse_models": 25, "grow_memory_bank": 30, "plan_capacity": 15, "report_study": 5, "reproduce_thesis": 40,
    "review": 5, "runs": 10, "score_archive": 32, "train": 70, "tune_draem": 70,
}  # fmt: skip


def run_job(name: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment, check=False)


def summary_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


HELP = """
import contextlib, io, json, pathlib, runpy, sys, time
shown = {}
for job in sys.argv[1:]:
    for words in (["--help"], ["--help", "all"]):
        sys.argv, text, started_s = [job, *words], io.StringIO(), time.process_time()
        try:
            with contextlib.redirect_stdout(text):
                runpy.run_path(job, run_name="__main__")
        except SystemExit as end:
            assert not end.code, (job, end.code)
        heavy = {"torch", "ray", "timm", "faiss"} & set(sys.modules)
        assert not heavy, (job, heavy)
        assert time.process_time() - started_s < 1, job
        shown[pathlib.Path(job).stem, words[-1]] = text.getvalue()
print(json.dumps([*shown.items()]))
"""


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, str], str]:
    """Return the help of every job, printed in a fresh process without torch or ray, by job and option."""
    done = subprocess.run([sys.executable, "-c", HELP, *JOBS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {(job, option): text for (job, option), text in json.loads(done.stdout)}


@pytest.mark.parametrize("option", ["--help", "all"])
@pytest.mark.parametrize("job", [path.stem for path in JOBS])
def test_help_explains_few_options_the_required_ones_first(
    helps: dict[tuple[str, str], str], job: str, option: str
) -> None:
    """Options are counted as by `python jobs/X.py --help all | grep -cE '^\\s+--'`."""
    text = helps[job, option]
    assert not re.search(r"^  --\S+ \S+\n  -", text, re.M), "an option without help"
    shown = re.findall(r"^[ \t]+--(\S+)", text, re.M)
    needed = re.findall(r" --(\S+) VALUE", text)
    assert shown[0] == "config"
    if option == "--help":
        assert len(shown) <= 10
        assert set(needed) <= set(shown[: len(needed) + 2]), "required ones come first"
        assert text.endswith("--help all shows every option\n")
    else:
        assert len(shown) <= MOST_OPTIONS[job]


def test_a_mistake_on_the_command_line_is_one_line() -> None:
    done = run_job(
        "score_archive", "--archive.uri", "a", "--archive.limit", "0", "--model_uri", "b", "--results_uri", "c"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: limit must be > 0, not 0\n"


def score_arguments(root: str, **changes: str) -> list[str]:
    settings = {
        "archive.uri": f"{root}/archive",
        "model_uri": f"{root}/bank",
        "results_uri": f"{root}/results",
        **changes,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-canary-secret"}, "refuses access"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "cannot reach http://127.0.0.1:1"),
    ],
)
def test_a_store_that_cannot_be_used_ends_the_job_in_seconds(
    s3_uri: str, environment: dict[str, str], message: str
) -> None:
    start_s = time.perf_counter()
    done = run_job("score_archive", *score_arguments(s3_uri), env=environment)
    assert time.perf_counter() - start_s < SECONDS_FOR_AN_ERROR
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert "canary" not in done.stderr + done.stdout


def test_a_bank_is_built_and_an_archive_scored_through_the_object_store(object_store: ObjectStore, s3_uri: str) -> None:
    nominal, archive = Location(f"{s3_uri}/nominal"), Location(f"{s3_uri}/archive")
    for index in range(6):
        nominal.write(f"{index}.png", encode(make_strip(0, index, size_px=(64, 128)).pixels_HW, "PNG"))
    for index in range(4):
        defect = DEFECTS[index] if index % 2 else None
        pixels_HW = make_strip(1, index, defect=defect, size_px=(64, 128)).pixels_HW
        archive.write(f"line1/{index}.png", encode(pixels_HW, "PNG"))
    archive.write("line1/empty.png", b"")
    bank = ["--nominal.uri", nominal.uri, "--bank_uri", f"{s3_uri}/bank", "--embedder.levels", "[2]"]
    built = run_job("build_memory_bank", *bank, "--coreset.ratio", "0.1")
    assert summary_of(built)["vectors"] == 77  # 6 strips of 8x16 cells, a tenth
    done = run_job("score_archive", *score_arguments(s3_uri))
    assert done.returncode == 1, "one of five objects without a score is more than the quarantine may hold"
    assert "1 of 5 objects (20.0%) have no score" in done.stderr
    done = run_job("score_archive", *score_arguments(s3_uri, max_quarantine_share="0.5"))
    summary = summary_of(done)
    assert summary.pop("already_complete") is True
    counts = summary["counts"]
    assert isinstance(counts, dict)
    assert counts["listed"] == 5
    assert counts["ok"] == 4
    assert counts["empty"] == 1
    record = json.loads(Location(str(summary["run_uri"])).read("run.json"))
    assert record["config"]["archive"]["uri"] == archive.uri
    assert record["packages"]["ray"]
    assert record["summary"] == {**summary, "already_complete": False}
    secret = object_store.environment["AWS_SECRET_ACCESS_KEY"]
    written = b"".join(Location(s3_uri).read(stored.key) for stored in Location(s3_uri).list())
    assert secret.encode() not in written
    assert all(secret not in text for text in (built.stdout, built.stderr, done.stdout, done.stderr))


def test_evaluate_prints_its_figures_and_writes_the_table(tmp_path: Path) -> None:
    for folder, count in (("nominal", 20), ("anomalous/scratch", 4)):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(count):
            defect = "scratch" if folder != "nominal" else None
            strip = make_strip(count, index, defect=defect, size_px=(128, 256))
            (tmp_path / folder / f"{index}.jpg").write_bytes(strip.jpeg())
            if defect:
                (tmp_path / "masks/scratch").mkdir(parents=True, exist_ok=True)
                mask = encode(strip.mask_HW.astype("uint8") * 255, "PNG")
                (tmp_path / "masks/scratch" / f"{index}.png").write_bytes(mask)
    done = run_job(
        "evaluate", "--data.kind", "folder", "--data.root", str(tmp_path), "--data.num_fit", "15", "--baselines",
        "--calibration.held_out_fraction", "0.3", "--calibration.false_alarm_rate", "0.2",
        "--calibration.reject_rate", "0.2",
        "--output_dir", str(tmp_path / "out"),
    )  # fmt: skip
    summary = summary_of(done)
    assert isinstance(summary["image_auroc"], float)
    assert isinstance(summary["pixel_auroc"], float)
    assert summary["image_auroc"] > 0.9
    assert summary["pixel_auroc"] > 0.9
    assert summary["recall"] == 1.0
    assert summary["held_out"] == 4
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["result"] == summary
    assert record["hardware"]["cores"]
    assert "local standard deviation" in (tmp_path / "out" / "evaluation.md").read_text()
