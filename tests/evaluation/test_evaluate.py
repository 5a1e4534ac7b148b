"""Metrics of PatchCore and of the baseline on a labelled dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from steelray.config import CalibrationConfig, ConfigError, DatasetConfig
from steelray.demo.synthetic import make_strip
from steelray.evaluation import metrics
from steelray.evaluation.config import EvaluateConfig
from steelray.evaluation.datasets import Sample, load_dataset
from steelray.evaluation.evaluate import LocalDeviation, Predictions, evaluate, figures, predict, to_markdown, top_mean
from steelray.models.calibration import calibrate, conformal_threshold, write_calibration
from steelray.patchcore.bank import bank_files
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig
from steelray.patchcore.embedder import PatchEmbedder
from steelray.patchcore.fit import bank_scorer, fit_memory_bank
from steelray.patchcore.portable_embedder import Embedder
from steelray.schema import SCORES
from steelray.storage.location import Location

FIGURES = ["image_auroc", "best_accuracy", "pixel_auroc", "pixel_ap", "aupro"]
AT_THRESHOLD = ["accuracy", "recall", "false_alarm_rate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight nominal strips and four with scratches and their masks."""
    root = tmp_path_factory.mktemp("dataset")
    for name in ("nominal", "anomalous", "masks"):
        (root / name).mkdir()
    for index in range(8):
        strip = make_strip(0, index, size_px=(64, 160), brightness=110)
        Image.fromarray(strip.pixels_HW).save(root / "nominal" / f"{index}.png")
    for index in range(4):
        strip = make_strip(1, index, defect="scratch", size_px=(64, 160), brightness=110)
        Image.fromarray(strip.pixels_HW).save(root / "anomalous" / f"{index}.png")
        Image.fromarray(strip.mask_HW).save(root / "masks" / f"{index}.png")
    return root


def config(folder: Path, embedder: EmbedderConfig, **settings: object) -> EvaluateConfig:
    return EvaluateConfig(
        data=DatasetConfig("folder", str(folder), num_fit=5),
        embedder=embedder,
        **{
            "coreset": CoresetConfig(ratio=0.2, drop_suspects=False),
            "calibration": None,
            "backend": "eager",
            **settings,
        },  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def averaged(folder: Path, embedder_config: EmbedderConfig) -> tuple[dict[str, Any], list[str]]:
    """Result and progress of an evaluation over two splits, with the baseline."""
    lines: list[str] = []
    return evaluate(config(folder, embedder_config, seeds=(0, 1), baselines=True), 1, lines.append), lines


@pytest.fixture(scope="module")
def single(folder: Path, embedder_config: EmbedderConfig) -> dict[str, Any]:
    """Result of an evaluation over the first split."""
    return evaluate(config(folder, embedder_config), 1, print)


def test_a_bank_is_fitted_on_each_split_and_figures_are_averaged(
    averaged: tuple[dict[str, Any], list[str]], single: dict[str, Any], folder: Path, embedder_config: EmbedderConfig
) -> None:
    result, lines = averaged
    assert list(result["std"]) == FIGURES
    assert result["seeds"] == [0, 1]
    assert (result["num_fit"], result["num_test"], result["num_anomalous"]) == (5, 3 + 4, 4)
    assert result["bank_vectors"] == round(0.2 * 5 * 8 * 20)
    assert result["pixel_auroc"] > 0.9
    assert all(0 <= result[name] <= 1 for name in FIGURES)
    other = evaluate(config(folder, embedder_config, seeds=(1,)), 1, print)
    for name in FIGURES:
        assert result[name] == pytest.approx((single[name] + other[name]) / 2)
        assert result["std"][name] == pytest.approx(np.std([single[name], other[name]], ddof=1))
        assert single["std"][name] == 0
    assert set(result["local_standard_deviation"]) == {*FIGURES, "std"}
    assert any("fitting on 5 images, testing on 7" in line for line in lines)


def test_a_stored_bank_gives_the_figures_of_the_fitted_one(
    single: dict[str, Any], folder: Path, tmp_path: Path, embedder: PatchEmbedder, eager: Embedder
) -> None:
    data = load_dataset(DatasetConfig("folder", str(folder), num_fit=5))
    bank = fit_memory_bank(
        [sample.key for sample in data.fit],
        [sample.load() for sample in data.fit],
        eager,
        coreset=CoresetConfig(ratio=0.2),
        scoring=config(folder, embedder.config).scoring,
    )
    for name, body in bank_files(bank):
        Location(str(tmp_path)).write(name, body)
    always_flags = calibrate(["strip"], *np.zeros((3, 1)), CalibrationConfig())
    write_calibration(str(tmp_path), always_flags, SCORES.empty_table(), "made up")
    stored = evaluate(config(folder, embedder.config, model_uri=str(tmp_path)), 1, print)
    assert {name: stored[name] for name in FIGURES} == {name: single[name] for name in FIGURES}
    assert stored["bank_vectors"] == single["bank_vectors"]
    assert (stored["recall"], stored["false_alarm_rate"], stored["accuracy"]) == (1.0, 1.0, 4 / 7)


def test_a_threshold_is_set_on_strips_that_the_bank_never_sees(folder: Path, embedder_config: EmbedderConfig) -> None:
    settings = CalibrationConfig(held_out_fraction=0.4, false_alarm_rate=0.3, reject_rate=0.3)
    result = evaluate(config(folder, embedder_config, calibration=settings, baselines=True), 1, print)
    assert list(result["std"]) == [*FIGURES[:2], *AT_THRESHOLD, *FIGURES[2:]]
    assert result["held_out"] == 2
    assert result["bank_vectors"] == round(0.2 * 3 * 8 * 20)
    assert all(0 <= result[name] <= 1 for name in AT_THRESHOLD)
    assert result["accuracy"] == pytest.approx((4 * result["recall"] + 3 * (1 - result["false_alarm_rate"])) / 7)
    table = [line for line in to_markdown(result).splitlines() if line.startswith("| local")]
    assert table[0].count("–") == 3


def test_missing_models_and_images_are_named(tmp_path: Path, folder: Path, embedder_config: EmbedderConfig) -> None:
    with pytest.raises(ConfigError, match="no model there"):
        evaluate(config(folder, embedder_config, model_uri=str(tmp_path)), 1, print)
    (tmp_path / "nominal").symlink_to(folder / "nominal")
    with pytest.raises(ConfigError, match="no anomalous images to test on"):
        evaluate(config(tmp_path, embedder_config), 1, print)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"broken\.jpg: unreadable"):
        predict(LocalDeviation(), [Sample(tmp_path / "broken.jpg")])


