"""The frozen probe: the same held-out nominal tiles with the same synthetic anomalies for every trial of a study.

Losses of trials that differ in weights, targets or synthesis are not comparable; figures on the probe are. Shapes: N
tiles, B of them in a pass, C = 3 channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from steelray.config import ConfigError
from steelray.reconstruction.batch import Batch, collate
from steelray.reconstruction.config import InputConfig, SynthesisConfig, TrainConfig
from steelray.reconstruction.draem import Draem
from steelray.reconstruction.input import BLACK_LEVEL, black_fraction
from steelray.reconstruction.losses import focal_loss, ssim_map
from steelray.reconstruction.perlin import gaussian_blur
from steelray.reconstruction.sources import AnomalySource
from steelray.reconstruction.synthesis import SampleMaker

NUM_TILES = 64
PROBE_SEED = 20_211
FLOOR_SIGMA_PX = 2.0
SMOOTHED_PX = (0.0, 1.0, 2.0, 4.0)
MAX_BLACK_FRACTION = 0.9
BATCH = 8
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """Tiles with the reference synthesis, and their figures that need no network.

    Attributes:
        clean_NCHW: tiles without anomalies, float32 in [0, 1]. images_NCHW: with them. masks_NHW: anomalous pixels.
        counted_NHW: unmasked foreground, on which reconstructions are judged. black_NHW: grey level below 8 of 255.
        floors_N: 1 - SSIM of each tile with itself blurred by sigma 2, on the counted pixels.
    """

    clean_NCHW: torch.Tensor
    images_NCHW: torch.Tensor
    masks_NHW: torch.Tensor
    counted_NHW: torch.Tensor
    black_NHW: torch.Tensor
    floors_N: torch.Tensor
    floor_loss: float
    constant_focal: float

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def batches(self) -> list[Batch]:
        """Return the probe as training batches."""
        return [
            Batch(tuple(map(str, range(i, i + BATCH))), self.images_NCHW[i : i + BATCH],
                  self.clean_NCHW[i : i + BATCH], self.masks_NHW[i : i + BATCH])
            for i in range(0, len(self), BATCH)
        ]  # fmt: skip


def make_probe(
    images: Sequence[Pixels], config: TrainConfig, textures: AnomalySource | None, num_tiles: int = NUM_TILES
) -> Probe:
    """Cut the probe's tiles out of held-out nominal images and put the paper's anomalies into half of them.

    Args:
        images: pixels_HWC that no trial trains on.
        config: the study's baseline; its input size, noise cells and brightness are used, its seed is not.

    Raises:
        ConfigError: no images, or too few tiles that are not black.
    """
    if not images:
        raise ConfigError("no held-out nominal images for the probe: the dataset has no nominal tiles to spare")
    reference = replace(
        config,
        seed=PROBE_SEED,
        synthesis=SynthesisConfig(perlin_exponents=config.synthesis.perlin_exponents, rotate="none"),
        input=InputConfig(config.input.size_px, "crop"),
        data=replace(config.data, max_black_fraction=MAX_BLACK_FRACTION),
    )
    maker = SampleMaker(reference, textures=textures)
    samples = []
    for number in range(20 * num_tiles):
        sample = maker.sample(images[number % len(images)], str(number), epoch=0, index=number)
        if black_fraction(_levels(sample.target_CHW)) <= MAX_BLACK_FRACTION:
            samples.append(sample)
        if len(samples) == num_tiles:
            break
    if len(samples) < num_tiles:
        raise ConfigError(f"only {len(samples)} of {num_tiles} nominal tiles for the probe are not black: add images")
    batch = collate(samples)
    clean_NCHW = batch.targets_BCHW
    black_NHW = clean_NCHW.mean(dim=1) < BLACK_LEVEL / 255
    counted_NHW = ~black_NHW & ~batch.masks_BHW
    blurred_NCHW = blur(clean_NCHW, FLOOR_SIGMA_PX)
    floors_N = masked_means(1 - ssim_map(blurred_NCHW, clean_NCHW).mean(dim=1), counted_NHW)
    squares_N = masked_means((blurred_NCHW - clean_NCHW).square().mean(dim=1), counted_NHW)
    fraction = float(batch.masks_BHW.float().mean())
    return Probe(
        clean_NCHW, batch.images_BCHW, batch.masks_BHW, counted_NHW, black_NHW, floors_N,
        float(torch.nanmean(floors_N + squares_N)), best_constant_focal(fraction),
    )  # fmt: skip


def measure(model: Draem, probe: Probe, device: torch.device | None = None) -> tuple[dict[str, float], Floats]:
    """Judge a network on the probe by reference losses, in evaluation mode, which it is left in.

    Returns:
        The figures, and 1 - SSIM of every tile on its counted pixels.
    """
    model.eval()
    reconstructions_NCHW, logits_N2HW = _outputs(model, probe.images_NCHW, device)
    losses_NHW = 1 - ssim_map(reconstructions_NCHW, probe.clean_NCHW).mean(dim=1)
    squares_NHW = (reconstructions_NCHW - probe.clean_NCHW).square().mean(dim=1)
    tile_losses_N = masked_means(losses_NHW, probe.counted_NHW)
    tile_squares_N = masked_means(squares_NHW, probe.counted_NHW)
    probabilities_NHW = logits_N2HW.softmax(dim=1)[:, 1]
    false_NHW = (probabilities_NHW > 0.5) & ~probe.masks_NHW
    focal = float(focal_loss(logits_N2HW, probe.masks_NHW))
    black_loss = float((losses_NHW * probe.black_NHW).sum() / losses_NHW.sum().clamp(min=1e-9))
    figures = {
        "reconstruction_loss": float(torch.nanmean(tile_losses_N + tile_squares_N)),
        "l2": float(torch.nanmean(tile_squares_N)),
        "ssim_loss_unmasked": float(torch.nanmean(tile_losses_N)),
        "ssim_loss_masked": float(losses_NHW[probe.masks_NHW].mean()),
        "ssim_loss_black": float(losses_NHW[probe.black_NHW].mean()),
        "black_share_of_ssim_loss": black_loss,
        "black_share_of_false_positives": float((false_NHW & probe.black_NHW).sum() / false_NHW.sum().clamp(min=1)),
        "focal": focal,
        "focal_over_constant": focal / probe.constant_focal,
        "pixel_ap": average_precision(probe.masks_NHW, probabilities_NHW),
    }
    return figures, tile_losses_N.numpy()


def untrained_aps(probe: Probe) -> dict[str, float]:
    """Return pixel APs on the probe that need no training, as a yardstick for C2.

    Returns:
        `smoothed_S`: AP of the difference to the clean tile smoothed by S pixels, a reconstruction that lacks only the
        grain; `chroma`: AP of colour alone, which the paper's sources have and steel lacks.
    """
    found = {}
    for sigma_px in SMOOTHED_PX:
        smooth_NCHW = blur(probe.clean_NCHW, sigma_px) if sigma_px else probe.clean_NCHW
        difference_NHW = (probe.images_NCHW - smooth_NCHW).abs().mean(dim=1)
        found[f"smoothed_{sigma_px:g}"] = average_precision(probe.masks_NHW, difference_NHW)
    chroma_N1HW = (probe.images_NCHW.amax(dim=1) - probe.images_NCHW.amin(dim=1))[:, None]
    found["chroma"] = average_precision(probe.masks_NHW, blur(chroma_N1HW, 1.0)[:, 0])
    return found


def desaturated_ap(model: Draem, probe: Probe, device: torch.device | None = None) -> float:
    """Return the pixel AP on the probe without its colours; the AP lost rested on chroma (H5)."""
    model.eval()
    grey_NCHW = probe.images_NCHW.mean(dim=1, keepdim=True).expand_as(probe.images_NCHW).contiguous()
    _, logits_N2HW = _outputs(model, grey_NCHW, device)
    return average_precision(probe.masks_NHW, logits_N2HW.softmax(dim=1)[:, 1])


def turned_loss(model: Draem, probe: Probe, device: torch.device | None = None) -> float:
    """Return the SSIM loss of the clean tiles turned by 90 degrees, over that of the tiles unturned (H6)."""
    model.eval()
    losses = []
    for images_NCHW in (probe.clean_NCHW, probe.clean_NCHW.rot90(1, (2, 3)).contiguous()):
        reconstructions_NCHW, _ = _outputs(model, images_NCHW, device)
        losses.append(float(1 - ssim_map(reconstructions_NCHW, images_NCHW).mean()))
    return losses[1] / losses[0] if losses[0] else float("nan")


def ambiguous_share(images: Sequence[Pixels], config: TrainConfig, textures: AnomalySource | None) -> dict[str, float]:
    """Return the shares of pixels labelled anomalous that did not change, or by less than the tile's grain (H7)."""
    unblurred = replace(config, synthesis=replace(config.synthesis, target_blur_px=0.0))
    maker = SampleMaker(unblurred, textures=textures, others=images)
    labelled = unchanged = hidden = 0
    for number in range(NUM_TILES):
        sample = maker.sample(images[number % len(images)], "", epoch=1_000_000, index=number)
        if not sample.mask_HW.any():
            continue
        change_N = np.abs(sample.image_CHW - sample.target_CHW).max(axis=0)[sample.mask_HW]
        grey_HW = sample.target_CHW.mean(axis=0)
        grain_sd = float((grey_HW - gaussian_blur(grey_HW, FLOOR_SIGMA_PX)).std())
        labelled += len(change_N)
        unchanged += int((change_N < 0.5 / 255).sum())
        hidden += int((change_N < grain_sd).sum())
    return {
        "share_unchanged": unchanged / labelled if labelled else 0.0,
        "share_below_grain": hidden / labelled if labelled else 0.0,
    }


