"""The command line of every job: defaults < file < options, one line for a mistake, one line of JSON at the end."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from steelray.config import ArchiveConfig, ComputeConfig, ConfigError, DatasetConfig, require
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


@dataclass(frozen=True)
class Switched:
    """A job with a section that may be absent."""

    source: DatasetConfig | None = None


@dataclass(frozen=True)
class Lists:
    """A job with lists."""

    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """A job with a list of sections."""

    rows: tuple[ArchiveConfig, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A job that takes another's settings as a file."""

    RECIPES: ClassVar[dict[str, tuple[str, ...]]] = {"base": ("archive.uri", "compute.batch_size"), "other": ()}
    base: JobConfig
    name: str = "a"
    other: JobConfig = field(default_factory=lambda: JobConfig(ArchiveConfig("there"), size=8))


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


def test_sections_that_may_be_absent(tmp_path: Path) -> None:
    assert parsed().embedder is None
    config = parsed("--embedder.levels", "[1, 2]", "--embedder.resize_px=[64,128]")
    assert config.embedder == EmbedderConfig(levels=(1, 2), resize_px=(64, 128))
    (tmp_path / "recipe.yaml").write_text("embedder: null\narchive: {limit: null}\n")
    assert parsed("--config", str(tmp_path / "recipe.yaml")).embedder is None
    with pytest.raises(ConfigError, match=r"required: source\.kind$"):
        parse(Switched, "A job.", ["--source.root", "x"])


@pytest.mark.parametrize(
    ("argv", "levels", "resize_px", "names"),
    [
        (["--embedder.levels", "2,3"], (2, 3), None, ()),
        (["--embedder.levels=[2, 3]", "--embedder.resize_px", "256, 128"], (2, 3), (256, 128), ()),
        (["--embedder.levels", "4", "--embedder.resize_px", "null"], (4,), None, ()),
        (["--names", "s3://a/b,null,2"], (2, 3), None, ("s3://a/b", "null", "2")),
        (["--names", "[a, b]"], (2, 3), None, ("a", "b")),
        (["--names", "a"], (2, 3), None, ("a",)),
    ],
)
def test_lists_need_no_brackets(argv: list[str], levels: Any, resize_px: Any, names: Any) -> None:
    config = parse(Lists, "A job.", argv)
    assert (config.embedder.levels, config.embedder.resize_px, config.names) == (levels, resize_px, names)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--nonsense", "1"], "unknown option --nonsense (--help all shows every option)"),
        (["--archive.nonsense", "1"], "unknown option --archive.nonsense (--help all shows"),
        (["--archive.ur", "x"], "unknown option --archive.ur: did you mean --archive.uri?"),
        (["--archive-ur=x"], "unknown option --archive_ur: did you mean --archive.uri?"),
        (["--moed", "fast"], "unknown option --moed: did you mean --mode?"),
        (["--uri", "x"], "unknown option --uri: did you mean --archive.uri?"),
        (["--archive", "x.yaml"], "unknown option --archive"),
        (["--compute.batchsize", "x"], "unknown option --compute.batchsize: did you mean --compute.batch_size?"),
        (["stray"], "unrecognized argument: stray"),
        (["--size"], "--size needs a value"),
        (["--size", "--dry-run"], "--size needs a value"),
        (["--size", "many"], "size: Expected int. Got value: many"),
        (["--size", "0"], "size must be > 0, not 0"),
        (["--archive.limit", "x"], "archive.limit: Expected int. Got value: x"),
        (["--archive.limit", "0"], "limit must be > 0, not 0"),
        (["--archive.modified_before", "yesterday"], "archive.modified_before: Not of type datetime"),
        (["--mode", "medium"], "mode: Expected one of 'slow', 'fast'. Got value: medium"),
        (["--embedder.levels", "[3, 2]"], "levels must rise and be >= 0: [3, 2]"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], expected: str) -> None:
    assert expected in complaint(*argv)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense: 1\n", "recipe.yaml: unknown setting nonsense (--help"),
        ("archive:\n  ur: 1\n", "recipe.yaml: unknown setting archive.ur: did you mean archive.uri?"),
        ("archive: x\n", "recipe.yaml: archive has settings below it, such as uri, glob, modified_after; it is no"),
        ("archive: [\n", "recipe.yaml: the file is not YAML"),
        ("", "recipe.yaml: no settings"),
        ("- 1\n", "recipe.yaml: no settings"),
        ("size: many\n", "size: Expected int"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text)
    assert expected in complaint("--config", "recipe.yaml")


@pytest.mark.parametrize("uri", ["s3://key:hunter2@host/x", "https://:hunter2@host"])
def test_a_password_is_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"archive: {{uri: '{uri}'}}\n")
    for line in (complaint("--archive.uri", uri), complaint("--config", str(tmp_path / "recipe.yaml"))):
        assert "holds a password" in line
        assert "hunter2" not in line


