"""The strips of a gallery whose pictures fit into a page."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from steelray.report.data import GalleryItem, safe_url


@dataclass(frozen=True)
class Card:
    """A strip of the gallery; `times` is its score in review thresholds."""

    item: GalleryItem
    url: str | None
    times: str | None


def fitting_cards(items: Sequence[GalleryItem], limit_of: Callable[[str], float | None], max_bytes: int) -> list[Card]:
    """Return the first strips whose pictures fit.

    Args:
        limit_of: returns the review threshold of a group, if there is one.
    """
    cards: list[Card] = []
    spent = 0
    for item in items:
        spent += sum(-(-len(picture) // 3) * 4 for picture in _pictures(item))
        if spent > max_bytes:
            break
        limit = limit_of(item.group)
        times = f"{item.score / limit:.2f}" if limit is not None and limit > 0 else None
        cards.append(Card(item, safe_url(item.object_url), times))
    return cards


def _pictures(item: GalleryItem) -> Iterable[bytes]:
    pictures = (item.strip_jpeg, item.overlay_png, item.worst_patch_jpeg, item.nominal_patch_jpeg)
    return (picture for picture in pictures if picture is not None)
