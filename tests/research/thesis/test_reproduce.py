"""The thesis's tables: judging, layout, and finished cells that are not computed again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from steelray.config import CalibrationConfig, ComputeConfig, ConfigError
from steelray.demo.synthetic import encode, make_strip
from steelray.evaluation import metrics
from steelray.evaluation.config import EvaluateConfig
from steelray.evaluation.datasets import load_dataset
from steelray.evaluation.evaluate import Predictions, evaluate, predict
from steelray.models.calibration import calibrate, write_calibration
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.config import CoresetConfig, EmbedderConfig
from steelray.reconstruction.config import DraemConfig, InputConfig, TrainConfig
from steelray.reconstruction.run import TrainRun
from steelray.reconstruction.session import TrainingSession
from steelray.research.thesis.config import CELLS, PatchCoreRecipe, ThesisConfig, TrainingRecipe
from steelray.research.thesis.reproduce import judge, reproduce
from steelray.research.thesis.tables import THESIS, to_markdown

SIZE_PX = (64, 64)


@pytest.fixture
def bottle(tmp_path: Path) -> Path:
    """MVTec's layout with strips in it."""
    root = tmp_path / "bottle"
    for index in range(6):
        _write(root / f"train/good/{index:03d}.png", make_strip(0, index, size_px=SIZE_PX).pixels_HW)
    for index in range(3):
        _write(root / f"test/good/{index:03d}.png", make_strip(1, index, size_px=SIZE_PX).pixels_HW)
        strip = make_strip(2, index, defect="scratch", size_px=SIZE_PX)
        _write(root / f"test/scratch/{index:03d}.png", strip.pixels_HW)
        _write(root / f"ground_truth/scratch/{index:03d}_mask.png", strip.mask_HW.astype(np.uint8) * 255)
    return root


def _write(path: Path, pixels_HW: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels_HW, "PNG"))


def config_of(tmp_path: Path, bottle: Path, **changes: Any) -> ThesisConfig:
    settings: dict[str, Any] = {
        "bottle_root": str(bottle),
        "severstal_root": "unused",
        "label": "tiny, a test",
        "output_dir": str(tmp_path / "results"),
        "models_uri": str(tmp_path / "models"),
        "only": ("bottle/patchcore", "bottle/conv_ae"),
        "conv_ae": TrainingRecipe(input=InputConfig(size_px=(32, 32)), num_steps=2, batch_size=2),
        "patchcore": PatchCoreRecipe(EmbedderConfig(levels=(2,), resize_px=SIZE_PX), CoresetConfig(ratio=0.1)),
        "calibration": CalibrationConfig(held_out_fraction=0.3, false_alarm_rate=0.4, reject_rate=0.4),
        **changes,
    }
    return ThesisConfig(**settings)


class TrainingHere:
    """Stands in for jobs/train.py: stores and calibrates a model in this process; it is not trained."""

    def __init__(self) -> None:
        self.configs: list[TrainConfig] = []

    def __call__(self, config: TrainConfig) -> dict[str, Any]:
        self.configs.append(config)
        assert config.data.dataset is not None
        images = [sample.load() for sample in load_dataset(config.data.dataset).fit]
        run = TrainRun(config.output_uri, config.run_name)
        run.write_model(config, TrainingSession(config, 2).state_dict()["weights"], {})
        model = open_model(str(run.location))
        maps, scores_N = load_scorer(model, ComputeConfig(), num_threads=1).score(images)
        keys, peaks_N, means_N = [str(i) for i in range(len(maps))], np.max(maps, (1, 2)), np.mean(maps, (1, 2))
        calibration = calibrate(keys, scores_N, peaks_N, means_N, config.calibration)
        write_calibration(model.uri, calibration, pa.table({"image_key": keys, "group": keys}), "a test")
        return {
            "model_uri": model.uri, "training_s": 1.0, "peak_memory_bytes": 2**30, "images_per_s": 4.0, "steps": 2,
            "held_out": len(images), "images": len(images),
        }  # fmt: skip


