"""Stored results of an ablation: resuming, tables and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steelray.config import ConfigError, DatasetConfig
from steelray.job import parse
from steelray.research.ablation import results
from steelray.research.ablation.pictures import draw_gallery, draw_summaries, worst_parts
from steelray.research.ablation.results import ROWS_FILE, TABLE_FILE, Row, read_rows, row_id, run_ablation, summarize
from steelray.research.ablation.rows import predict_split
from steelray.research.ablation.settings import AblationConfig, AblationSetting
from tests.research.ablation.conftest import ablation, local_rows, member

REPOSITORY = Path(__file__).parents[3]
SETTINGS = (AblationSetting("bank", members=(member(),)), AblationSetting("baseline", method="local_deviation"))


def run(config: AblationConfig, stop_after: int | None = None) -> list[Row]:
    """Run an ablation, stopped after some rows; return the computed ones."""
    computed: list[Row] = []

    def rows(to_do: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        for row, found in local_rows(config, to_do):
            if len(computed) == stop_after:
                raise KeyboardInterrupt
            computed.append(row)
            yield row, found

    run_ablation(config, rows, lambda line: None)
    return computed


def test_a_stopped_ablation_goes_on_where_it_was(plain_strips: DatasetConfig, tmp_path: Path) -> None:
    config = ablation(plain_strips, tmp_path, *SETTINGS, seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        run(config, stop_after=1)
    with (tmp_path / ROWS_FILE).open("a") as file:
        file.write('{"row_id": "cut sho')
    with pytest.raises(ConfigError, match="'bank' has no result yet"):
        summarize(config)
    assert len(run(config)) == 3
    assert run(config) == []
    assert len(read_rows(tmp_path)) == 4
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {ROWS_FILE, TABLE_FILE}
    summaries = summarize(config)
    assert [summary["setting"] for summary in summaries] == ["bank", "baseline"]
    for summary in summaries:
        rows = [row for row in read_rows(tmp_path).values() if row["setting"] == summary["setting"]]
        values = [row["figures"]["part_auroc"] for row in rows]
        assert summary["mean"]["part_auroc"] == pytest.approx(sum(values) / 2)
        assert summary["std"]["part_auroc"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_a_row_is_computed_anew_when_what_it_depends_on_changes(plain_strips: DatasetConfig, tmp_path: Path) -> None:
    config = ablation(plain_strips, tmp_path, *SETTINGS)
    bank = config.settings[0]
    elsewhere = replace(config.data, root="elsewhere")
    same = [config, replace(config, data=elsewhere, output_dir="other", cache_dir="there", gallery_of="bank")]
    assert len({row_id(one, (bank, 0)) for one in same}) == 1
    assert row_id(config, (replace(bank, name="renamed"), 0)) == row_id(config, (bank, 0))
    others = [
        (config, (bank, 1)),
        (config, (replace(bank, members=(member(sigma_px=2.0),)), 0)),
        (config, (replace(bank, members=(member(test_flips="both"),)), 0)),
        (config, (replace(bank, num_fit=4), 0)),
        (replace(config, pixel_step=4), (bank, 0)),
        (replace(config, data=replace(plain_strips, num_fit=4)), (bank, 0)),
    ]
    assert len({row_id(config, (bank, 0))} | {row_id(*other) for other in others}) == 1 + len(others)
    assert len(results.rows_to_do(config)) == 2


def test_every_row_of_the_recipe_is_in_the_repository() -> None:
    stored = read_rows(REPOSITORY / "results" / "ablation")
    config = parse(AblationConfig, "", ["--config", str(REPOSITORY / "jobs" / "configs" / "ablate_severstal.yaml")])
    assert stored
    assert set(stored) >= {row_id(config, (setting, seed)) for setting in config.settings for seed in config.seeds}


def test_the_tables_and_the_pictures_of_a_run(plain_strips: DatasetConfig, tmp_path: Path) -> None:
    config = ablation(plain_strips, tmp_path, *SETTINGS)
    run(config)
    summaries = summarize(config)
    table = results.to_markdown(summaries)
    lines = table.splitlines()
    assert "5 nominal strips to fit, 3 held out, 6 defective" in lines[0]
    assert "part accuracy at 5% | part accuracy at 20% | strip accuracy at 5%" in lines[2]
    assert lines[4].startswith(f"| bank | {summaries[0]['mean']['image_auroc']:.3f} ± 0.000 |")
    assert len({len(line.split("|")) for line in lines[2:6]}) == 1
    better = max(summaries, key=lambda summary: summary["mean"]["validation_part_auroc"])["setting"]
    assert results.best_setting(summaries) == better
    curve = [{**summary, "learns_from_all": summary["setting"] != better} for summary in summaries]
    assert results.best_setting(curve) != better, "a row of the learning curve is no choice"
    assert f"The validation half prefers: {better}." in table
    assert "| bank | anomalous | 6 |" in table
    draw_summaries(summaries, tmp_path / "figure.svg")
    assert b"baseline" in (tmp_path / "figure.svg").read_bytes()
    samples, predictions, threshold = predict_split(config, config.settings[0], 0, 1)
    misses, false_alarms = worst_parts(samples, predictions, config.parts)
    assert all(part.mask_HW.any() for part in misses)
    assert not any(part.mask_HW.any() for part in false_alarms)
    assert [part.score for part in misses] == sorted(part.score for part in misses)
    assert len(false_alarms) == 10
    assert false_alarms[0].score == max(part.score for part in false_alarms)
    draw_gallery(misses, threshold, tmp_path / "misses.jpg")
    assert (tmp_path / "misses.jpg").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": ()}, "settings is empty"), ({"settings": (SETTINGS[0], SETTINGS[0])}, "same name"),
        ({"gallery_of": "nothing"}, "no setting is named 'nothing'"), ({"seeds": ()}, "seeds is empty"),
        ({"folds": 1}, "folds"), ({"false_alarm_rates": (0.0,)}, "false_alarm_rates"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ablation(DatasetConfig("folder", "unused"), Path("unused"), *SETTINGS), **changes)
