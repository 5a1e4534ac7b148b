"""DRAEM's synthetic anomalies: the published recipe by default, every option, and one generator per sample."""

import hashlib
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steelray.config import ArchiveConfig, ConfigError
from steelray.demo.synthetic import make_strip
from steelray.reconstruction.config import InputConfig, SynthesisConfig, TrainConfig, TrainDataConfig
from steelray.reconstruction.synthesis import SampleMaker, TrainingSample, samples_of_step

SIZE = (64, 64)
CONFIG = TrainConfig(
    model="draem",
    data=TrainDataConfig(nominal=ArchiveConfig("unused")),
    output_uri="unused",
    run_name="test",
    input=InputConfig(size_px=SIZE),
)
STRIP = make_strip(0, 0, size_px=SIZE).pixels_HW[:, :, None]


def make(count: int, *, pixels: np.ndarray = STRIP, others: object = None, **options: object) -> list[TrainingSample]:
    """Make samples of one image, always with an anomaly and without rotation unless the options differ."""
    options = {"anomaly_probability": 1.0, "rotate": "none", **options}
    maker = SampleMaker(replace(CONFIG, synthesis=SynthesisConfig(**options)), others=others)  # type: ignore[arg-type]
    return [maker.sample(pixels, str(index), epoch=0, index=index) for index in range(count)]


def anomalous(samples: list[TrainingSample]) -> list[TrainingSample]:
    return [sample for sample in samples if sample.mask_HW.any()]