def average_precision(labels: torch.Tensor, scores: torch.Tensor) -> float:
    """Return the average precision over all pixels; NaN without a positive, or where a score is not finite."""
    labels_N, scores_N = labels.flatten().numpy(), scores.flatten().numpy()
    if not labels_N.any() or not np.isfinite(scores_N).all():
        return float("nan")
    return float(average_precision_score(labels_N, scores_N))


def blur(images_NCHW: torch.Tensor, sigma_px: float) -> torch.Tensor:
    """Smooth every image by a Gaussian."""
    smooth = [gaussian_blur(image.transpose(1, 2, 0), sigma_px).transpose(2, 0, 1) for image in images_NCHW.numpy()]
    return torch.from_numpy(np.stack(smooth))


def masked_means(values_NHW: torch.Tensor, masks_NHW: torch.Tensor) -> torch.Tensor:
    """Return means_N, the mean of each image's pixels under its mask; NaN where it is empty."""
    return (values_NHW * masks_NHW).sum(dim=(1, 2)) / masks_NHW.sum(dim=(1, 2))


def _outputs(model: Draem, images_NCHW: torch.Tensor, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
    reconstructions, logits = [], []
    with torch.inference_mode():
        for images_BCHW in torch.split(images_NCHW, BATCH):
            inputs_BCHW = images_BCHW.to(device, memory_format=torch.channels_last)
            reconstructions_BCHW, logits_B2HW = model(inputs_BCHW)
            reconstructions.append(reconstructions_BCHW.float().cpu())
            logits.append(logits_B2HW.float().cpu())
    return torch.cat(reconstructions), torch.cat(logits)


def _levels(image_CHW: Floats) -> Pixels:
    return np.asarray(np.rint(image_CHW * 255), dtype=np.uint8).transpose(1, 2, 0)


def best_constant_focal(anomalous_fraction: float, gamma: float = 2.0) -> float:
    """Return the least focal loss of a segmentation that gives every pixel the same probability q.

    A segmentation has learnt something only below it: min over q of π (1-q)^γ (-log q) + (1-π) q^γ (-log(1-q)).

    Args:
        anomalous_fraction: π, the share of anomalous pixels, in [0, 1].
    """
    if not 0 <= anomalous_fraction <= 1:
        raise ValueError(f"anomalous_fraction must lie in [0, 1], not {anomalous_fraction}")
    low, high = -40.0, 40.0
    for _ in range(6):  # a grid over logit(q), refined around its best point
        logits = np.linspace(low, high, 401)
        log_q, log_not_q = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
        losses = -anomalous_fraction * np.exp(gamma * log_not_q) * log_q
        losses -= (1 - anomalous_fraction) * np.exp(gamma * log_q) * log_not_q
        best = int(np.argmin(losses))
        low, high = logits[max(best - 1, 0)], logits[min(best + 1, 400)]
    return float(losses[best])
