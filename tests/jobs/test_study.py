"""The study's jobs as processes: the smoke recipe on Ray Tune, its page and a diagnosis."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from steelray.demo.synthetic import make_strip

REPOSITORY = Path(__file__).parent.parent.parent
SMOKE = ("--config", str(REPOSITORY / "jobs/configs/study_smoke.yaml"))


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)


def test_the_smoke_study_and_its_page(tmp_path: Path) -> None:
    tuned = run("tune_draem", *SMOKE, "--results_dir", str(tmp_path))
    assert tuned.returncode == 0, tuned.stderr
    summary = json.loads(tuned.stdout.splitlines()[-1])
    assert (summary["planned"], summary["ran"], summary["skipped"]) == (2, 2, 0)
    reported = run("report_study", "--results_dir", str(tmp_path))
    assert reported.returncode == 0, reported.stderr
    verdicts = json.loads(reported.stdout.splitlines()[-1])["verdicts"]
    assert {line[symptom] for line in verdicts.values() for symptom in ("S1", "S2", "S3")} == {"undecided", "–"}
    assert "30 steps" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "figures" / "curves.svg").stat().st_size > 5_000


def test_two_datasets_diagnosed_side_by_side(tmp_path: Path) -> None:
    for name, grain in (("calm", 1.0), ("rough", 9.0)):
        (tmp_path / name / "nominal").mkdir(parents=True)
        for number in range(4):
            strip = make_strip(0, number, size_px=(128, 256), grain_sd=grain).pixels_HW
            Image.fromarray(strip).save(tmp_path / name / "nominal" / f"{number}.png")
    pair = [f"--{side}.{key}={value}" for side, name in (("first", "calm"), ("second", "rough"))
            for key, value in (("kind", "folder"), ("root", tmp_path / name))]  # fmt: skip
    done = run("diagnose_data", *pair, f"--output_dir={tmp_path / 'out'}", "--tile_px=[128, 128]")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["folder rough"]["reachable_ssim_loss"] > 2 * found["folder calm"]["reachable_ssim_loss"]
    assert len(list((tmp_path / "out" / "figures").glob("*.svg"))) == 2
    assert "can reach" in (tmp_path / "out" / "diagnosis.md").read_text()
