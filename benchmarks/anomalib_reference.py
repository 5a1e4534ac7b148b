"""anomalib 2.7 on the benchmark's inputs. Runs in its own environment and knows nothing of steelray.

anomalib_reference.py coreset POINTS.npy RATIO whole|part PICKED.npy SEGMENT_S
anomalib_reference.py predict WEIGHTS.safetensors VECTORS.npy FOLDER COUNT SCORES.json
"""

import json
import logging
import os
import statistics
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch

REPEATS = 3
BACKBONE, LAYERS = "tf_efficientnet_lite0", [2, 3]


def coreset(points_path: str, ratio: float, extent: str, picked_path: str, segment_s: float) -> dict[str, Any]:
    """Seconds of KCenterGreedy with its own random projection, as `Patchcore.fit` calls it."""
    from anomalib.models.components.sampling import KCenterGreedy

    points_ND = torch.from_numpy(np.load(points_path))
    count = int(len(points_ND) * ratio)

    def run(picks: int) -> tuple[float, list[int]]:
        torch.manual_seed(0)
        sampler = KCenterGreedy(embedding=points_ND, sampling_ratio=ratio)
        sampler.coreset_size = picks
        start_s = time.perf_counter()
        rows = sampler.select_coreset_idxs()
        return time.perf_counter() - start_s, rows

    if extent == "whole":
        seconds, rows = run(count)
        np.save(picked_path, np.array(rows))
        few = max(20, count // 20)
    else:
        warm_s, _ = run(4)
        seconds, few = 0.0, int(max(5, min(count, segment_s / (warm_s / 4))))
    # fixed costs (the projection) apart from the price of a pick
    least_s = statistics.median(run(2)[0] for _ in range(REPEATS))
    part = [run(few)[0] for _ in range(REPEATS)]
    per_pick_s = (statistics.median(part) - least_s) / max(1, few - 2)
    estimate_s = least_s + per_pick_s * (count - 2)
    answer = {"measured_picks": few, "measured_runs_s": [round(s, 4) for s in part], "estimate_s": estimate_s}
    answer["seconds"] = seconds if extent == "whole" else estimate_s
    return answer


def predict(weights_path: str, vectors_path: str, folder: str, count: int, scores_path: str) -> dict[str, Any]:
    """Seconds per image of Engine.predict: two runs of different length, so that its start is not counted."""
    import safetensors.torch
    from anomalib.data import PredictDataset
    from anomalib.engine import Engine
    from anomalib.models import Patchcore
    from anomalib.pre_processing import PreProcessor
    from torch.utils.data import DataLoader, Subset
    from torchvision.transforms.v2 import Normalize

    processor = PreProcessor(transform=Normalize(mean=[0.5] * 3, std=[0.5] * 3))
    plain = {"post_processor": False, "evaluator": False, "visualizer": False}
    model = Patchcore(BACKBONE, LAYERS, pre_trained=False, num_neighbors=1, pre_processor=processor, **plain)
    model.model.feature_extractor.feature_extractor.load_state_dict(safetensors.torch.load_file(weights_path))
    model.model.memory_bank = torch.from_numpy(np.load(vectors_path))
    model.eval()
    images = PredictDataset(path=folder)

    def run(number: int) -> tuple[float, list[Any]]:
        loader = DataLoader(Subset(images, range(number)), batch_size=8, collate_fn=images.collate_fn)
        engine = Engine(logger=False, default_root_dir=os.path.join(os.path.dirname(vectors_path), "engine"))
        start_s = time.perf_counter()
        batches = engine.predict(model=model, dataloaders=loader, return_predictions=True)
        return time.perf_counter() - start_s, batches

    short = 4
    run(short)
    short_s, (long_s, batches) = run(short)[0], run(count)
    scores = {
        path: float(score) for batch in batches for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }
    with open(scores_path, "w") as file:
        json.dump(scores, file)
    return {"seconds_per_image": (long_s - short_s) / (count - short)}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    what, *arguments = sys.argv[1:]
    if what == "coreset":
        points, ratio, extent, picked, segment_s = arguments
        answer = coreset(points, float(ratio), extent, picked, float(segment_s))
    else:
        weights, vectors, folder, count, scores = arguments
        answer = predict(weights, vectors, folder, int(count), scores)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
