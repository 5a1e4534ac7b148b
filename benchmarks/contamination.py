"""Defects among the nominal images: what a memory bank misses then, with and without `coreset.drop_suspects`.

python -m benchmarks.contamination           writes benchmarks/results/contamination.json and prints a table
python -m benchmarks.contamination --seeds 1 --only bottle

A share of the nominal images is replaced by defective test images. Two groups of defective images are judged against
the good test images: those inside the bank, scored as if they came from the archive, and the others. The threshold is
set on the nominal images as they are, each compared with the others (leave-one-out), for a false-alarm rate of 10 %.
The datasets lie in STEELRAY_DATA (default: shared/data beside the repository).
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import ROOT, environment, load_average, rounded
from benchmarks.table import contamination_rows
from steelray.config import DatasetConfig
from steelray.evaluation.datasets import load_dataset
from steelray.evaluation.metrics import image_auroc
from steelray.job import num_cores
from steelray.models.calibration import conformal_threshold
from steelray.patchcore.config import CoresetConfig, EmbedderConfig, ScoringConfig
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.fit import Selection, bank_scorer, coreset_limits, new_bank, select_patches
from steelray.patchcore.portable_embedder import Embedder, EmbedFunction

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2)
MAX_FIT = 50
CORESET = CoresetConfig(ratio=1.0, max_centers=2000)
FALSE_ALARM_RATE = 0.1
RESULT = ROOT / "benchmarks" / "results" / "contamination.json"
DATASETS: dict[str, tuple[DatasetConfig, tuple[int, int] | None]] = {
    "bottle": (DatasetConfig("mvtec", "mvtec/bottle"), (256, 256)),
    "kolektor": (DatasetConfig("mvtec", "kolektor"), (630, 250)),
    "severstal": (DatasetConfig("severstal", "severstal", num_fit=20), None),
}
Images = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Data:
    """The images of a dataset: nominal ones to fit on, good and defective ones to test on."""

    fit: Images
    good: Images
    defective: Images


def load(name: str) -> tuple[Data, Embedder]:
    """Read a dataset and return it with an embedder that embeds every image once."""
    config, size_px = DATASETS[name]
    folder = Path(os.environ.get("STEELRAY_DATA") or ROOT.parent / "shared" / "data")
    dataset = load_dataset(replace(config, root=str(folder / config.root)))
    embedder = load_embedder(EmbedderConfig(resize_px=size_px), backend="openvino", num_threads=num_cores())
    data = Data(
        [embedder.resized(sample.load()) for sample in dataset.fit[:MAX_FIT]],
        [embedder.resized(sample.load()) for sample in dataset.test if not sample.is_anomalous],
        [embedder.resized(sample.load()) for sample in dataset.test if sample.is_anomalous],
    )
    return data, replace(embedder, embed=remembering(embedder.embed))


def remembering(embed: EmbedFunction) -> EmbedFunction:
    """Return the function with its answers kept."""
    known: dict[bytes, NDArray[np.float32]] = {}

    def call(images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = []
        for image_HWC in images_BHWC:
            key = image_HWC.tobytes()
            if key not in known:
                known[key] = embed(image_HWC[None])[0]
            answers.append(known[key])
        return np.stack(answers)

    return call


def contaminated(data: Data, share: float, seed: int) -> tuple[Images, list[int]]:
    """Replace nominal images by defective ones; return the images and which defective ones are among them."""
    rng = np.random.default_rng(seed)
    count = max(1, round(share * len(data.fit))) if share else 0
    inside = rng.permutation(len(data.defective))[:count].tolist()
    images = list(data.fit)
    for place, number in zip(rng.permutation(len(images))[:count].tolist(), inside, strict=True):
        images[place] = data.defective[number]
    return images, inside


def figures(data: Data, embedder: Embedder, images: Images, inside: list[int], drop: bool) -> dict[str, float]:
    """Fit on the images and return the figures of one row."""
    keys = [f"{place:03d}" for place in range(len(images))]
    selection = select_patches(keys, images, embedder, coreset_limits(CORESET), drop_suspects=drop)
    judge = _scores(selection, embedder)
    good, defective, nominal = judge(data.good), judge(data.defective), judge(images, keys)
    threshold = conformal_threshold(nominal, FALSE_ALARM_RATE).value
    is_inside = np.isin(np.arange(len(defective)), inside)
    found = {"dropped": selection.num_dropped, "false_alarm_rate": float((good > threshold).mean())}
    for name, scores in (("inside", defective[is_inside]), ("other", defective[~is_inside])):
        if len(scores):
            labels = np.repeat([True, False], [len(scores), len(good)])
            found[f"auroc_{name}"] = image_auroc(labels, np.concatenate([scores, good]))
            found[f"recall_{name}"] = float((scores > threshold).mean())
    return found


def _scores(selection: Selection, embedder: Embedder) -> Callable[..., NDArray[np.float32]]:
    bank = new_bank(selection, embedder.config, embedder.weights_digest, ScoringConfig())
    scorer = bank_scorer(bank, embedder, num_cores())

    def scores(images: Images, keys: Sequence[str] | None = None) -> NDArray[np.float32]:
        evidence = [
            scorer.measure([image], None if keys is None else [keys[place]])[0] for place, image in enumerate(images)
        ]
        return np.array([scorer.anomaly_score(one) for one in evidence], np.float32)

    return scores


def measure(name: str, num_seeds: int) -> list[dict[str, Any]]:
    """Return the rows of a dataset: means over seeds, by share and by whether suspects are dropped."""
    data, embedder = load(name)
    rows = []
    for share in SHARES:
        for drop in (False, True):
            found = []
            for seed in range(num_seeds if share else 1):
                images, inside = contaminated(data, share, seed)
                found.append(figures(data, embedder, images, inside, drop))
            means = {figure: fmean(one[figure] for one in found) for figure in found[0]}
            rows.append({"dataset": name, "share": share, "num_fit": len(data.fit), "drop_suspects": drop, **means})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="draws of the defective images")
    parser.add_argument("--only", nargs="*", default=list(DATASETS), help="datasets; the result is then not kept")
    options = parser.parse_args()
    load = load_average()
    rows = [row for name in options.only for row in measure(name, options.seeds)]
    if options.only == list(DATASETS):
        record = {
            "benchmark": "contamination",
            "case": "images",
            **environment(),
            "load_average_before": load,
            "settings": {"seeds": options.seeds, "max_centers": CORESET.max_centers, "asked_rate": FALSE_ALARM_RATE},
            "result": rounded(rows),
        }
        RESULT.write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(contamination_rows(rows)))


if __name__ == "__main__":
    main()
