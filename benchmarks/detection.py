"""Detection on labelled images: our recipes beside anomalib's PatchCore and PaDiM, with the same weights and images.

.venv/bin/python benchmarks/detection.py [--data FOLDER] [--only kolektor] [--methods surface]

Stores one row per data set and method in benchmarks/results/detection.json, skips the rows that are there, and writes
the table of docs/detection.md. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))  # also when run as a file

from benchmarks.measuring import ROOT, SCRATCH, ask_reference, environment, load_average, rounded
from benchmarks.table import BEGIN, END
from steelray.config import DatasetConfig
from steelray.demo.synthetic import DEFECTS, encode, make_strip
from steelray.evaluation.config import EvaluateConfig
from steelray.evaluation.datasets import Dataset, load_dataset
from steelray.evaluation.evaluate import Fitting, Predictions, figures, predict
from steelray.job import num_cores
from steelray.patchcore.config import DEFAULT_RECIPE, EmbedderConfig
from steelray.patchcore.recipe import with_recipe
from steelray.reconstruction.scorer import resize_map

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "detection.json", ROOT / "docs" / "detection.md"
DATA = os.environ.get("STEELRAY_DATA", str(ROOT.parent / "shared" / "data"))
RECIPES = ("surface", "strip", "object", "many_finishes")
SAME_SIZE = f"{DEFAULT_RECIPE}, at anomalib's size"
PATCHCORE, PADIM = "anomalib PatchCore", "anomalib PaDiM"
CORESET_RATIO = 0.1
"""anomalib's default."""
NUM_RESAMPLES, INTERVAL = 1000, (2.5, 97.5)
STRIP_PX, NUM_FIT, NUM_TEST = (256, 800), 60, 40
"""Generated strips: height and width, strips to fit, and strips to test of each kind, nominal and defective."""


@dataclass(frozen=True)
class Case:
    """A data set and how it is measured.

    Attributes:
        map_px: height and width of all anomaly maps when pixels are judged.
        shared_px: smaller size of anomalib's images, where it takes too long or too much memory at native size.
        native_px: height and width of the images where they are not reduced.
    """

    name: str
    data: DatasetConfig
    map_px: tuple[int, int]
    native_px: tuple[int, int]
    shared_px: tuple[int, int] | None = None
    seeds: tuple[int, ...] = (0,)

    @property
    def methods(self) -> list[str]:
        """Return the names of the methods to measure, ours first."""
        return [*RECIPES, *([SAME_SIZE] if self.shared_px else []), PATCHCORE, PADIM]


