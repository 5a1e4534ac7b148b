"""Picture of a method's predictions for one image per defect type, as in the thesis's figures 11 to 15."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

MAX_COLUMNS = 8
COLORS = 128
"""Size of the picture's palette; it only illustrates."""


@dataclass(frozen=True)
class Example:
    """One image with its mask and a method's prediction, all of one height and width."""

    defect_type: str
    score: float
    pixels_HWC: NDArray[np.uint8]
    mask_HW: NDArray[np.bool_]
    map_HW: NDArray[np.float32]


def predictions_png(examples: Sequence[Example], pixel_threshold: float, title: str) -> bytes:
    """Draw a column per example: the image, the truth, the anomaly map, and the map above the threshold; PNG bytes."""
    examples = examples[:MAX_COLUMNS]
    figure = Figure(figsize=(1.5 * len(examples) + 0.6, 6.6), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(4, len(examples), squeeze=False)
    high = max(float(example.map_HW.max()) for example in examples)
    low = min(float(example.map_HW.min()) for example in examples)
    for column, example in enumerate(examples):
        pixels_HWC = np.broadcast_to(example.pixels_HWC, (*example.pixels_HWC.shape[:2], 3))
        axes[0, column].imshow(pixels_HWC)
        axes[1, column].imshow(example.mask_HW, cmap="gray", vmin=0, vmax=1)
        axes[2, column].imshow(example.map_HW, cmap="inferno", vmin=low, vmax=high)
        axes[3, column].imshow(example.map_HW > pixel_threshold, cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(f"{example.defect_type.replace('_', ' ')}\nscore {example.score:.3g}", fontsize=8)
    for row, name in enumerate(("image", "truth", "anomaly map", "above threshold")):
        axes[row, 0].set_ylabel(name, fontsize=8)
    for one in axes.ravel():
        one.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=8)
    body = io.BytesIO()
    figure.savefig(body, format="png")
    smaller = io.BytesIO()
    Image.open(body).convert("RGB").quantize(COLORS).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()
