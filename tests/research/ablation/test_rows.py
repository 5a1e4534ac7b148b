"""Rows of an ablation: disjoint splits, a known order of methods, and wrong inputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steelray.config import ConfigError, DatasetConfig
from steelray.demo.synthetic import encode, make_strip
from steelray.research.ablation.rows import evaluate_row, predict_split, split_strips
from steelray.research.ablation.settings import AblationSetting
from tests.research.ablation.conftest import NUM_ANOMALOUS, NUM_NOMINAL, SIZE_PX, ablation, local_rows, member

BANK = AblationSetting("bank", members=(member(),))
OWN = AblationSetting("own strip", members=(member(own_strip_fraction=0.05),))
BASELINE = AblationSetting("local deviation", method="local_deviation")


@pytest.mark.parametrize("seed", [0, 1])
def test_no_strip_is_in_two_groups_and_none_is_lost(plain_strips: DatasetConfig, tmp_path: Path, seed: int) -> None:
    config = ablation(plain_strips, tmp_path, BANK, OWN)
    split = split_strips(config, BANK, seed)
    assert split == split_strips(config, OWN, seed) != split_strips(config, BANK, 2)
    groups = [split.fit, split.held_out, split.validation, split.test]
    assert [len(group) for group in groups] == [5, 3, 3, 3]
    keys = [sample.key for group in groups for sample in group]
    assert len(set(keys)) == len(keys) == NUM_NOMINAL + NUM_ANOMALOUS
    assert not any(sample.is_anomalous for sample in split.fit + split.held_out)
    assert all(sample.is_anomalous for sample in split.validation + split.test)


def test_contamination_takes_defective_strips_from_the_validation_half(
    plain_strips: DatasetConfig, tmp_path: Path
) -> None:
    dirty = replace(BANK, contamination=0.4)
    config = ablation(plain_strips, tmp_path, dirty)
    clean_split, split = split_strips(config, BANK, 0), split_strips(config, dirty, 0)
    assert len(split.fit) == 5
    assert sum(sample.is_anomalous for sample in split.fit) == 2
    assert split.test == clean_split.test
    assert len(split.validation) == len(clean_split.validation) - 2
    row = evaluate_row(config, dirty, 0, 1)
    assert all(0 <= value <= 1 for value in row["figures"].values())


def test_finishes_that_no_bank_holds_are_forgiven_by_the_strip_itself(
    tread_strips: DatasetConfig, tmp_path: Path
) -> None:
    settings = (BANK, OWN, BASELINE)
    config = ablation(tread_strips, tmp_path, *settings)
    rows = {row[0].name: found for row, found in local_rows(config, [(setting, 0) for setting in settings])}
    pixel_auroc = {name: row["figures"]["pixel_auroc"] for name, row in rows.items()}
    assert pixel_auroc["own strip"] > 0.9
    assert pixel_auroc["own strip"] > pixel_auroc["bank"] + 0.2
    assert pixel_auroc["own strip"] > pixel_auroc["local deviation"] + 0.1


def test_a_row_says_all_that_the_tables_show(plain_strips: DatasetConfig, tmp_path: Path) -> None:
    config = ablation(plain_strips, tmp_path, BANK, BASELINE)
    bank, baseline = (evaluate_row(config, setting, 0, 1) for setting in (BANK, BASELINE))
    assert set(bank["figures"]) == set(baseline["figures"])
    assert bank["figures"]["pixel_auroc"] > 0.98
    assert bank["figures"]["part_auroc"] > 0.9
    assert bank["figures"]["part_best_accuracy"] >= bank["figures"]["part_accuracy_0.05"]
    assert set(bank["by_class"]) == {"anomalous"}
    assert bank["by_class"]["anomalous"]["part_auroc"] > 0.8
    assert 0 <= bank["by_class"]["anomalous"]["part_recall"] <= 1
    assert (bank["num_fit"], bank["num_held_out"], bank["num_anomalous"]) == (5, 3, NUM_ANOMALOUS)
    assert bank["seconds_per_strip"] > baseline["seconds_per_strip"] > 0


def test_two_equal_banks_fused_find_what_one_does(plain_strips: DatasetConfig, tmp_path: Path) -> None:
    fused = AblationSetting("fused", members=(member(), member()))
    config = ablation(plain_strips, tmp_path, BANK, fused)
    one, two = (evaluate_row(config, setting, 0, 1)["figures"] for setting in (BANK, fused))
    assert two == pytest.approx(one, abs=1e-6)


def test_a_strip_is_scored_by_banks_that_have_not_seen_it(plain_strips: DatasetConfig, tmp_path: Path) -> None:
    everything = replace(BANK, members=(replace(member(), coreset=replace(member().coreset, ratio=1.0)),))
    config = ablation(plain_strips, tmp_path, everything)
    _, predictions, threshold = predict_split(config, everything, 0, 1)
    assert threshold > 1.0  # a bank that holds all patches of a strip gives it 0
    assert len(predictions.scores_N) == 3 + NUM_ANOMALOUS


@pytest.mark.parametrize("grey", [0, 255])
def test_a_strip_of_one_grey_is_named(tmp_path: Path, grey: int) -> None:
    data = replace(nominal_strips(tmp_path / "data", 4), num_fit=2)
    blank = tmp_path / "data" / "nominal" / "2.png"
    blank.write_bytes(encode(np.full(SIZE_PX, grey, np.uint8), "PNG"))
    with pytest.raises(ConfigError, match=r"nominal/2\.png: every pixel is .*leave it out"):
        evaluate_row(ablation(data, tmp_path / "out", BANK), BANK, 0, 1)


def nominal_strips(root: Path, count: int) -> DatasetConfig:
    for folder in ("nominal", "anomalous"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        (root / "nominal" / f"{index}.png").write_bytes(make_strip(0, index, size_px=SIZE_PX).jpeg())
    (root / "anomalous" / "a.png").write_bytes(make_strip(0, 9, defect="patch", size_px=SIZE_PX).jpeg())
    return DatasetConfig("folder", str(root))


@pytest.mark.parametrize(
    ("count", "num_fit", "message"),
    [
        (0, None, "no nominal images"), (1, None, "leave some to test on"), (2, None, "a threshold needs two"),
        (3, 3, "leave some to test on"), (3, 2, "no defect masks"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_said_in_one_line(
    tmp_path: Path, count: int, num_fit: int | None, message: str
) -> None:
    data = replace(nominal_strips(tmp_path / "data", count), num_fit=num_fit)
    with pytest.raises(ConfigError, match=message):
        evaluate_row(ablation(data, tmp_path / "out", BANK), BANK, 0, 1)


def test_strips_of_other_sizes_and_depths_are_judged_beside_the_others(tmp_path: Path) -> None:
    data = replace(nominal_strips(tmp_path / "data", 4), num_fit=2)
    masks, anomalous = tmp_path / "data" / "masks", tmp_path / "data" / "anomalous"
    masks.mkdir()
    for name, size_px, depth in (("a", SIZE_PX, 1), ("b", (80, 300), 1), ("c", SIZE_PX, 257)):
        strip = make_strip(0, 11, defect="patch", size_px=size_px)
        pixels = strip.pixels_HW if depth == 1 else strip.pixels_HW.astype(np.uint16) * 257
        (anomalous / f"{name}.png").write_bytes(encode(pixels, "PNG"))
        (masks / f"{name}.png").write_bytes(encode(strip.mask_HW.astype(np.uint8) * 255, "PNG"))
    config = ablation(data, tmp_path / "out", BANK, validation_fraction=0.0)
    samples, predictions, _ = predict_split(config, BANK, 0, 1)
    sizes = {sample.path.stem: map_HW.shape for sample, map_HW in zip(samples, predictions.anomaly_maps, strict=True)}
    assert sizes["b"] == (80, 300)
    scores = {sample.path.stem: score for sample, score in zip(samples, predictions.scores_N, strict=True)}
    assert scores["c"] == pytest.approx(scores["a"], rel=1e-3)  # 16 bits of the same picture
    assert evaluate_row(config, BANK, 0, 1)["figures"]["pixel_auroc"] > 0.8