def cases(data: Path) -> list[Case]:
    """Return the data sets that exist in a folder, and generated strips."""
    severstal = DatasetConfig("severstal", str(data / "severstal"), num_fit=20)
    found = [
        Case("kolektor", DatasetConfig("mvtec", str(data / "kolektor")), (630, 250), (1260, 500), (630, 250)),
        Case("bottle", DatasetConfig("mvtec", str(data / "mvtec" / "bottle")), (450, 450), (900, 900), (450, 450)),
        Case("severstal", severstal, (128, 800), (256, 1600), seeds=(0, 1, 2)),
    ]
    for case in found:
        if not Path(case.data.root).is_dir():
            print(f"{case.data.root}: no such folder, {case.name} is left out", file=sys.stderr)
    height_px, width_px = STRIP_PX
    generated = Case("generated", generated_strips(SCRATCH / "detection"), (height_px // 2, width_px // 2), STRIP_PX)
    return [*(case for case in found if Path(case.data.root).is_dir()), generated]


def generated_strips(
    folder: Path, num_fit: int = NUM_FIT, num_test: int = NUM_TEST, size_px: tuple[int, int] = STRIP_PX
) -> DatasetConfig:
    """Write generated strips in MVTec's layout, unless they are there, and return their configuration."""
    ready = folder / "ready"
    wanted = [("train/good", None, index) for index in range(num_fit)]
    wanted += [("test/good", None, num_fit + index) for index in range(num_test)]
    wanted += [(f"test/{DEFECTS[index % 4]}", DEFECTS[index % 4], index) for index in range(num_test)]
    for place, defect, index in wanted if not ready.exists() else []:
        strip = make_strip(3, index, defect=defect, size_px=size_px)
        path = folder / place / f"{index:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(strip.jpeg())
        if defect is not None:
            mask = folder / "ground_truth" / defect / f"{index:03d}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.write_bytes(encode(strip.mask_HW.astype(np.uint8) * 255, "PNG"))
    ready.touch()
    return DatasetConfig("mvtec", str(folder))


def settings(case: Case, method: str) -> EvaluateConfig:
    """Return the settings of one of our methods."""
    recipe = DEFAULT_RECIPE if method == SAME_SIZE else method
    config = with_recipe(EvaluateConfig(case.data), recipe)
    if method != SAME_SIZE:
        return config
    return replace(config, embedder=replace(config.embedder, resize_px=case.shared_px, scale=1.0))


def measure(case: Case, method: str) -> dict[str, Any]:
    """Fit and test a method on every split of a data set: the row that is stored."""
    load, start_s, splits = load_average(), time.perf_counter(), []
    ours = method not in (PATCHCORE, PADIM)
    for seed in case.seeds:
        dataset = load_dataset(replace(case.data, seed=seed))
        if not ours:
            splits.append(measure_reference(case, dataset, method))
            continue
        begin_s = time.perf_counter()
        scorer, threshold, facts = Fitting(settings(case, method), num_cores())(dataset)
        fit_s = time.perf_counter() - begin_s
        predictions = predict(scorer, dataset.test, case.map_px)
        score_s = time.perf_counter() - begin_s - fit_s
        kept = {name: facts[name] for name in ("bank_vectors", "power", "can_decide", "detection_limits")}
        splits.append(split_row(predictions, threshold) | kept | {"fit_s": fit_s, "score_s": score_s})
    shared = (not ours or method == SAME_SIZE) and case.shared_px
    return {
        "data": case.name, "method": method, "num_fit": len(dataset.fit), "size_px": shared or case.native_px,
        "seeds": case.seeds, "splits": splits, "took_s": time.perf_counter() - start_s,
        "load_average_before": load, **environment(),
    }  # fmt: skip


def split_row(predictions: Predictions, threshold: float | None) -> dict[str, Any]:
    """Return scores, labels and figures of a split's test images."""
    return {
        "labels": [int(kind != "nominal") for kind in predictions.defect_types],
        "scores": [float(score) for score in predictions.scores_N],
        "threshold": threshold,
        "figures": figures(predictions, quarters=False, threshold=threshold),
    }


def measure_reference(case: Case, dataset: Dataset, method: str) -> dict[str, Any]:
    """Fit and test a method of anomalib.

    The vectors of PatchCore's bank are chosen by our exact greedy selection, which takes minutes where anomalib's takes
    hours; their number, and all else, is anomalib's.
    """
    from steelray.patchcore.coreset import greedy_coreset

    weights, images, found = (SCRATCH / name for name in ("detection.safetensors", "images.json", "found.npz"))
    export_weights(weights)
    paths = {"fit": [str(one.path) for one in dataset.fit], "test": [str(one.path) for one in dataset.test]}
    images.write_text(json.dumps({**paths, "size_px": case.shared_px or case.native_px}))
    row: dict[str, Any] = {}
    if method == PATCHCORE:
        import torch

        points, vectors, begin_s = SCRATCH / "points.npy", SCRATCH / "bank.npy", time.perf_counter()
        ask_reference("embed", weights, images, points)
        points_ND = np.load(points)
        count = int(len(points_ND) * CORESET_RATIO)
        np.save(vectors, points_ND[greedy_coreset(torch.from_numpy(points_ND), count).numpy()])
        points.unlink()
        fit_s = time.perf_counter() - begin_s
        seconds = ask_reference("detect", weights, images, found, "patchcore", vectors)
        row = {"bank_vectors": count, "fit_s": fit_s + seconds["fit_s"], "score_s": seconds["score_s"]}
    else:
        row = ask_reference("detect", weights, images, found, "padim")
    answer = np.load(found)
    maps = [resize_map(map_HW, case.map_px) for map_HW in answer["maps"]]
    masks = [sample.load_mask(case.map_px) for sample in dataset.test]
    kinds = [sample.defect_type for sample in dataset.test]
    return split_row(Predictions(answer["scores"], maps, masks, kinds, True), None) | row


def export_weights(path: Path) -> None:
    """Write the weights of our backbone to a file that anomalib's model loads."""
    import safetensors.torch

    from steelray.patchcore.embedder import build_patch_embedder

    path.parent.mkdir(exist_ok=True)
    backbone = build_patch_embedder(EmbedderConfig(levels=(1, 2, 3))).backbone
    safetensors.torch.save_file({name: value.contiguous() for name, value in backbone.state_dict().items()}, path)


def resampled_aurocs(row: dict[str, Any], num_resamples: int = NUM_RESAMPLES) -> NDArray[np.float64]:
    """Return the image AUROC, mean over splits, of resamples of the test images.

    The same test images give the same resamples, so that the AUROCs of two methods can be subtracted. A resample draws
    as many images as there are, with replacement; the AUROC is the share of pairs of a defective image (D) and a
    nominal one (G) in which the defective image scores higher.
    """
    rng = np.random.default_rng(0)
    aurocs = np.zeros((len(row["splits"]), num_resamples))
    for split, found_R in zip(row["splits"], aurocs, strict=True):
        labels_N, scores_N = np.array(split["labels"], dtype=bool), np.array(split["scores"])
        gaps_DG = scores_N[labels_N][:, None] - scores_N[~labels_N]
        wins_DG = (gaps_DG > 0) + 0.5 * (gaps_DG == 0)
        for place in range(num_resamples):
            drawn_D, drawn_G = np.zeros(0), np.zeros(0)
            while not drawn_D.any() or not drawn_G.any():
                times_N = np.bincount(rng.integers(len(labels_N), size=len(labels_N)), minlength=len(labels_N))
                drawn_D, drawn_G = times_N[labels_N], times_N[~labels_N]
            found_R[place] = drawn_D @ wins_DG @ drawn_G / (drawn_D.sum() * drawn_G.sum())
    return np.asarray(aurocs.mean(axis=0))


def mean(row: dict[str, Any], name: str) -> float | None:
    """Return a figure, mean over splits; None if the method has none."""
    values = [split["figures"].get(name, split.get(name)) for split in row["splits"]]
    return None if None in values else float(np.mean(values))


def table_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the Markdown lines of docs/detection.md: one table per data set."""
    for data in dict.fromkeys(row["data"] for row in rows):
        group = [row for row in rows if row["data"] == data]
        split = group[0]["splits"][0]
        num_defective = sum(split["labels"])
        yield (
            f"**{data}**: {group[0]['num_fit']} nominal images to fit; {len(split['labels']) - num_defective} nominal "
            f"and {num_defective} defective images to test"
            + (f"; mean of {len(group[0]['splits'])} splits" if len(group[0]["splits"]) > 1 else "")
        )
        yield ""
        yield (
            "| method | image px | image AUROC | minus anomalib PatchCore | pixel AUROC | pixel AP | recall "
            "| false alarms | textures found | can decide | fit s | score s |"
        )
        yield "|---" * 12 + "|"
        reference = next((row for row in group if row["method"] == PATCHCORE), None)
        yield from (_table_row(row, reference) for row in group)
        yield ""


def _table_row(row: dict[str, Any], reference: dict[str, Any] | None) -> str:
    aurocs_R = resampled_aurocs(row)
    auroc = mean(row, "image_auroc")
    difference = "–"
    if reference is not None and row is not reference:
        gain = np.mean([a["figures"]["image_auroc"] for a in row["splits"]])
        gain -= np.mean([a["figures"]["image_auroc"] for a in reference["splits"]])
        difference = f"{gain:+.3f} {_interval(aurocs_R - resampled_aurocs(reference), '+.3f')}"
    decided = [split.get("can_decide") for split in row["splits"]]
    says = "–" if None in decided else ("yes" if all(decided) else "no")
    if any(decided) and not all(decided):
        says = f"in {sum(decided)} of {len(decided)}"
    height_px, width_px = row["size_px"]
    cells = [
        f"`{row['method']}`" if row["method"] in RECIPES else row["method"],
        f"{height_px}×{width_px}",
        f"{auroc:.3f} {_interval(aurocs_R, '.3f')}",
        difference,
        *(_cell(row, name, "{:.3f}") for name in ("pixel_auroc", "pixel_ap")),
        *(_cell(row, name, "{:.2f}") for name in ("recall", "false_alarm_rate", "power")),
        says,
        *(_cell(row, name, "{:.0f}") for name in ("fit_s", "score_s")),
    ]
    return "| " + " | ".join(cells) + " |"


def _interval(values_R: NDArray[np.float64], digits: str) -> str:
    low, high = np.percentile(values_R, INTERVAL)
    return f"[{low:{digits}}, {high:{digits}}]"


def _cell(row: dict[str, Any], name: str, digits: str) -> str:
    value = mean(row, name)
    return "–" if value is None else digits.format(value)


def write_page(page: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace the text between the page's markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    dates = sorted({row["date"][:10] for row in rows})
    loads = [row["load_average_before"] or 0.0 for row in rows]
    where = f"_{dates[0]}, {rows[0]['hardware']['cores']} cores of {rows[0]['hardware']['cpu']}; load average before "
    where += f"the rows {min(loads):.1f} to {max(loads):.1f}._"
    after = rest.partition(END)[2]
    page.write_text(before + BEGIN + "\n" + "\n".join([*table_lines(rows), where]) + "\n" + END + after)


def store(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the result file, one row a line."""
    body = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"benchmark": "detection", "rows": [\n{body}\n]}}\n')


def in_order(rows: Sequence[dict[str, Any]], wanted: Sequence[Case]) -> list[dict[str, Any]]:
    """Return rows in the order of the data sets and their methods."""
    order = [(case.name, method) for case in wanted for method in case.methods]
    return sorted(rows, key=lambda row: order.index(name) if (name := (row["data"], row["method"])) in order else -1)


def main() -> int:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default=DATA, help="folder of kolektor, mvtec/bottle and severstal")
    parser.add_argument("--only", nargs="*", default=[], help="data sets")
    parser.add_argument("--methods", nargs="*", default=[], help="recipes, or methods as the table names them")
    options = parser.parse_args()
    wanted = cases(Path(options.data))
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {(row["data"], row["method"]) for row in rows}
    for case in wanted:
        for method in case.methods:
            left_out = (options.only and case.name not in options.only) or (
                options.methods and method not in options.methods
            )
            if left_out or (case.name, method) in done:
                continue
            print(f"{case.name}, {method}: running", file=sys.stderr, flush=True)
            row = rounded(measure(case, method))
            rows = in_order([*rows, row], wanted)
            store(RESULTS, rows)
            write_page(PAGE, rows)
            print(_table_row(row, None), file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
