"""Choose a recipe without labels: the one that finds most of the planted textures, and of equals the cheapest.

Textures are closer to real defects than spots and scratches are. Even so, the choice may be wrong, above all between
input sizes: docs/detection.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NOISE = 0.02
"""Shares that differ by less are equal."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that was fitted.

    Attributes:
        share: share of the planted textures that its thresholds find.
        seconds: seconds of scoring the nominal images and the planted defects.
    """

    recipe: str
    share: float
    seconds: float


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the largest share, or the fastest of those within `NOISE` of it."""
    best = max(candidate.share for candidate in candidates)
    return min((candidate for candidate in candidates if candidate.share >= best - NOISE), key=lambda one: one.seconds)