class Constant:
    """A white source."""

    def draw(self, rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
        return np.full((*size_px, 3), 255, dtype=np.uint8)


def test_values_are_in_the_unit_range_without_mean_or_deviation() -> None:
    samples = make(40, rotate="r90", anomaly_probability=0.5)
    for sample in samples:
        assert sample.image_CHW.dtype == sample.target_CHW.dtype == np.float32
        assert sample.image_CHW.shape == sample.target_CHW.shape == (3, *SIZE)
        assert sample.mask_HW.dtype == bool
        assert sample.image_CHW.min() >= 0
        assert sample.image_CHW.max() <= 1
    plain = make(1, anomaly_probability=0.0)[0]
    np.testing.assert_allclose(plain.image_CHW, np.repeat(STRIP.transpose(2, 0, 1), 3, axis=0) / 255, atol=1e-6)


def test_half_of_the_images_stay_clean() -> None:
    samples = make(200, anomaly_probability=SynthesisConfig().anomaly_probability)
    with_anomaly = np.mean([sample.mask_HW.any() for sample in samples])
    assert 0.40 < with_anomaly < 0.55  # one mask in twenty is empty
    for sample in samples:
        if not sample.mask_HW.any():
            assert (sample.image_CHW == sample.target_CHW).all()


def test_the_label_is_one_where_the_image_was_changed_and_only_there() -> None:
    samples, clean = anomalous(make(60)), make(1, anomaly_probability=0.0)[0].image_CHW
    changed_inside = []
    for sample in samples:
        assert (sample.target_CHW == clean).all()
        change_HW = np.abs(sample.image_CHW - sample.target_CHW).max(axis=0)
        assert (change_HW[~sample.mask_HW] == 0).all()
        changed_inside.append((change_HW[sample.mask_HW] > 0).mean())
    assert np.mean(changed_inside) > 0.95


def opacities(**options: object) -> np.ndarray:
    """Measure opacities with a white source on a black image; augmenters may darken the white."""
    synthesis = SynthesisConfig(**{"anomaly_probability": 1.0, "rotate": "none", **options})  # type: ignore[arg-type]
    maker = SampleMaker(replace(CONFIG, synthesis=synthesis), textures=Constant())
    black = np.zeros((*SIZE, 1), dtype=np.uint8)
    samples = [maker.sample(black, "", epoch=0, index=index) for index in range(500)]
    return np.array([sample.image_CHW.max() for sample in samples if sample.image_CHW.any()])


def test_opacity_is_one_minus_beta_with_beta_up_to_0_8() -> None:
    """A published port uses beta itself as the opacity, so that its anomalies are invisible."""
    values = opacities()
    white = values[values > 0.19]  # less is a white that an augmenter has darkened
    assert values.max() > 0.95
    assert len(white) > 0.8 * len(values)
    assert np.median(white) == pytest.approx(0.6, abs=0.08)


def test_opacity_bounds_are_options() -> None:
    values = opacities(opacity_min=0.3, opacity_max=0.4)
    assert values.max() <= 0.4 + 1e-6
    assert np.quantile(values, 0.5) >= 0.3 - 1e-6


def test_rotation_is_rare_and_fills_with_black() -> None:
    grey = np.full((*SIZE, 1), 100, dtype=np.uint8)
    samples = make(300, pixels=grey, rotate="r90", anomaly_probability=0.0)
    turned = [sample for sample in samples if (sample.image_CHW == 0).any()]
    assert 0.2 < len(turned) / len(samples) < 0.4
    assert all((sample.image_CHW == sample.target_CHW).all() for sample in turned)


def test_flips_move_pixels_without_black() -> None:
    samples = make(100, rotate="flips", anomaly_probability=0.0)
    views = {sample.image_CHW.tobytes() for sample in samples}
    assert len(views) == 4
    assert len({float(sample.image_CHW.astype(np.float64).sum().round(3)) for sample in samples}) == 1


def test_target_blur_smooths_what_is_reconstructed_and_not_what_is_seen() -> None:
    plain, blurred = make(1, anomaly_probability=0.0)[0], make(1, anomaly_probability=0.0, target_blur_px=1.5)[0]
    assert (blurred.image_CHW == plain.image_CHW).all()
    assert np.diff(blurred.target_CHW, axis=2).std() < 0.6 * np.diff(plain.target_CHW, axis=2).std()
    assert blurred.target_CHW.mean() == pytest.approx(plain.target_CHW.mean(), abs=2e-3)


def test_anomalies_keep_to_the_foreground() -> None:
    pixels = STRIP.copy()
    pixels[:, :32] = 0
    for foreground in ("synthesis", "all"):
        samples = make(40, pixels=pixels, foreground=foreground)
        assert anomalous(samples)
        assert not any(sample.mask_HW[:, :28].any() for sample in samples)
        assert all((sample.foreground_HW is None) == (foreground == "synthesis") for sample in samples)
    assert any(sample.mask_HW[:, :28].any() for sample in make(40, pixels=pixels))
    assert not samples[0].foreground_HW[:, :28].any()
    assert samples[0].foreground_HW[:, 36:].all()


def test_grey_sources_bring_no_colour() -> None:
    def colour(samples: list[TrainingSample]) -> float:
        return max(float(np.ptp(sample.image_CHW, axis=0).max()) for sample in samples)

    assert colour(make(20, grey_source_probability=1.0)) < 1e-6
    assert colour(make(20)) > 0.2
    drawn = anomalous(make(100, grey_source_probability=0.5))
    assert 0.3 < np.mean([colour([sample]) < 1e-6 for sample in drawn]) < 0.7


def test_matched_contrast_makes_anomalies_of_the_strip_s_brightness() -> None:
    def differences(**options: bool) -> float:
        samples = [sample for sample in anomalous(make(40, **options)) if sample.mask_HW.sum() > 50]
        means = [(s.image_CHW - s.target_CHW)[:, s.mask_HW].mean() for s in samples]
        return float(np.mean(np.abs(means)))

    assert differences(match_contrast=True) < 0.1 * differences()


def test_poisson_blending_leaves_no_step_at_the_edge() -> None:
    def step(blend: str) -> float:
        synthesis = SynthesisConfig(anomaly_probability=1.0, rotate="none", perlin_exponents=(1, 2), blend=blend)  # type: ignore[arg-type]
        maker = SampleMaker(replace(CONFIG, synthesis=synthesis), textures=Constant())
        steps = []
        for sample in (maker.sample(STRIP, "", epoch=0, index=index) for index in range(12)):
            change_HW = np.abs(sample.image_CHW - sample.target_CHW).mean(axis=0)
            steps.append(np.abs(np.diff(change_HW, axis=1))[np.diff(sample.mask_HW.astype(int), axis=1) != 0])
        return float(np.concatenate(steps).mean())

    assert step("poisson") < 0.3 * step("alpha")


def test_other_strips_as_sources() -> None:
    others = [np.full((*SIZE, 1), 255, dtype=np.uint8)]
    drawn = make(60, others=others, self_source_probability=1.0, grey_source_probability=1.0)
    assert len({sample.image_CHW.tobytes() for sample in anomalous(drawn)}) > 10
    # an augmented white source still has one value everywhere
    spreads = [np.std(s.image_CHW[0][s.mask_HW]) for s in anomalous(drawn)]
    generated = [np.std(s.image_CHW[0][s.mask_HW]) for s in anomalous(make(60, grey_source_probability=1.0))]
    assert np.median(spreads) < np.median(generated)
    with pytest.raises(ConfigError, match="training images"):
        make(1, self_source_probability=0.5)


def test_relabelling_takes_out_what_hardly_changed() -> None:
    whole, strict = make(60), make(60, relabel_levels=20.0)
    for before, after in zip(whole, strict, strict=True):
        assert (before.image_CHW == after.image_CHW).all()
        change_HW = np.abs(after.image_CHW - after.target_CHW).max(axis=0)
        assert (after.mask_HW == (before.mask_HW & (change_HW > 20 / 255))).all()
    assert sum(s.mask_HW.sum() for s in strict) < sum(s.mask_HW.sum() for s in whole)


def test_the_autoencoder_trains_on_clean_images() -> None:
    maker = SampleMaker(replace(CONFIG, model="conv_ae", synthesis=SynthesisConfig(self_source_probability=1.0)))
    for index in range(20):
        sample = maker.sample(STRIP, "", epoch=0, index=index)
        assert not sample.mask_HW.any()
        assert (sample.image_CHW == sample.target_CHW).all()
        np.testing.assert_allclose(sample.image_CHW[0], STRIP[:, :, 0] / 255, atol=1e-6)


DIGESTS = """
import hashlib, sys
from tests.reconstruction.test_synthesis import digest_of
for word in sys.argv[1:]:
    print(digest_of(*map(int, word.split(","))))
"""


def digest_of(epoch: int, index: int, seed: int = 0) -> str:
    maker = SampleMaker(replace(CONFIG, synthesis=SynthesisConfig(anomaly_probability=1.0), seed=seed))
    sample = maker.sample(STRIP, "", epoch=epoch, index=index)
    return hashlib.sha256(sample.image_CHW.tobytes() + sample.mask_HW.tobytes()).hexdigest()


def test_a_sample_is_the_same_in_every_process_and_order() -> None:
    places = [(0, 3), (0, 4), (1, 3), (2, 11), (0, 3, 1)]
    here = [digest_of(*place) for place in places]
    assert len(set(here)) == len(places)
    words = [",".join(map(str, place)) for place in reversed(places)]
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS, *words],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == here[::-1]


