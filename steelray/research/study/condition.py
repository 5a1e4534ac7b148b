"""Conditions of a trial: `dataset+change=amount+...`, such as `control+grain=8` or `steel+denoise=2`.

Loads neither torch nor ray.
"""

from dataclasses import dataclass

from steelray.config import ConfigError

CHANGES = ("grain", "denoise", "bands", "grey", "squeeze")
DATASETS = ("steel", "control", "generated")
"""`steel`: the subject of the study. `control`: where DRAEM is known to converge. `generated`: strips with knobs."""


@dataclass(frozen=True)
class Condition:
    """A dataset and the changes made to its pixels, in order."""

    dataset: str = "steel"
    changes: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return "+".join([self.dataset, *(f"{name}={amount:g}" for name, amount in self.changes)])


def parse_condition(text: str) -> Condition:
    """Parse a condition. Raises `ConfigError` for an unknown dataset or change."""
    dataset, *parts = text.split("+")
    changes = []
    for part in parts:
        name, _, amount = part.partition("=")
        try:
            changes.append((name, float(amount)))
        except ValueError:
            raise ConfigError(f"condition {text!r}: {part!r} has no amount; write it as grain=8") from None
    unknown = [name for name, _ in changes if name not in CHANGES and dataset != "generated"]
    if dataset not in DATASETS or unknown:
        raise ConfigError(
            f"condition {text!r}: {unknown[0] if unknown else dataset!r} is not known; "
            f"datasets are {', '.join(DATASETS)}, changes are {', '.join(CHANGES)}"
        )
    return Condition(dataset, tuple(changes))
