"""Training steps: they learn, stop at NaN, continue exactly after a restart, and add up over parts of a batch."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steelray.config import ArchiveConfig, ConfigError
from steelray.demo.synthetic import make_strip
from steelray.reconstruction.batch import Batch, collate
from steelray.reconstruction.config import (
    DraemConfig,
    InputConfig,
    LossConfig,
    OptimizerConfig,
    SynthesisConfig,
    TrainConfig,
    TrainDataConfig,
)
from steelray.reconstruction.session import NonFiniteLoss, TrainingSession
from steelray.reconstruction.synthesis import SampleMaker, samples_of_step
from steelray.research.study.probe import best_constant_focal

CONFIG = TrainConfig(
    model="draem",
    data=TrainDataConfig(nominal=ArchiveConfig("unused")),
    output_uri="unused",
    run_name="test",
    input=InputConfig(size_px=(32, 32)),
    draem=DraemConfig(width=1 / 16),
    batch_size=4,
    optimizer=OptimizerConfig(lr=1e-3),
)
IMAGES = [make_strip(0, index, size_px=(48, 48)).pixels_HW[:, :, None] for index in range(6)]


def batch_of(config: TrainConfig, step: int) -> Batch:
    maker = SampleMaker(config)
    places = samples_of_step(step, config.batch_size, len(IMAGES), config.seed)
    return collate([maker.sample(IMAGES[i], f"strip-{i}", epoch=e, index=i) for e, i in places])


def run(session: TrainingSession, steps: range) -> list[dict[str, float]]:
    return [session.train_step(batch_of(session.config, step)) for step in steps]


def with_options(**settings: Any) -> TrainConfig:
    return replace(CONFIG, **settings)


def weights_of(session: TrainingSession) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in session.model.parameters()])


def test_four_images_can_be_learnt_by_heart() -> None:
    """Reconstruction, segmentation and both modes of batch normalisation work together."""
    synthesis = SynthesisConfig(anomaly_probability=1.0, opacity_min=0.6)
    config = with_options(draem=DraemConfig(width=1 / 8), synthesis=synthesis, optimizer=OptimizerConfig(lr=1e-3))
    maker = SampleMaker(config)
    batch = collate([maker.sample(IMAGES[i], str(i), epoch=0, index=i + 1) for i in range(4)])
    constant = best_constant_focal(float(batch.masks_BHW.float().mean()))
    assert constant > 0.02
    session = TrainingSession(config, 110)
    history = [session.train_step(batch) for _ in range(110)]
    assert history[0]["focal"] > constant
    assert history[-1]["focal"] < 0.5 * constant
    assert history[-1]["l2"] < 0.02 * history[0]["l2"]
    assert history[-1]["ssim"] < 0.15 * history[0]["ssim"]
    evaluated = session.evaluate([batch])
    assert evaluated["focal"] < 0.5 * constant
    assert evaluated["ssim"] < 0.3 * history[0]["ssim"]


def test_metrics_of_a_step() -> None:
    loss = LossConfig(w_ssim=0.5, w_focal=3.0)
    (metrics,) = run(TrainingSession(with_options(loss=loss), 10), range(1))
    parts = {"l2", "ssim", "focal", "total", "grad_norm", "grad_norm_reconstructive", "grad_norm_discriminative"}
    assert set(metrics) == parts | {"learning_rate"}
    assert metrics["total"] == pytest.approx(metrics["l2"] + 0.5 * metrics["ssim"] + 3 * metrics["focal"], rel=1e-5)
    squares = metrics["grad_norm_reconstructive"] ** 2 + metrics["grad_norm_discriminative"] ** 2
    assert metrics["grad_norm"] ** 2 == pytest.approx(squares, rel=1e-4)
    assert 0 <= metrics["ssim"] <= 2


def test_the_autoencoder_has_the_squared_error_only() -> None:
    session = TrainingSession(with_options(model="conv_ae", optimizer=OptimizerConfig(lr=3e-3)), 40)
    history = run(session, range(40))
    assert set(history[0]) == {"l2", "total", "grad_norm", "learning_rate"}
    assert history[-1]["l2"] < 0.65 * history[0]["l2"]


def test_the_reconstruction_loss_has_a_gradient_of_its_own() -> None:
    """A published port detaches it, so that the reconstruction learns from the segmentation alone."""
    report = TrainingSession(CONFIG, 10).gradient_report(batch_of(CONFIG, 0))
    assert min(report["norm_l2"], report["norm_ssim"]) > 1e-3
    assert set(report) == {
        "norm_l2", "norm_ssim", "norm_focal", "cosine_l2_ssim", "cosine_l2_focal", "cosine_ssim_focal",
    }  # fmt: skip
    assert all(abs(value) <= 1 + 1e-5 for name, value in report.items() if name.startswith("cosine"))


def test_a_detached_segmentation_does_not_pull_at_the_reconstruction() -> None:
    report = TrainingSession(with_options(loss=LossConfig(detach=True)), 10).gradient_report(batch_of(CONFIG, 0))
    assert report["norm_focal"] == 0
    assert report["norm_ssim"] > 0


def test_evaluations_and_reports_change_nothing() -> None:
    session, batch = TrainingSession(CONFIG, 10), batch_of(CONFIG, 0)
    run(session, range(2))
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    first = session.evaluate([batch])
    session.gradient_report(batch)
    session.evaluate([batch], batch_statistics=True)
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
    assert session.evaluate([batch]) == first


def test_evaluation_uses_running_statistics_unless_asked_for_the_batch_s() -> None:
    session, batch = TrainingSession(CONFIG, 10), batch_of(CONFIG, 0)
    running, own = session.evaluate([batch]), session.evaluate([batch], batch_statistics=True)
    assert running["total"] != pytest.approx(own["total"], rel=1e-3)
    assert own["total"] == pytest.approx(session.train_step(batch)["total"], rel=1e-5)


def test_an_evaluation_is_the_mean_over_images() -> None:
    session, batch = TrainingSession(with_options(model="conv_ae"), 10), batch_of(CONFIG, 0)
    parts = [replace_batch(batch, slice(0, 1)), replace_batch(batch, slice(1, 4))]
    assert session.evaluate(parts)["l2"] == pytest.approx(session.evaluate([batch])["l2"], rel=1e-5)
    with pytest.raises(ValueError, match="at least one batch"):
        session.evaluate([])


def replace_batch(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.keys[rows], batch.images_BCHW[rows], batch.targets_BCHW[rows], batch.masks_BHW[rows])


def test_halves_of_a_batch_add_up_to_the_whole() -> None:
    """Two workers average to the gradient of one if no statistic is taken over the batch."""
    config, batch = with_options(draem=DraemConfig(width=1 / 16, norm="gn")), batch_of(CONFIG, 0)

    def gradient(part: Batch) -> torch.Tensor:
        session = TrainingSession(config, 10)
        session.train_step(part)
        return torch.cat([p.grad.flatten() for p in session.model.parameters() if p.grad is not None])

    halves = [gradient(replace_batch(batch, rows)) for rows in (slice(0, 2), slice(2, 4))]
    whole = gradient(batch)
    assert torch.allclose((halves[0] + halves[1]) / 2, whole, atol=1e-5 * float(whole.abs().max()))


def test_the_wrapped_network_is_the_one_that_is_trained() -> None:
    class Counting(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *inputs: Any, **options: Any) -> Any:
            self.calls += 1
            return self.module(*inputs, **options)

    wrapped: list[Counting] = []

    def wrap(module: nn.Module) -> nn.Module:
        wrapped.append(Counting(module))
        return wrapped[0]

    session, plain = TrainingSession(CONFIG, 10, wrap=wrap), TrainingSession(CONFIG, 10)
    assert run(session, range(2)) == run(plain, range(2))
    assert wrapped[0].calls == 2
    assert torch.equal(weights_of(session), weights_of(plain))


@pytest.mark.parametrize("part", ["targets_BCHW", "images_BCHW"])
def test_nan_stops_the_run_and_names_step_term_and_images(part: str) -> None:
    session = TrainingSession(CONFIG, 10)
    run(session, range(1))
    before, batch = weights_of(session), batch_of(CONFIG, 1)
    getattr(batch, part)[1, 0, 5, 5] = np.nan
    with pytest.raises(NonFiniteLoss) as caught:
        session.train_step(batch)
    assert (caught.value.step, caught.value.term, caught.value.keys) == (1, "l2", batch.keys)
    assert "step 1: l2 is not finite" in str(caught.value)
    assert torch.equal(weights_of(session), before)
    assert session.step == 1
    # it is pickled from a worker to the driver
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(again) == str(caught.value)
    assert again.keys == batch.keys


def test_a_gradient_that_overflows_is_noticed_too() -> None:
    session = TrainingSession(CONFIG, 10)
    session.model.reconstructive.head.weight.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteLoss) as caught:
        run(session, range(1))
    assert caught.value.term == "grad_norm"


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"optimizer": OptimizerConfig(lr=1e-3, ema=0.9, clip=1.0, schedule="cosine")},
    "frozen": {"optimizer": OptimizerConfig(lr=1e-3, ema=0.9, freeze_statistics=0.5)},
    "group norm": {"draem": DraemConfig(width=1 / 16, norm="gn")},
    "autoencoder": {"model": "conv_ae"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_continued_run_equals_an_uninterrupted_one(options: dict[str, Any]) -> None:
    config = with_options(**options)
    whole = TrainingSession(config, 4)
    expected = run(whole, range(4))
    first = TrainingSession(config, 4)
    run(first, range(2))
    state = first.state_dict()
    run(first, range(2, 3))  # the state is a copy: this does not reach it
    second = TrainingSession(replace(config, seed=99), 4)  # other initial weights, all of which must be replaced
    second.load_state_dict(state)
    second.config = config
    assert second.step == 2
    assert run(second, range(2, 4)) == expected[2:]
    finished, again = whole.state_dict(), second.state_dict()
    for part in ("weights", "resume"):
        assert finished[part].keys() == again[part].keys()
        assert all(torch.equal(value, again[part][name]) for name, value in finished[part].items())


def test_a_state_of_another_network_is_refused() -> None:
    state = TrainingSession(CONFIG, 6).state_dict()
    with pytest.raises(ConfigError, match="does not fit this draem network"):
        TrainingSession(with_options(draem=DraemConfig(width=1 / 8)), 6).load_state_dict(state)
    with pytest.raises(ConfigError, match="does not fit this conv_ae network"):
        TrainingSession(with_options(model="conv_ae"), 6).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"without optimizer\.ema"):
        TrainingSession(with_options(optimizer=OptimizerConfig(ema=0.9)), 6).load_state_dict(state)


def test_the_evaluated_network_is_the_average_of_weights_and_batch_statistics() -> None:
    session = TrainingSession(with_options(optimizer=OptimizerConfig(lr=1e-3, ema=0.5)), 10)

    def values(model: nn.Module) -> torch.Tensor:
        mean = model.get_buffer("reconstructive.encoder.0.1.running_mean")
        return torch.cat([mean, *(p.detach().flatten() for p in model.parameters())])

    seen = []
    for step in range(3):
        run(session, range(step, step + 1))
        seen.append(values(session.model))
    expected = 0.5 * (0.5 * seen[0] + 0.5 * seen[1]) + 0.5 * seen[2]
    assert torch.allclose(values(session.eval_model), expected, atol=1e-6)
    assert not torch.equal(values(session.eval_model), seen[2])


def test_clipping_bounds_the_step_and_reports_the_norm_before() -> None:
    session = TrainingSession(with_options(optimizer=OptimizerConfig(clip=1e-3)), 10)
    (metrics,) = run(session, range(1))
    assert metrics["grad_norm"] > 1
    after = torch.cat([p.grad.flatten() for p in session.model.parameters() if p.grad is not None])
    assert after.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_the_rate_follows_the_schedule() -> None:
    optimizer = OptimizerConfig(lr=1e-3, milestones=(0.5,), decay=0.1)
    history = run(TrainingSession(with_options(optimizer=optimizer, model="conv_ae"), 4), range(4))
    assert [row["learning_rate"] for row in history] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_bf16_is_close_to_fp32_and_keeps_float32_weights() -> None:
    exact, rough = (
        TrainingSession(with_options(precision=precision), 10).train_step(batch_of(CONFIG, 0))
        for precision in ("fp32", "bf16")
    )
    for term in ("l2", "ssim", "focal"):
        assert rough[term] == pytest.approx(exact[term], rel=0.1, abs=0.02)
    session = TrainingSession(with_options(precision="bf16"), 10)
    run(session, range(1))
    assert weights_of(session).dtype == torch.float32


def test_the_foreground_keeps_black_out_of_the_reconstruction_loss_only() -> None:
    session, batch = TrainingSession(CONFIG, 10), batch_of(CONFIG, 0)
    nothing = torch.zeros_like(batch.masks_BHW)
    masked = session.evaluate([replace(batch, foreground_BHW=nothing)])
    plain = session.evaluate([batch])
    assert masked["l2"] == 0
    assert masked["focal"] == plain["focal"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_learns_as_a_cpu_does() -> None:
    here, there = TrainingSession(CONFIG, 10), TrainingSession(CONFIG, 10, "cuda")
    for a, b in zip(run(here, range(3)), run(there, range(3)), strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=0.02)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_frozen_statistics_are_those_that_training_uses(ema: float) -> None:
    config = with_options(optimizer=OptimizerConfig(lr=1e-3, ema=ema, freeze_statistics=0.5))
    session = TrainingSession(config, 4)
    run(session, range(2))
    name = "reconstructive.encoder.0.1.running_mean"
    settled = session.eval_model.get_buffer(name).clone()
    run(session, range(2, 4))
    for model in (session.model, session.eval_model):
        assert torch.allclose(model.get_buffer(name), settled)
    batches = [batch_of(config, 0)]
    assert session.evaluate(batches, batch_statistics=True) == session.evaluate(batches)
    never = TrainingSession(CONFIG, 2)
    run(never, range(2))
    assert never.evaluate(batches, batch_statistics=True) != never.evaluate(batches)
