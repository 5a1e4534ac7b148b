"""The command line of every job: defaults < file < options, one line for a mistake, one line of JSON at the end."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from steelray.config import ArchiveConfig, ComputeConfig, ConfigError, require
from steelray.evaluation.config import EvaluateConfig
from steelray.job import num_cores, parse, run_job, say, show_plan
from steelray.patchcore.config import BuildMemoryBankConfig, EmbedderConfig
from steelray.runs.config import ScoreArchiveConfig


@dataclass(frozen=True)
class JobConfig:
    """A job of the tests."""

    archive: ArchiveConfig
    """What it reads."""
    size: int = 3
    """How much of it."""
    mode: Literal["slow", "fast"] = "slow"
    embedder: EmbedderConfig | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    dry_run: bool = False
    keep_maps: bool = True

    def __post_init__(self) -> None:
        require(self.size > 0, f"size must be > 0, not {self.size}")


def parsed(*argv: str) -> JobConfig:
    return parse(JobConfig, "A job.", ["--archive.uri", "s3://archive", *argv])


def complaint(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(*argv)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 200
    return line


def test_defaults() -> None:
    assert parsed() == JobConfig(ArchiveConfig("s3://archive"))


def test_options_overrule_the_file_and_the_file_overrules_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# a recipe\nsize: 5\nmode: fast\narchive:\n  limit: 7\ncompute: {batch_size: 2}\n")
    config = parsed("--config", str(recipe), "--size", "9")
    assert (config.size, config.mode, config.archive.limit, config.compute.batch_size) == (9, "fast", 7, 2)
    assert config.archive.uri == "s3://archive"
    assert parse(JobConfig, "A job.", ["--archive.uri", "x", "--size", "1", "--config", str(recipe)]).size == 5


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], (False, True)),
        (["--dry-run"], (True, True)),
        (["--dry_run", "--keep-maps", "false"], (True, False)),
        (["--dry-run=false", "--keep_maps=False"], (False, False)),
        (["--dry-run", "true", "--size", "4"], (True, True)),
        (["--dry-run", "--size", "4"], (True, True)),
    ],
)
def test_switches(argv: list[str], expected: tuple[bool, bool]) -> None:
    config = parsed(*argv)
    assert (config.dry_run, config.keep_maps) == expected


def test_options_may_be_written_with_dashes_and_their_values_stay_as_they_are() -> None:
    config = parsed(
        "--compute.batch-size=5", "--archive.glob", "line-1/*--x.jpg", "--archive.modified-after=2026-01-01"
    )
    assert config.compute.batch_size == 5
    assert config.archive.glob == "line-1/*--x.jpg"
    assert config.archive.modified_after == datetime(2026, 1, 1)


@pytest.mark.parametrize("text", ["2026-03-01T12:00:00Z", "2026-03-01T21:00:00+09:00"])
def test_times(text: str, tmp_path: Path) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert parsed("--archive.modified_before", text).archive.modified_before == noon
    for quoted in (text, f"'{text}'"):
        (tmp_path / "recipe.yaml").write_text(f"archive:\n  modified_before: {quoted}\n")
        assert parsed("--config", str(tmp_path / "recipe.yaml")).archive.modified_before == noon


def test_sections_that_may_be_absent() -> None:
    assert parsed("--embedder", "null").embedder is None
    config = parsed("--embedder.levels", "[1, 2]", "--embedder.resize_px=[64,128]")
    assert config.embedder == EmbedderConfig(levels=(1, 2), resize_px=(64, 128))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--nonsense", "1"], "unrecognized arguments: --nonsense 1"),
        (["--archive.nonsense", "1"], "unrecognized arguments: --archive.nonsense 1"),
        (["stray"], "unrecognized arguments: stray"),
        (["--size", "many"], "size: Expected int. Got value: many"),
        (["--size", "0"], "size must be > 0, not 0"),
        (["--archive.limit", "x"], "archive.limit: Expected int. Given value: x"),
        (["--archive.limit", "0"], "limit must be positive, not 0"),
        (["--archive.modified_before", "yesterday"], "archive.modified_before: Not of type datetime"),
        (["--mode", "medium"], "mode: Expected one of 'slow', 'fast'. Got value: medium"),
        (["--embedder.levels", "[3, 2]"], "levels must rise and be >= 0: [3, 2]"),
        (["--config", "/no/such/file.yaml"], "File does not exist: '/no/such/file.yaml'"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], expected: str) -> None:
    assert expected in complaint(*argv)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense: 1\n", "'nonsense'"),
        ("archive:\n  nonsense: 1\n", "'nonsense'"),
        ("archive: [\n", "config: the file is not YAML"),
        ("", "config: no settings"),
        ("- 1\n", "config: no settings"),
        ("size: many\n", "size: Expected int"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert expected in complaint("--config", str(tmp_path / "recipe.yaml"))


def test_what_is_required_is_named() -> None:
    with pytest.raises(ConfigError, match=r"required: archive\.uri, model_uri, results_uri"):
        parse(ScoreArchiveConfig, "Scores.", [])


def test_the_jobs_own_settings() -> None:
    build = parse(BuildMemoryBankConfig, "", ["--nominal.uri", "n", "--bank_uri", "b", "--coreset.ratio", "0.1"])
    assert (build.nominal.uri, build.bank_uri, build.coreset.ratio) == ("n", "b", 0.1)
    evaluate = parse(EvaluateConfig, "", ["--data.kind", "mvtec", "--data.root", "r", "--seeds", "[1, 2]"])
    assert (evaluate.data.root, evaluate.seeds, evaluate.model_uri) == ("r", (1, 2), None)


class TestRunning:
    def _run(self, job: Any, *argv: str) -> int:
        with pytest.raises(SystemExit) as ended:
            run_job(JobConfig, job, "A job.", ["--archive.uri", "x", *argv])
        return int(ended.value.code or 0)

    def test_a_summary_is_the_last_line_of_stdout(self, capsys: pytest.CaptureFixture[str]) -> None:
        def job(config: JobConfig) -> dict[str, Any]:
            say("working")
            return {"size": config.size, "at": datetime(2026, 1, 1), "name": "Ω <b>"}

        assert self._run(job, "--size", "4") == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == {"size": 4, "at": "2026-01-01 00:00:00", "name": "Ω <b>"}
        assert out.count("\n") == 1
        assert err == "working\n"

    def test_what_the_user_has_to_correct_is_one_line_and_code_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        def job(config: JobConfig) -> dict[str, Any]:
            raise ConfigError("x: no such folder")

        assert self._run(job) == 2
        assert capsys.readouterr() == ("", "error: x: no such folder\n")
        assert self._run(job, "--size", "0") == 2
        assert capsys.readouterr().err == "error: size must be > 0, not 0\n"

    def test_a_stopped_job_ends_with_code_130(self, capsys: pytest.CaptureFixture[str]) -> None:
        def job(config: JobConfig) -> dict[str, Any]:
            raise KeyboardInterrupt

        assert self._run(job) == 130
        assert capsys.readouterr() == ("", "stopped\n")

    def test_any_other_failure_is_not_hidden(self) -> None:
        def job(config: JobConfig) -> dict[str, Any]:
            raise RuntimeError("a bug")

        with pytest.raises(RuntimeError, match="a bug"):
            run_job(JobConfig, job, "A job.", ["--archive.uri", "x"])


def test_help_explains_every_setting() -> None:
    script = (
        "import sys; from steelray.job import parse; from steelray.runs.config import ScoreArchiveConfig;"
        "parse(ScoreArchiveConfig, 'Scores an archive.', ['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    assert "Scores an archive." in text
    assert "s3://bucket/prefix or a local folder." in text
    assert "Images per call of a scorer." in text


def test_a_dry_run_shows_settings_and_plan() -> None:
    config = JobConfig(ArchiveConfig("x"))
    shown = show_plan(config, {"shards": 2})
    assert shown["dry_run"] is True
    assert shown["config"]["archive"]["uri"] == "x"
    assert shown["plan"] == {"shards": 2}


def test_cores_are_those_this_process_may_use() -> None:
    script = "import os; from steelray.job import num_cores; os.sched_setaffinity(0, {0}); print(num_cores())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert num_cores() >= 1