def test_a_mistake_in_a_list_s_item_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("rows:\n- {uri: a}\n- {url: b}\n")
    with pytest.raises(ConfigError, match=r"yaml: rows\[1\]: unknown setting url: did you mean uri\?$"):
        parse(Rows, "A job.", ["--config", str(tmp_path / "recipe.yaml")])
    assert parse(Rows, "A job.", ["--rows", "{uri: a}, {uri: b}"]).rows == (ArchiveConfig("a"), ArchiveConfig("b"))


class TestRecipes:
    BASE = JobConfig(ArchiveConfig("x", limit=7), size=5)

    def test_a_file_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "base.yaml").write_text("archive: {uri: x, limit: 7}\nsize: 5\n")
        assert parse(Comparison, "", ["--base", str(tmp_path / "base.yaml")]) == Comparison(self.BASE)
        (tmp_path / "job.yaml").write_text("name: b\nbase: base.yaml\n")
        assert parse(Comparison, "", ["--config", str(tmp_path / "job.yaml")]) == Comparison(self.BASE, "b")

    def test_a_mapping_in_the_job_s_file_and_options_that_overrule_it(self, tmp_path: Path) -> None:
        (tmp_path / "job.yaml").write_text(
            "base:\n  archive: {uri: y, limit: 7}\n  size: 5\nother: {archive: {uri: z}}\n"
        )
        found = parse(Comparison, "", ["--config", str(tmp_path / "job.yaml"), "--base.archive.uri", "x"])
        assert found == Comparison(self.BASE, other=JobConfig(ArchiveConfig("z")))

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            ([], "required: base.archive.uri"),
            (["--base.size", "3"], "unknown option --base.size"),
            (["--base.archive.ur", "3"], "unknown option --base.archive.ur: did you mean --base.archive.uri?"),
            (["--base", "no.yaml"], "base: no.yaml: no such file"),
            (["--base", "wrong.yaml"], "base: wrong.yaml: unknown setting siz: did you mean size?"),
            (["--config", "job.yaml"], "wrong.yaml: unknown setting siz: did you mean size?"),
            (["--base.archive.uri", "x", "--base.compute.batch_size", "0"], "base: batch_size must be > 0, not 0"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("wrong.yaml").write_text("siz: 3\n")
        Path("job.yaml").write_text("base: wrong.yaml\n")
        with pytest.raises(ConfigError) as caught:
            parse(Comparison, "", argv)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


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
        assert self._run(job, "https://me:hunter2@host") == 2
        assert "argument: https://***@host;" in capsys.readouterr().err
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


def help_of(config_class: type, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(config_class, "Score an archive.", argv)
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("argv", [("--help", "all"), ("--help=all",), ("--help-all",), ("-h", "all")])
def test_all_of_the_help_explains_every_setting(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(ScoreArchiveConfig, capsys, *argv).split())
    assert "Score an archive." in text
    assert "s3://bucket/prefix or a local folder." in text
    assert "Images per call of a scorer." in text


def test_the_help_shows_the_options_that_a_user_meets_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(ScoreArchiveConfig, capsys, "--model_uri", "x", "--help")
    assert re.findall(r"^  --(\S+)", text, re.M) == ["config", *ScoreArchiveConfig.FIRST]
    assert text.endswith("\n--help all shows every option\n")
    shown = help_of(Comparison, capsys, "--help")
    assert re.findall(r"^  --(\S+)", shown, re.M) == [
        "config", "base", "base.archive.uri", "base.compute.batch_size", "name", "other"
    ]  # fmt: skip


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
