"""Axes of the study: options of `TrainConfig`, named by their path, such as `loss.w_ssim`.

Loads neither torch nor ray.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from steelray.config import ConfigError, require
from steelray.reconstruction.config import TrainConfig

Config = TypeVar("Config")
Settings = Mapping[str, Any]
FIXED = {"data.dataset.root", "data.dataset.kind", "data.nominal", "output_uri", "run_name", "dry_run", "overwrite"}
"""Options that only say where data and results are."""


@dataclass(frozen=True)
class Axis:
    """The values from which a search draws one option."""

    name: str
    """Path of the option in the training settings, such as `optimizer.lr`."""
    choices: tuple[Any, ...] | None = None
    """Values to draw from; null: draw between low and high."""
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Draw uniformly on a logarithmic scale instead of a linear one."""

    def __post_init__(self) -> None:
        check_axis(self.name)
        if self.choices is not None:
            require(len(self.choices) > 0 and self.low is None, f"axis {self.name}: give choices, or low and high")
            for value in self.choices:
                _converted(self.name, value)
            return
        if self.low is None or self.high is None or not self.low < self.high or (self.log and self.low <= 0):
            raise ConfigError(f"axis {self.name}: give choices, or low < high (above 0 with log)")

    def place(self, value: Any) -> float:
        """Return the position of a value between the axis's ends, in [0, 1]; NaN if it is no choice."""
        if self.choices is not None:
            same = [number for number, choice in enumerate(self.choices) if _plain(choice) == _plain(value)]
            return same[0] / max(1, len(self.choices) - 1) if same else math.nan
        assert self.low is not None
        assert self.high is not None
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


def axis_names() -> list[str]:
    """List all options of the training settings that can be an axis."""
    return sorted(set(_paths(TrainConfig, "")) - FIXED)


def check_axis(name: str) -> None:
    """Raise `ConfigError` unless there is such an option."""
    if name not in axis_names():
        near = difflib.get_close_matches(name, axis_names(), 1, 0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown axis {name!r}: an axis is an option of the training settings{hint}")


def with_settings(config: TrainConfig, settings: Settings) -> TrainConfig:
    """Return the training settings with some options changed; validated as a whole.

    Raises:
        ConfigError: an unknown option, or a value that it cannot have.
    """
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        check_axis(name)
        changes[name] = _converted(name, value)
    return _replaced(config, changes)


def check_points(config: TrainConfig, fix: Settings, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return the first points of a search, baseline and proposed fix, with a value for every axis.

    Raises:
        ConfigError: there are no axes, or a point lies outside of them.
    """
    require(len(axes) > 0, "search.axes is empty: name at least one option of the training settings")
    names = {axis.name for axis in axes}
    missing = sorted(set(fix) - names)
    if missing:
        raise ConfigError(f"the fix sets {missing[0]}, which is not an axis of the search: add it to search.axes")
    baseline = {axis.name: option(config, axis.name) for axis in axes}
    points = [baseline, {**baseline, **fix}] if fix else [baseline]
    for point in points:
        for axis in axes:
            place = axis.place(point[axis.name])
            if not 0 <= place <= 1:
                raise ConfigError(
                    f"axis {axis.name} does not hold {point[axis.name]!r}, the value of baseline or fix: widen it"
                )
    return points


def option(config: TrainConfig, name: str) -> Any:
    """Return the value of an option; None where its section is not set."""
    value: Any = config
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _replaced(config: Config, changes: Settings) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            sections.setdefault(head, {})[rest] = value
        else:
            values[head] = value
    for head, inner in sections.items():
        section = getattr(config, head)
        if section is None:
            last = next(iter(inner))
            raise ConfigError(f"{head} is not set in the study's training settings: {head}.{last} cannot be an axis")
        values[head] = _replaced(section, inner)
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def _paths(kind: Any, prefix: str) -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        inner = _dataclass_of(hint)
        if inner is not None:
            yield from _paths(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _dataclass_of(hint: Any) -> Any:
    parts = [hint, *typing.get_args(hint)]
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


def _hint(name: str) -> Any:
    kind: Any = TrainConfig
    *sections, last = name.split(".")
    for section in sections:
        kind = _dataclass_of(typing.get_type_hints(kind)[section])
    return typing.get_type_hints(kind)[last]


def _converted(name: str, value: Any) -> Any:
    """Convert a value to its option's type: YAML writes tuples as lists and 1.0 as 1."""
    hint = _hint(name)
    options = typing.get_args(hint) if typing.get_origin(hint) not in (tuple, Literal) else (hint,)
    for option in options or (hint,):
        origin = typing.get_origin(option)
        if option is type(None) and value is None:
            return None
        if origin is Literal and value in typing.get_args(option):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, bool, str) and type(value) is option:
            return value
    wanted = " or ".join(str(getattr(option, "__name__", option)) for option in options or (hint,))
    raise ConfigError(f"{name}: {value!r} is not {wanted.replace('typing.', '')}")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
