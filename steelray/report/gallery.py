"""The gallery: a run's worst strips with their heatmap, worst patch and the nominal patch nearest to it.

Works in this process on a few images and needs no cluster. Shapes: H height, W width, C channels; h, w the patch grid.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from steelray.config import ComputeConfig, DecodeConfig
from steelray.imaging.decode import Undecodable, decode
from steelray.imaging.pictures import heatmap_png, patch_jpeg, strip_thumbnail, worst_patch_center
from steelray.imaging.scorer import AnomalyMaps, Images, Scorer
from steelray.models.calibration import ALL_STRIPS, Calibration
from steelray.models.model import Model, load_scorer, nominal_uris, portable_embedder
from steelray.patchcore.bank import read_origins
from steelray.patchcore.leave_out import own_vectors
from steelray.patchcore.portable_embedder import Embedder
from steelray.patchcore.scorer import PatchCoreScorer, find_regions
from steelray.patchcore.stored_search import StoredSearch
from steelray.report.data import GalleryItem
from steelray.schema import Row, Status
from steelray.storage.location import Location, ObjectChanged, ObjectMissing

FETCHERS = 8
OVERLAY_WIDTH_PX, OVERLAY_SHADES = 400, 24
UNAVAILABLE = (OSError, ObjectMissing, ObjectChanged, Undecodable)
"""Reasons to leave a picture out: the scores do not depend on it."""
NominalPatch = tuple[str, bytes]
"""Key of a nominal image, and a JPEG of one of its patches."""


@dataclass(frozen=True)
class GallerySource:
    """The images, the model and the limits that the gallery's pictures are made with."""

    archive: Location
    model: Model
    calibration: Calibration
    decode: DecodeConfig
    compute: ComputeConfig
    num_threads: int
    object_url: str | None = None
    """As in `ReportConfig`."""
    nominal: bool = False
    """The images are nominal: each is scored, and its nearest patch sought, without its own vectors of the bank."""
    nominal_places: tuple[Location, ...] | None = None
    """Archives of the nominal images, of which a bank that has grown has several; None: as in the model's run.json."""

    def link(self, image_key: str) -> str | None:
        """Return the URL at which a person opens an object, if there is one."""
        if not self.object_url:
            return self.archive.url(image_key) if self.object_url is None else None
        return self.object_url.replace("{key}", quote(image_key))


def make_gallery(source: GallerySource, scores: pa.Table, count: int) -> list[GalleryItem]:
    """Draw the strips with the highest scores, worst first; leave out those that are gone from the archive.

    Args:
        scores: schema `SCORES`.
    """
    scored = scores.filter(pc.equal(scores.column("status"), Status.OK.value))
    worst = scored.sort_by([("anomaly_score", "descending"), ("image_key", "ascending")]).slice(0, count).to_pylist()
    return draw_gallery(source, worst)


def draw_gallery(source: GallerySource, rows: Sequence[Row]) -> list[GalleryItem]:
    """Draw these strips, in their order; leave out those that are gone from the archive.

    Args:
        rows: rows of schema `SCORES`, with a verdict.
    """
    with ThreadPoolExecutor(FETCHERS) as pool:
        images = list(pool.map(lambda row: _fetch(source, row), rows))
    found = [(row, image) for row, image in zip(rows, images, strict=True) if image is not None]
    if not found:
        return []
    pixels = [image for _, image in found]
    scorer = _load(source)
    keys = [row["image_key"] for row, _ in found] if source.nominal else None
    maps = _score(scorer, pixels, keys, source.compute.batch_size)
    nominal: Sequence[NominalPatch | None] = [None] * len(found)
    if isinstance(scorer, PatchCoreScorer):
        nominal = _nearest_patches(source, scorer.embedder, pixels, keys, maps)
    return [
        _item(source, row, image, map_HW, patch)
        for (row, image), map_HW, patch in zip(found, maps, nominal, strict=True)
    ]


def _fetch(source: GallerySource, row: Row) -> NDArray[np.uint8] | None:
    for place in (source.archive, *((source.nominal_places or ()) if source.nominal else ())):
        try:
            return decode(place.read_listed(row["image_key"], row["etag"], row["size_bytes"]), source.decode)
        except UNAVAILABLE:
            continue
    return None


def _load(source: GallerySource) -> Scorer:
    """Load the model. A bank stays in storage: it may be larger than this machine."""
    model, compute, info = source.model, source.compute, source.model.bank
    if info is None:
        return load_scorer(model, compute, num_threads=source.num_threads)
    portable = portable_embedder(info.embedder, info.weights_digest, compute, False)
    search, nominal = _search(source), source.nominal
    return load_scorer(
        model, compute, num_threads=source.num_threads, search=search, portable=portable, nominal=nominal
    )


def _search(source: GallerySource) -> StoredSearch:
    assert source.model.bank is not None
    return StoredSearch(Location(source.model.uri).read, source.model.bank, num_threads=source.num_threads)


