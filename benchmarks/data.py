"""Generated strips and their patch embeddings, the same on every machine; kept in .bench between runs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import SCRATCH
from steelray.demo.synthetic import make_strip

TILE_PX = (256, 256)


def strips(count: int, seed: int, size_px: tuple[int, int] = (256, 1600)) -> list[Path]:
    """JPEG files of nominal strips."""
    folder = SCRATCH / f"strips-{seed}-{size_px[0]}x{size_px[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_bytes(make_strip(seed, index, size_px=size_px).jpeg())
            part.replace(path)
    return paths


def archive(name: str, count: int, bodies: list[Path]) -> Path:
    """A folder of so many images: the given files under many keys, as links."""
    folder = SCRATCH / f"archive-{name}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        link = folder / f"line{index % 4}" / f"{index:06d}.jpg"
        if not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(bodies[index % len(bodies)])
    return folder


def embeddings(count: int, levels: tuple[int, ...], seed: int = 5) -> NDArray[np.float32]:
    """Patch embeddings of 256x256 pieces of strips: levels (1, 2) give 64 dimensions, (1, 2, 3) give 176."""
    path = SCRATCH / f"embeddings-{'-'.join(map(str, levels))}-{seed}.npy"
    if path.exists():
        kept: NDArray[np.float32] = np.load(path, mmap_mode="r")
        if len(kept) >= count:
            return np.array(kept[:count])
    from steelray.job import num_cores
    from steelray.patchcore.config import EmbedderConfig
    from steelray.patchcore.embedder import build_patch_embedder, compile_embedder

    embed = compile_embedder(build_patch_embedder(EmbedderConfig(levels=levels)), num_threads=num_cores())
    parts, total, index = [], 0, 0
    while total < count:
        pixels_HW = make_strip(seed, index, size_px=TILE_PX).pixels_HW
        part_hwD = embed(pixels_HW[None, :, :, None])[0]
        parts.append(part_hwD.reshape(-1, part_hwD.shape[2]))
        total, index = total + len(parts[-1]), index + 1
    path.parent.mkdir(exist_ok=True)
    every = np.concatenate(parts)
    np.save(path, every)
    return every[:count]