def test_cells_tables_and_pictures_and_nothing_twice(tmp_path: Path, bottle: Path) -> None:
    config, train = config_of(tmp_path, bottle), TrainingHere()
    result = reproduce(config, 1, train, str)
    assert result["computed"] == ["bottle/conv_ae", "bottle/patchcore"]
    assert result["missing"] == [cell for cell in CELLS if not cell.startswith("bottle/") or cell == "bottle/draem"]
    folder = tmp_path / "results"
    cell = json.loads((folder / "thesis/bottle_conv_ae.json").read_text())
    assert (cell["label"], cell["counts"]) == ("tiny, a test", {"test": 6, "anomalous": 3})
    assert set(cell["figures"]) >= {"classification", "pixel_auroc", "image_auroc", "pixel_ap", "aupro",
                                    "accuracy_nominal", "accuracy_scratch", "segmentation_accuracy"}  # fmt: skip
    with Image.open(folder / "thesis/bottle_conv_ae.png") as picture:
        assert picture.format == "PNG"
    assert (folder / "thesis/bottle_conv_ae.png").stat().st_size < 300_000
    text = (folder / "thesis.md").read_text()
    for words in ("tiny, a test", "86 / 90.42", "97.62 / 93.68", "not computed yet", "8 GB", "scratch"):
        assert words in text
    # judged at the thesis's size, whatever the network's
    model = open_model(str(tmp_path / "models" / train.configs[0].run_name))
    scorer = load_scorer(model, ComputeConfig(), num_threads=1)
    judged = predict(scorer, load_dataset(config.dataset("bottle")).test, (256, 256))
    assert cell["figures"]["pixel_auroc"] == pytest.approx(metrics.pixel_auroc(judged.masks, judged.anomaly_maps))
    assert reproduce(config, 1, train, str)["computed"] == []
    assert len(train.configs) == 1
    # another recipe for one method is another cell and another run; the others stay
    longer = replace(config, conv_ae=replace(config.conv_ae, num_steps=3), output_dir=config.output_dir)
    assert reproduce(longer, 1, train, str)["computed"] == ["bottle/conv_ae"]
    assert train.configs[0].run_name != train.configs[1].run_name


def test_the_thesis_judges_at_the_best_threshold_and_averages_over_types() -> None:
    masks = [np.zeros((4, 4), bool), np.eye(4, dtype=bool), np.eye(4, dtype=bool)]
    maps = [mask.astype(np.float32) for mask in masks]
    scores = np.array([0.1, 0.9, 0.05], np.float32)
    found, pixel_threshold = judge("draem", Predictions(scores, maps, masks, ["nominal", "a", "b"], True), 0.5)
    assert 0 <= pixel_threshold < 1
    assert found["pixel_auroc"] == 1
    assert found["image_auroc"] == 0.5
    assert found["classification"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["classification_held_out"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["accuracy_b"] == 0
    shares, _ = judge("conv_ae", Predictions(scores, maps, masks, ["nominal", "a", "b"], True), 0.5)
    assert shares["classification"] == 1  # by the share of defect pixels, not by the score
    assert shares["segmentation_accuracy"] == 1
    assert shares["no_defect_accuracy"] == pytest.approx(1 - 8 / 48)


def test_a_table_without_any_cell_still_has_the_thesis_s_numbers() -> None:
    text = to_markdown({"label": "none yet", "cells": {}, "missing": list(CELLS)})
    assert all(f"{accuracy:g} / {auroc:g}" in text for accuracy, auroc in THESIS.values())
    assert text.count("not computed yet") == len(CELLS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ("bottle/unet",)}, "'bottle/unet' is no cell; there are bottle/conv_ae"),
        ({"label": " "}, "label is empty"),
        ({"draem": TrainingRecipe(input=InputConfig(size_px=(400, 256)))}, r"\[400, 256\] is not divisible by 32"),
        ({"draem": TrainingRecipe(input=InputConfig(size_px=(64, 80)), draem=DraemConfig(width=1 / 16))}, "divisible"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, tmp_path, **changes)


def test_severstal_is_cut_and_textures_go_to_draem_only(tmp_path: Path) -> None:
    config = config_of(tmp_path, tmp_path, texture_uri="dtd", seed=3)
    assert config.dataset("severstal").tiling == "400x256"
    assert config.training("severstal", "draem", "x").synthesis.texture_uri == "dtd"
    assert config.training("severstal", "conv_ae", "x").synthesis.texture_uri is None
    assert config.training("bottle", "draem", "x").seed == 3


def test_a_checkpoint_is_evaluated_as_a_bank_is(tmp_path: Path, bottle: Path) -> None:
    config = config_of(tmp_path, bottle)
    summary = TrainingHere()(config.training("bottle", "conv_ae", "evaluated"))
    found = evaluate(EvaluateConfig(data=config.dataset("bottle"), model_uri=summary["model_uri"]), 1, str)
    assert (found["method"], found["num_test"]) == ("conv_ae", 6)
    scorer = load_scorer(open_model(summary["model_uri"]), ComputeConfig(), num_threads=1)
    own = predict(scorer, load_dataset(config.dataset("bottle")).test)
    assert found["pixel_auroc"] == metrics.pixel_auroc(own.masks, own.anomaly_maps)
    assert 0 <= found["image_auroc"] <= 1
