"""Findings for the bank page: planted defects at their detection limit, suspects, and the choice of recipe.

Pictures that cannot be made are left out. Shapes: H height, W width, C channels of an image.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from steelray.evaluation.choose import Candidate
from steelray.evaluation.planting import Defect, plant
from steelray.evaluation.power import Power
from steelray.imaging.pictures import patch_jpeg
from steelray.models.model import load_embedder, portable_embedder
from steelray.patchcore import suspects
from steelray.patchcore.portable_embedder import Embedder
from steelray.report.data import BankFindings, Recipe, RecipeRow, Suspect
from steelray.report.gallery import GallerySource, read_first
from steelray.report.words import duration

MARGIN_PX = 24
MAX_PICTURES = 24
"""Pictures of suspects; the others are named only."""

Pixels = NDArray[np.uint8]


def gather_findings(
    source: GallerySource | None,
    rows: pa.Table,
    power: Power | None,
    found: Sequence[suspects.Suspect] | None,
    candidates: Sequence[Candidate],
    recipe: str | None,
) -> BankFindings:
    """Return the findings of a bank with their pictures.

    Args:
        source: the nominal images; None: there are no pictures.
        rows: the calibration's rows, schema `SCORES`.
        found: patches that the bank dropped; None: it looked for none.
        candidates: recipes that were compared; empty: none were.
        recipe: the one that the bank was built by; None if it is not known.
    """
    return BankFindings(
        power=power,
        planted=_planted(source, rows, power) if source and power else (),
        suspects=None if found is None else _suspects(source, found),
        recipe=_recipe(candidates, recipe) if candidates else None,
    )


def _recipe(candidates: Sequence[Candidate], recipe: str | None) -> Recipe:
    rows = [RecipeRow(one.recipe, one.share, duration(one.seconds), one.recipe == recipe) for one in candidates]
    return Recipe(tuple(rows), "The recipe that finds most of the planted textures; of equals, the fastest.")


def _load(source: GallerySource, image_key: str) -> Pixels | None:
    return read_first(source.nominal_places or (source.archive,), image_key, decode_config=source.decode)


def _planted(source: GallerySource, rows: pa.Table, power: Power) -> list[tuple[str, bytes]]:
    """Draw a defect of each kind and size at its limit, in the middle of the most usual nominal strip."""
    scores_N = rows["anomaly_score"].to_numpy()
    if len(scores_N) == 0:
        return []
    usual = int(np.argsort(scores_N, kind="stable")[len(scores_N) // 2])
    image = _load(source, rows["image_key"][usual].as_py())
    if image is None:
        return []
    middle = image.shape[0] // 2, image.shape[1] // 2
    drawn = []
    for limit in power.limits:
        if limit.contrast is None or limit.size_px > min(image.shape[:2]):
            continue
        top, left = (center - limit.size_px // 2 for center in middle)
        defect = Defect(limit.kind, limit.size_px, limit.contrast, 0, top, left)
        picture = patch_jpeg(plant(image, [defect], image), middle, limit.size_px + 2 * MARGIN_PX)
        drawn.append((f"{limit.kind}, {limit.size_px} px, {limit.contrast} grey levels", picture))
    return drawn


def _suspects(source: GallerySource | None, found: Sequence[suspects.Suspect]) -> list[Suspect]:
    embedder = _embedder(source) if source and found else None
    shown = []
    for number, one in enumerate(found):
        image = _load(source, one.image_key) if source and embedder and number < MAX_PICTURES else None
        picture = None if image is None or embedder is None else _patch(embedder, image, one)
        shown.append(Suspect(one.image_key, one.distance, picture))
    return shown


def _embedder(source: GallerySource) -> Embedder | None:
    info = source.model.bank
    if info is None:
        return None
    portable = portable_embedder(info.embedder, info.weights_digest, source.compute, False)
    return load_embedder(info.embedder, info.weights_digest, source.compute, source.num_threads, portable)


def _patch(embedder: Embedder, image_HWC: Pixels, suspect: suspects.Suspect) -> bytes:
    rows, columns = embedder.embed_image(image_HWC).shape[:2]
    height_px, width_px = embedder.covered_px((image_HWC.shape[0], image_HWC.shape[1]))
    center_px = (suspect.grid_row + 0.5) * height_px / rows, (suspect.grid_column + 0.5) * width_px / columns
    return patch_jpeg(image_HWC, (int(center_px[0]), int(center_px[1])))
