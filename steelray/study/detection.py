"""Detection on the strips that neither fit nor probe has seen. Single process, no Ray."""

from collections.abc import Sequence

import numpy as np

from steelray.data.datasets import NOMINAL, Sample
from steelray.metrics import image_auroc, pixel_ap, pixel_auroc
from steelray.models.draem import Draem
from steelray.network_config import InputConfig
from steelray.reconstruction_scoring import reconstruction_scorer
from steelray.scoring import Scorer
from steelray.training import TrainingSession

MAP_STRIDE_PX = 4
"""Pixel figures are taken on every fourth pixel of both axes."""
STRIP_PX = (256, 1600)


def detect(session: TrainingSession, samples: Sequence[Sample]) -> dict[str, float]:
    """The figures of a trained DRAEM, on whole strips in one pass each."""
    model = session.eval_model
    assert isinstance(model, Draem)
    whole = InputConfig(STRIP_PX, "crop", session.config.input.brightness_norm)
    return scorer_figures(reconstruction_scorer(model, whole, session.device), samples)


def scorer_figures(scorer: Scorer, samples: Sequence[Sample]) -> dict[str, float]:
    """Pixel and image AUROC and pixel AP of any scorer."""
    labels, scores, maps, masks = [], [], [], []
    step = slice(None, None, MAP_STRIDE_PX)
    for sample in samples:
        image_maps, image_scores = scorer.score([sample.load()])
        height_px, width_px = image_maps[0].shape
        labels.append(sample.defect_type != NOMINAL)
        scores.append(float(image_scores[0]))
        maps.append(image_maps[0][step, step])
        masks.append(sample.load_mask((height_px, width_px))[step, step])
    return {
        "image_auroc": image_auroc(np.array(labels), np.array(scores)),
        "pixel_auroc": pixel_auroc(masks, maps),
        "pixel_ap": pixel_ap(masks, maps),
        "num_test": float(len(samples)),
        "num_anomalous": float(sum(labels)),
    }
