"""Apply a named recipe to settings in Python, as the command line does to those of a job."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from steelray.patchcore.config import RECIPE_FOLDER

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

CANDIDATES = ("surface", "strip", "object")
"""Recipes that `auto` chooses from, the cheapest first."""


def with_recipe(settings: Settings, name: str) -> Settings:
    """Return settings with `recipe` and the sections embedder, coreset and scoring of a recipe by name."""
    recipe: dict[str, dict[str, Any]] = yaml.safe_load((RECIPE_FOLDER / f"{name}.yaml").read_text())
    known = {field.name for field in fields(settings)}
    sections = {
        section: replace(getattr(settings, section), **{option: _tuple(value) for option, value in options.items()})
        for section, options in recipe.items()
        if section in known
    }
    changed: Any = {"recipe": name, **sections}
    return replace(settings, **changed)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
