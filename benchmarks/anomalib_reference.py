"""anomalib 2.7 on the benchmark's inputs. Runs in its own environment and knows nothing of steelray.

anomalib_reference.py coreset POINTS.npy RATIO whole|part PICKED.npy SEGMENT_S
anomalib_reference.py predict WEIGHTS.safetensors VECTORS.npy FOLDER COUNT SCORES.json
anomalib_reference.py embed WEIGHTS.safetensors IMAGES.json POINTS.npy
anomalib_reference.py detect WEIGHTS.safetensors IMAGES.json FOUND.npz patchcore VECTORS.npy
anomalib_reference.py detect WEIGHTS.safetensors IMAGES.json FOUND.npz padim

IMAGES.json: lists of files `fit` and `test`, and the height and width `size_px` to which all are resized.
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
PADIM_LAYERS, PADIM_FEATURES = [1, 2, 3], 100
"""anomalib's defaults for ResNet-18: strides 4, 8 and 16, and the number of features kept."""


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


def read_image(path: str, size_px: tuple[int, int]) -> torch.Tensor:
    """Return an image as the network's input of shape 1CHW, resized (bilinear, anti-aliased) and normalised."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = image.convert("RGB").resize(size_px[::-1], Image.Resampling.BILINEAR)
    return (torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def load_model(method: str, weights_path: str) -> torch.nn.Module:
    """Return anomalib's `patchcore` or `padim` with its defaults and the given weights of the backbone."""
    import safetensors.torch
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(0)
    model: torch.nn.Module
    if method == "padim":
        model = PadimModel(BACKBONE, PADIM_LAYERS, pre_trained=False, n_features=PADIM_FEATURES)
    else:
        model = PatchcoreModel(LAYERS, BACKBONE, pre_trained=False)
    extractor = model.feature_extractor.feature_extractor
    kept = safetensors.torch.load_file(weights_path)
    extractor.load_state_dict({name: kept[name] for name in extractor.state_dict()})
    return model


def learn(model: torch.nn.Module, images: dict[str, Any]) -> None:
    """Pass the nominal images through the model, which keeps their embeddings."""
    model.train()
    model.feature_extractor.eval()
    with torch.inference_mode():
        for path in images["fit"]:
            model(read_image(path, tuple(images["size_px"])))


def embed(weights_path: str, images_path: str, points_path: str) -> dict[str, Any]:
    """Write PatchCore's embeddings of the nominal images."""
    with open(images_path) as file:
        images = json.load(file)
    start_s = time.perf_counter()
    model = load_model("patchcore", weights_path)
    learn(model, images)
    points_ND = torch.vstack(model.embedding_store).numpy()
    np.save(points_path, points_ND)
    return {"num_points": len(points_ND), "seconds": time.perf_counter() - start_s}


def detect(
    weights_path: str, images_path: str, found_path: str, method: str, vectors_path: str | None = None
) -> dict[str, Any]:
    """Fit a model and write scores and anomaly maps (NHW) of the test images.

    Args:
        vectors_path: PatchCore's memory bank, chosen from what `embed` wrote.
    """
    with open(images_path) as file:
        images = json.load(file)
    start_s = time.perf_counter()
    model = load_model(method, weights_path)
    if method == "padim":
        learn(model, images)
        with torch.inference_mode():
            model.fit()
    else:
        model.memory_bank = torch.from_numpy(np.load(vectors_path))
    fit_s = time.perf_counter() - start_s
    model.eval()
    scores, maps = [], []
    with torch.inference_mode():
        for path in images["test"]:
            found = model(read_image(path, tuple(images["size_px"])))
            scores.append(float(found.pred_score))
            maps.append(found.anomaly_map[0, 0].numpy())
    np.savez(found_path, scores=np.array(scores, dtype=np.float32), maps=np.array(maps, dtype=np.float32))
    return {"fit_s": fit_s, "score_s": time.perf_counter() - start_s - fit_s}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    what, *arguments = sys.argv[1:]
    if what == "coreset":
        points, ratio, extent, picked, segment_s = arguments
        answer = coreset(points, float(ratio), extent, picked, float(segment_s))
    elif what == "embed":
        answer = embed(*arguments)
    elif what == "detect":
        answer = detect(*arguments)
    else:
        weights, vectors, folder, count, scores = arguments
        answer = predict(weights, vectors, folder, int(count), scores)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