def _score(scorer: Scorer, images: Images, keys: Sequence[str] | None, batch_size: int) -> AnomalyMaps:
    if isinstance(scorer, PatchCoreScorer):  # all images at once, so that every file of the bank is read once
        return scorer.score(images, keys)[0]
    assert keys is None, "only a memory bank knows which of its parts came from a nominal strip"
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return [map_HW for batch in batches for map_HW in scorer.score(batch)[0]]


def read_first(places: Sequence[Location], image_key: str, *, decode_config: DecodeConfig) -> NDArray[np.uint8] | None:
    """Return pixels_HWC of a nominal image from the first place that has it; None if none has.

    Args:
        places: nominal archives; a bank that has grown has several.
    """
    for place in places:
        try:
            return decode(place.read(image_key), decode_config)
        except UNAVAILABLE:
            continue
    return None


def _nearest_patches(
    source: GallerySource, embedder: Embedder, images: Images, keys: Sequence[str] | None, maps: AnomalyMaps
) -> list[NominalPatch | None]:
    """Find the nominal patch in the memory bank that is nearest to the worst patch of each strip.

    Args:
        keys: of the nominal strips that these are, whose own patches do not count; None: fresh strips.
    """
    info, location = source.model.bank, Location(source.model.uri)
    assert info is not None
    nominal = source.nominal_places
    if nominal is None:
        nominal = tuple(Location(uri) for uri in nominal_uris(location.uri))
    if not nominal:
        return [None] * len(images)
    queries, cells_px = [], []
    for image, map_HW in zip(images, maps, strict=True):
        embeddings_hwD = embedder.embed_image(image)
        grid = embeddings_hwD.shape[:2]
        seen_px = embedder.covered_px((map_HW.shape[0], map_HW.shape[1]))  # the map lacks the pixels that were added
        seen = [cells * side / seen_side for cells, side, seen_side in zip(grid, map_HW.shape, seen_px, strict=True)]
        row, column = worst_patch_center(map_HW, (seen[0], seen[1]))
        queries.append(embeddings_hwD[row, column])
        cells_px.append((seen_px[0] / grid[0], seen_px[1] / grid[1]))
    origins_N3, bank_keys = read_origins(location.read, info)
    own = {} if keys is None else own_vectors(origins_N3, bank_keys, info.scoring.num_searched)
    left_out = [None] * len(queries) if keys is None else [own.get(key) for key in keys]
    search = _search(source)
    answers = [search.submit(query[None], 1, without) for query, without in zip(queries, left_out, strict=True)]
    nearest = [int(answer.result()[1][0, 0]) for answer in answers]

    load = lru_cache(maxsize=32)(partial(read_first, nominal, decode_config=source.decode))
    found: list[NominalPatch | None] = []
    for (image_index, row, column), cell_px in zip(origins_N3[nearest].tolist(), cells_px, strict=True):
        nominal_HWC = load(bank_keys[image_index])
        if nominal_HWC is None:
            found.append(None)
            continue
        height_px, width_px = nominal_HWC.shape[:2]
        size_px = info.embedder.resize_px or (height_px, width_px)
        center_px = (
            int((row + 0.5) * cell_px[0] * height_px / size_px[0]),
            int((column + 0.5) * cell_px[1] * width_px / size_px[1]),
        )
        found.append((bank_keys[image_index], patch_jpeg(nominal_HWC, center_px)))
    return found


def _item(
    source: GallerySource,
    row: Row,
    image_HWC: NDArray[np.uint8],
    map_HW: NDArray[np.float32],
    nominal: NominalPatch | None,
) -> GalleryItem:
    lower, upper = source.calibration.heat_range(row["group"] or ALL_STRIPS)
    boxes = row["boxes"]
    if boxes is None:  # scored before there was a threshold
        threshold = source.calibration.thresholds_of(row["group"] or ALL_STRIPS).pixel.value
        boxes = find_regions(map_HW, threshold, (image_HWC.shape[0], image_HWC.shape[1]))[1]
    center_px = worst_patch_center(map_HW, (image_HWC.shape[0], image_HWC.shape[1]))
    return GalleryItem(
        image_key=row["image_key"],
        group=row["group"] or ALL_STRIPS,
        score=row["anomaly_score"],
        verdict=row["verdict"],
        height_px=row["height_px"],
        width_px=row["width_px"],
        strip_jpeg=strip_thumbnail(image_HWC),
        overlay_png=heatmap_png(map_HW, lower, upper, width_px=OVERLAY_WIDTH_PX, levels=OVERLAY_SHADES),
        boxes=boxes or (),
        worst_patch_jpeg=patch_jpeg(image_HWC, center_px),
        nominal_patch_jpeg=nominal[1] if nominal else None,
        nominal_key=nominal[0] if nominal else None,
        object_url=source.link(row["image_key"]),
    )
