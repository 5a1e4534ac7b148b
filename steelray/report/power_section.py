"""The section on a model's power, which the bank page and the run page share. Pure functions of a `Power`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steelray.evaluation.power import Power, PowerCell
from steelray.report.checks import Check, Level

PLURALS = {"roughness": "rough areas", "scratch": "scratches"}
CANNOT_DECIDE = "This model cannot decide: none of the planted defects is found at any size"


@dataclass(frozen=True)
class PowerSection:
    """The values of the section.

    Attributes:
        rows: kind, size in pixels, and cells by contrast.
        pictures: caption and JPEG of planted defects at their limit.
    """

    power: Power
    contrasts: list[int]
    rows: list[tuple[str, int, dict[int, PowerCell]]]
    sentences: list[str]
    pictures: Sequence[tuple[str, bytes]] = ()


def power_section(power: Power | None, pictures: Sequence[tuple[str, bytes]] = ()) -> PowerSection | None:
    """Return the section; None if no defects were planted."""
    if power is None:
        return None
    names = dict.fromkeys((cell.kind, cell.size_px) for cell in power.cells)
    rows = [
        (kind, size, {cell.contrast: cell for cell in power.cells if (cell.kind, cell.size_px) == (kind, size)})
        for kind, size in names
    ]
    contrasts = sorted({cell.contrast for cell in power.cells})
    return PowerSection(power, contrasts, rows, limits_in_words(power), pictures)


def limits_in_words(power: Power) -> list[str]:
    """Return a sentence for the detection limit of each kind and size of planted defects."""
    return [
        f"Half of the {limit.size_px} px {PLURALS.get(limit.kind, f'{limit.kind}s')} are found "
        + (f"from {limit.contrast} grey levels on." if limit.contrast is not None else "at no contrast.")
        for limit in power.limits
    ]


def power_checks(power: Power | None) -> Iterator[Check]:
    """Yield whether the model can decide; nothing that rests on it is sound otherwise."""
    if power is None:
        detail = "no defects were planted in its nominal strips: build the model again to know what it misses"
        yield Check(Level.LOOK, "Power not measured", detail, "power")
        return
    found = [limit for limit in power.limits if limit.contrast is not None]
    detail = f"{len(found)} of {len(power.limits)} kinds and sizes of planted defects are found"
    if power.can_decide:
        yield Check(Level.OK, "Planted defects are found", f"{detail}, from some contrast on", "power")
    else:
        yield Check(Level.PROBLEM, "This model cannot decide", f"{detail} at any contrast: add nominal strips", "power")
