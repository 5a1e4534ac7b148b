"""Training steps and evaluation of DRAEM and the convolutional autoencoder in plain PyTorch.

Ray, the source of images and the place of checkpoints are not handled here. Shapes: B images, C = 3 channels,
H height, W width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steelray.config import ConfigError
from steelray.reconstruction.batch import Batch
from steelray.reconstruction.build import build_model
from steelray.reconstruction.config import LossConfig, TrainConfig
from steelray.reconstruction.draem import Draem
from steelray.reconstruction.losses import focal_loss, l2_loss, ssim_loss

Tensors = dict[str, torch.Tensor]


class NonFiniteLoss(RuntimeError):
    """Raised if a loss term or the gradient is not finite; the weights are unchanged by the step.

    Attributes:
        step: the failed step, counted from 0.
        term: the first term that is not finite: `l2`, `ssim`, `focal`, `total` or `grad_norm`.
        keys: keys of the batch's images.
    """

    def __init__(self, step: int, term: str, keys: tuple[str, ...]) -> None:
        super().__init__(step, term, keys)
        self.step, self.term, self.keys = step, term, keys

    def __str__(self) -> str:
        return f"step {self.step}: {self.term} is not finite; images of the batch: {', '.join(self.keys)}"


def loss_terms(outputs: Any, batch: Batch, gamma: float) -> Tensors:
    """Compute the unweighted loss terms of a network's outputs, each a differentiable scalar.

    Args:
        outputs: `Draem`'s pair of reconstructions_BCHW and logits_B2HW, or `ConvAutoencoder`'s reconstructions_BCHW.
    """
    counted_BHW = batch.foreground_BHW
    if isinstance(outputs, torch.Tensor):
        return {"l2": l2_loss(outputs, batch.targets_BCHW, counted_BHW)}
    reconstructions_BCHW, logits_B2HW = outputs
    return {
        "l2": l2_loss(reconstructions_BCHW, batch.targets_BCHW, counted_BHW),
        "ssim": ssim_loss(reconstructions_BCHW, batch.targets_BCHW, counted_BHW),
        "focal": focal_loss(logits_B2HW, batch.masks_BHW, gamma),
    }


def total_loss(terms: Tensors, config: LossConfig) -> torch.Tensor:
    """Return the weighted sum of the given terms."""
    weights = {"l2": 1.0, "ssim": config.w_ssim, "focal": config.w_focal}
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


class TrainingSession:
    """A network, its optimiser and their progress.

    Args:
        num_steps: length of the whole run (`TrainConfig.total_steps`), to which the schedule's shares refer.
        device: device to train on. Networks are kept channels-last.
        wrap: wraps the network, already on its device, in a module that averages gradients over processes, such as
            DistributedDataParallel; each process then steps on its share of the batch. Batch normalisation stays per
            process unless `wrap` converts it.

    Attributes:
        model: the network, unwrapped.
        step: number of completed steps.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_steps: int,
        device: torch.device | str = "cpu",
        *,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.config = config
        self.num_steps = num_steps
        self.device = torch.device(device)
        self.step = 0
        network: nn.Module = build_model(config.network, config.seed)
        self.model = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._wrapped = wrap(self.model) if wrap else self.model
        self._names = [name for name, _ in self.model.named_parameters()]
        self._parameters = list(self.model.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, lr=config.optimizer.lr, fused=self.device.type == "cuda")
        share = config.optimizer.freeze_statistics
        self._first_frozen = math.ceil(share * num_steps) if share < 1 else math.inf
        self._average: AveragedModel | None = None
        if config.optimizer.ema:
            decay = get_ema_multi_avg_fn(config.optimizer.ema)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)

    @property
    def eval_model(self) -> nn.Module:
        """Network that is evaluated and stored: the averaged one if `optimizer.ema` is on."""
        return self._average.module if self._average is not None else self.model

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Take one step on this process's share of the batch.

        Returns:
            Every loss term (unweighted), `total` (weighted), `grad_norm` of the network and of each sub-network before
            clipping, and `learning_rate`.

        Raises:
            NonFiniteLoss: a term or the gradient is not finite.
        """
        config = self.config
        rate = config.optimizer.rate_at(self.step, self.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self.step == self._first_frozen:
            self._settle_statistics()
        self._training_mode(self._wrapped)
        self._optimizer.zero_grad(set_to_none=True)
        terms = self._terms(self._wrapped, batch.to(self.device))
        total = total_loss(terms, config.loss)
        total.backward()  # type: ignore[no-untyped-call]
        norms = self._gradient_norms()
        if config.optimizer.clip > 0:
            nn.utils.clip_grads_with_norm_(self._parameters, config.optimizer.clip, norms["grad_norm"])
        metrics = _to_floats({**terms, "total": total, **norms})  # the only synchronisation with the device
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise NonFiniteLoss(self.step, broken[0], batch.keys)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        self.step += 1
        return {**metrics, "learning_rate": rate}

    def evaluate(self, batches: Iterable[Batch], *, batch_statistics: bool = False) -> dict[str, float]:
        """Return the mean loss terms and `total` over all images of the batches, without changing the session.

        Args:
            batch_statistics: normalise as a training step does: by each batch's statistics instead of the running ones,
                unless those are frozen already.

        Raises:
            ValueError: no batches.
        """
        model = self.eval_model
        sums: dict[str, float] = {}
        count = 0
        with buffers_kept(model), torch.inference_mode():
            model.eval()
            if batch_statistics:
                self._training_mode(model)
            for batch in batches:
                terms = self._terms(model, batch.to(self.device))
                values = _to_floats({**terms, "total": total_loss(terms, self.config.loss)})
                size = len(batch.keys)
                sums = {name: sums.get(name, 0.0) + size * value for name, value in values.items()}
                count += size
        if count == 0:
            raise ValueError("an evaluation needs at least one batch")
        return {name: value / count for name, value in sums.items()}

    def gradient_report(self, batch: Batch) -> dict[str, float]:
        """Compare the gradients of the weighted loss terms in the reconstructive network, without changing the session.

        Returns:
            `norm_TERM` of each term's gradient and `cosine_TERM_TERM` of each pair (0 if either gradient is zero).
        """
        model = self.model
        network = model.reconstructive if isinstance(model, Draem) else model
        parameters = list(network.parameters())
        gradients: Tensors = {}
        with buffers_kept(model):
            self._training_mode(model)
            terms = self._terms(model, batch.to(self.device))
            for name, value in terms.items():
                weighted = total_loss({name: value}, self.config.loss)
                parts = torch.autograd.grad(weighted, parameters, retain_graph=True, materialize_grads=True)
                gradients[name] = torch.cat([part.flatten() for part in parts])
        report = {f"norm_{name}": gradient.norm() for name, gradient in gradients.items()}
        for (first, a), (second, b) in combinations(gradients.items(), 2):
            report[f"cosine_{first}_{second}"] = nn.functional.cosine_similarity(a, b, dim=0)
        return _to_floats(report)

    def state_dict(self) -> dict[str, Tensors]:
        """Return the state from which a run continues exactly, as two flat dicts of CPU tensors.

        `weights`: those of `eval_model`, enough for scoring. `resume`: the optimiser's moments, the step and, if
        `weights` are averaged, the raw weights.
        """
        resume: Tensors = {"step": torch.tensor(self.step)}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            for moment, value in self._optimizer.state.get(parameter, {}).items():
                resume[f"optimizer.{moment}.{name}"] = value
        if self._average is not None:
            resume["num_averaged"] = self._average.n_averaged
            resume.update({f"model.{name}": value for name, value in self.model.state_dict().items()})
        return {"weights": _copied(self.eval_model.state_dict()), "resume": _copied(resume)}

    def load_state_dict(self, state: dict[str, Tensors]) -> None:
        """Continue from a `state_dict`; the run then equals one that was never interrupted.

        Raises:
            ConfigError: the state belongs to another network or was made with another ema setting.
        """
        weights, resume = state["weights"], state["resume"]
        with_average = "num_averaged" in resume
        if with_average != (self._average is not None):
            raise ConfigError(
                f"the checkpoint was made {'with' if with_average else 'without'} optimizer.ema: use the same setting"
            )
        raw = {k.removeprefix("model."): v for k, v in resume.items() if k.startswith("model.")}
        try:
            self.eval_model.load_state_dict(weights)
            if self._average is not None:
                self.model.load_state_dict(raw)
                self._average.n_averaged.copy_(resume["num_averaged"])
            self._load_moments(resume)
            self.step = int(resume["step"])
        except (RuntimeError, KeyError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise ConfigError(f"the checkpoint does not fit this {self.config.model} network: {line}") from None

    def _load_moments(self, resume: Tensors) -> None:
        state: dict[int, Tensors] = {}
        for name, value in resume.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                moment, _, parameter_name = rest.partition(".")
                state.setdefault(self._names.index(parameter_name), {})[moment] = value
        for number, moments in state.items():
            parameter = self._parameters[number]
            for moment, value in moments.items():
                if value.shape == parameter.shape and value.dim():  # in the memory layout of its parameter
                    moments[moment] = torch.empty_like(parameter, device="cpu").copy_(value).detach()
                elif value.dim():
                    raise KeyError(f"moment of {self._names[number]} has shape {tuple(value.shape)}")
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})

    def _terms(self, model: nn.Module, batch: Batch) -> Tensors:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            options = {"detach_reconstruction": self.config.loss.detach} if self.config.model == "draem" else {}
            outputs = model(batch.images_BCHW, **options)
        return loss_terms(outputs, batch, self.config.loss.gamma)

    def _training_mode(self, model: nn.Module) -> None:
        model.train()
        if self.step >= self._first_frozen:
            for layer in batch_norms(model):
                layer.eval()

    def _settle_statistics(self) -> None:
        if self._average is not None:
            for layer, averaged in zip(batch_norms(self.model), batch_norms(self._average.module), strict=True):
                layer.load_state_dict({**layer.state_dict(), **dict(averaged.named_buffers())})

    def _gradient_norms(self) -> Tensors:
        norms = {"grad_norm": _norm(self._parameters)}
        if isinstance(self.model, Draem):
            norms["grad_norm_reconstructive"] = _norm(self.model.reconstructive.parameters())
            norms["grad_norm_discriminative"] = _norm(self.model.discriminative.parameters())
        return norms


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """List the batch normalisation layers of a model."""
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm)]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore running statistics and the training mode when the context ends."""
    was_training = model.training
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
        model.train(was_training)


def _norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _to_floats(values: Tensors) -> dict[str, float]:
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def _copied(tensors: Tensors) -> Tensors:
    # contiguous, because a file stores no memory layout; a copy, because training continues
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
