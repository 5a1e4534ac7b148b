"""The Markdown page with the thesis's two result tables beside ours."""

from collections.abc import Iterator
from typing import Any

THESIS = {
    "bottle/conv_ae": (86.0, 90.42),
    "bottle/patchcore": (97.62, 93.68),
    "bottle/draem": (98.3, 98.26),
    "severstal/conv_ae": (82.5, 87.65),
    "severstal/patchcore": (88.3, 87.6),
    "severstal/draem": (62.1, 56.7),
}
"""Classification and pixel AUROC in percent, from the thesis's tables for MVTec and Severstal."""
TITLES = {"bottle": "MVTec AD, bottle", "severstal": "Severstal, four 400x256 tiles per strip, masks from train.csv"}
NAMES = {"conv_ae": "convolutional autoencoder", "patchcore": "PatchCore", "draem": "DRAEM"}
COLUMNS = (
    ("classification", "classification"),
    ("pixel_auroc", "pixel AUROC"),
    ("image_auroc", "image AUROC"),
    ("pixel_ap", "pixel AP"),
    ("aupro", "AUPRO"),
    ("best_accuracy", "best accuracy"),
    ("classification_held_out", "classification, held-out threshold"),
    ("accuracy_held_out", "accuracy, held-out threshold"),
)
NOTES = """\
Classification is the thesis's figure: the accuracy averaged over normal images and every defect type, at the threshold
that is best on the test images themselves (largest true- minus false-positive rate; the thesis says only that the area
is maximised, and an area has no threshold). That is optimistic. The autoencoder's images are judged by their share of
pixels above the best pixel threshold, as in the thesis, its other image figures by the mean of the difference image.
"Held-out threshold" is set on normal images that were neither trained nor tested on, for the false-alarm rate in
`calibration`; the best accuracy beside it is what a threshold chosen on the answers would give. All figures are in
percent, maps are judged at 256x256; those of a network with a smaller input are enlarged. A tile without a defect pixel
counts as normal, from whatever strip.

The thesis judges its autoencoder by pixel accuracy ("for models other than the autoencoder ... PixelAUROC") and yet
lists it under pixel AUROC: its 90.42 is to be compared with the pixel accuracies below the table as much as with the
AUROC in it.

The thesis remarks that DRAEM took 8 GB of GPU memory in training and 12 GB in inference, at a batch size of 8.
"""


def to_markdown(result: dict[str, Any]) -> str:
    """Format the cells that `steelray.research.thesis.reproduce.reproduce` found as thesis.md."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: dict[str, Any]) -> Iterator[str]:
    label, cells = result["label"], result["cells"]
    yield "# The thesis's tables, reproduced"
    yield ""
    yield f"Recipe: **{label}**"
    yield ""
    for dataset, title in TITLES.items():
        yield f"## {title} ({label})"
        yield ""
        yield f"| method | thesis: classification / pixel AUROC | {' | '.join(name for _, name in COLUMNS)} |"
        yield "|---" * (len(COLUMNS) + 2) + "|"
        for method, name in NAMES.items():
            cell = f"{dataset}/{method}"
            thesis = " / ".join(f"{value:g}" for value in THESIS[cell])
            if cell in cells:
                figures = cells[cell]["figures"]
                ours = " | ".join(f"{100 * figures[key]:.1f}" for key, _ in COLUMNS)
            else:
                ours = "not computed yet" + " |" * (len(COLUMNS) - 1)
            yield f"| {name} | {thesis} | {ours} |"
        yield ""
        yield from _by_type(dataset, cells)
        yield from _cost(dataset, cells, label)
    yield NOTES
    for cell, found in cells.items():
        yield f"![{cell}: predictions per defect type, {label}](thesis/{found['picture']})"
        yield ""


def _by_type(dataset: str, cells: dict[str, Any]) -> Iterator[str]:
    for method, name in NAMES.items():
        figures = cells.get(f"{dataset}/{method}", {}).get("figures", {})
        kinds = {key.removeprefix("accuracy_"): value for key, value in figures.items() if key.startswith("accuracy_")}
        kinds.pop("held_out", None)
        if kinds:
            yield f"* {name}, by type: " + ", ".join(f"{kind} {100 * value:.1f}" for kind, value in kinds.items())
    found = cells.get(f"{dataset}/conv_ae")
    if found is not None:
        figures = {name: f"{100 * value:.1f}" for name, value in found["figures"].items()}
        yield (
            f"* The autoencoder as the thesis judges it (binarised map against truth, pixel by pixel): "
            f"{figures['segmentation_accuracy']} at the balanced threshold, {figures['segmentation_accuracy_tuned']} "
            f"at the best of nine tried; an all-black map gets {figures['no_defect_accuracy']}. Classification at "
            f"the best of the nine: {figures['classification_tuned']}."
        )
    yield ""


def _cost(dataset: str, cells: dict[str, Any], label: str) -> Iterator[str]:
    names = "training | peak memory | training images/s | scoring images/s | fit + held out, test | hardware, date"
    yield f"| cost ({label}) | {names} |"
    yield "|---|---|---|---|---|---|---|"
    for method, name in NAMES.items():
        found = cells.get(f"{dataset}/{method}")
        if found is None:
            continue
        cost, machine = found["cost"], found["hardware"]
        where = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
        yield (
            f"| {name} | {cost['training_s']:.0f} s | {cost['training_peak_bytes'] / 2**30:.2f} GiB "
            f"| {cost['training_images_per_s']:.2f} | {cost['scoring_images_per_s']:.2f} "
            f"| {cost['num_fit']} + {cost['held_out']}, {found['counts']['test']} "
            f"| {where}, {found['computed_at'][:10]} |"
        )
    yield ""