def test_a_sample_takes_nothing_from_the_global_generators() -> None:
    def states() -> tuple[str, str, str]:
        return str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())  # noqa: NPY002

    before, digests = states(), {digest_of(0, 5)}
    assert states() == before
    random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert digests == {digest_of(0, 5)}


def test_every_image_comes_once_per_epoch_whatever_the_batch_size() -> None:
    for batch_size in (3, 4):
        steps = [samples_of_step(step, batch_size, 12, seed=5) for step in range(24 // batch_size)]
        sequence = [place for step in steps for place in step]
        assert sequence == [place for step in range(24) for place in samples_of_step(step, 1, 12, seed=5)]
        for epoch in (0, 1):
            assert sorted(index for e, index in sequence if e == epoch) == list(range(12))
    assert samples_of_step(0, 12, 12, seed=5) != samples_of_step(0, 12, 12, seed=6)
    assert [i for _, i in samples_of_step(0, 12, 12, 5)] != [i for _, i in samples_of_step(1, 12, 12, 5)]


def test_real_strips(real_data: Path) -> None:
    from steelray.imaging.decode import decode

    maker = SampleMaker(
        replace(CONFIG, synthesis=SynthesisConfig(texture_uri=str(real_data / "textures" / "dtd"), foreground="all"))
    )
    paths = sorted((real_data / "severstal" / "train_images").glob("*.jpg"))[:4]
    samples = [maker.sample(decode(p.read_bytes()), p.name, epoch=e, index=0) for p in paths for e in range(6)]
    assert 0.1 < np.mean([sample.mask_HW.any() for sample in samples]) < 0.8
    assert all(s.image_CHW.min() >= 0 and s.image_CHW.max() <= 1 for s in samples)