def test_without_masks_only_images_are_judged(tmp_path: Path, folder: Path, embedder_config: EmbedderConfig) -> None:
    for name in ("nominal", "anomalous"):
        (tmp_path / name).symlink_to(folder / name)
    result = evaluate(config(tmp_path, embedder_config), 1, print)
    assert list(result["std"]) == ["image_auroc", "best_accuracy"]


def test_predictions_go_with_their_truth(folder: Path) -> None:
    samples = load_dataset(DatasetConfig("folder", str(folder), num_fit=5)).test
    predictions = predict(LocalDeviation(), samples)
    assert predictions.defect_types == ["nominal"] * 3 + ["anomalous"] * 4
    assert predictions.has_masks
    for sample, mask, one in zip(samples, predictions.masks, predictions.anomaly_maps, strict=True):
        assert one.shape == mask.shape == (64, 160)
        assert mask.any() == sample.is_anomalous
    enlarged = predict(LocalDeviation(), samples, (128, 320))
    assert {one.shape for one in (*enlarged.masks, *enlarged.anomaly_maps)} == {(128, 320)}
    assert (enlarged.scores_N == predictions.scores_N).all()
    kept = metrics.pixel_auroc(predictions.masks, predictions.anomaly_maps)
    assert metrics.pixel_auroc(enlarged.masks, enlarged.anomaly_maps) == pytest.approx(kept, abs=0.02)


def test_quarters_of_a_strip_are_judged_by_themselves() -> None:
    masks = [np.zeros((8, 40), bool) for _ in range(2)]
    masks[0][:, 12:18] = True
    maps = [mask.astype(np.float32) + 0.01 for mask in masks]
    predictions = Predictions(np.array([1, 0], np.float32), maps, masks, ["1", "nominal"], True)
    result = figures(predictions, quarters=True)
    assert result["quarter_auroc"] == result["quarter_best_accuracy"] == 1.0
    assert "quarter_auroc" not in figures(predictions, quarters=False)
    maps[1][:, 30:] = 5
    assert figures(predictions, quarters=True)["quarter_auroc"] == pytest.approx(6 / 7)


def test_the_baseline_sees_texture_and_no_level() -> None:
    flat = np.full((64, 160, 1), 200, np.uint8)
    rough = flat.copy()
    rough[20:40, 50:90, 0] = np.random.default_rng(0).integers(0, 256, (20, 40))
    maps, scores = LocalDeviation().score([flat, flat // 2, rough])
    assert scores[0] == scores[1] < scores[2]
    assert maps[2][30, 70] > 10 * maps[2][5, 140]


def test_top_mean() -> None:
    assert top_mean(np.arange(12, dtype=np.float32).reshape(3, 4), 3) == 10
    assert top_mean(np.ones((2, 2), np.float32), 409) == 1


def test_the_table_names_methods_and_figures(averaged: tuple[dict[str, Any], list[str]]) -> None:
    result, _ = averaged
    lines = to_markdown(result).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| method | image_auroc | best_accuracy | pixel_auroc | pixel_ap | aupro |"
    assert [line.split("|")[1].strip() for line in table[2:]] == ["patchcore", "local standard deviation"]
    assert f"{result['image_auroc']:.4f} ± {result['std']['image_auroc']:.4f}" in table[2]
    assert {line.count("|") for line in table} == {7}
    assert "folder: 5 images to fit, 7 to test" in lines[0]


def test_leave_one_out_thresholds_flag_fresh_strips_no_more_often_than_stated(eager: Embedder) -> None:
    """Every nominal strip teaches and calibrates. Fresh strips score slightly lower, as the whole bank knows more."""

    def strips(seed: int, count: int) -> list[NDArray[np.uint8]]:
        return [make_strip(seed, index, size_px=(64, 96)).pixels_HW[:, :, None] for index in range(count)]

    nominal, fresh, keys = strips(11, 80), strips(12, 300), [f"{number}.png" for number in range(80)]
    coreset, scoring = CoresetConfig(ratio=0.05, drop_suspects=False), ScoringConfig()
    scorer = bank_scorer(fit_memory_bank(keys, nominal, eager, coreset=coreset, scoring=scoring), eager)
    _, own_scores = scorer.score(nominal)
    _, scores_N = scorer.score(nominal, keys)
    _, fresh_scores = scorer.score(fresh)
    threshold = conformal_threshold(scores_N, 0.1)
    measured = float((fresh_scores > threshold.value).mean())
    assert 0.01 < measured < threshold.rate_high
    assert (fresh_scores > conformal_threshold(own_scores, 0.1).value).mean() > 2 * measured, "as seen, it would not"
