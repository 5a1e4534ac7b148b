"""Runs the job of every script in jobs/: reads its settings, calls one function, reports how it ended.

Imports neither torch nor ray: `--help` answers at once.
"""

import difflib
import functools
import json
import os
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse
import yaml

from steelray.config import AUTO, CUSTOM, ConfigError, Facts, JobFailed

FORMAT_VARIABLE = "STEELRAY_LOG_FORMAT"
MAX_SHOWN = 10  # options in the short help, `--config` included
PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_tags: dict[str, str] = {}
Config = TypeVar("Config")
jsonargparse.typing.register_type(datetime, datetime.isoformat, datetime.fromisoformat, fail_already_registered=False)


@dataclass(frozen=True)
class Option:
    """A setting of a config class, or a section of settings; `recipe`: settings of it that the command line takes."""

    name: str
    type: Any  # without None
    help: str = ""
    default: Any = SUPPRESS  # MISSING: it must be given
    may_be_null: bool = False
    recipe: tuple[str, ...] | None = None


def tag_lines(**tags: str) -> None:
    """Add these, such as `run_id`, to every JSON line that this process prints from now on."""
    _tags.update(tags)


def progress_line(message: str, level: str = "info") -> str:
    """Return a message in the form in which it is printed."""
    if os.environ.get(FORMAT_VARIABLE) != "json":
        return message
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, **_tags, "message": message}
    return json.dumps(line)


def say(message: str) -> None:
    """Print a line of progress to stderr; stdout is kept for the summary."""
    print(progress_line(message), file=sys.stderr, flush=True)


def run_job(
    config_class: type[Config],
    run: Callable[[Config], Facts],
    description: str,
    argv: Sequence[str] | None = None,
    plan: Callable[[Config], Facts] | None = None,
) -> None:
    """Parse the command line, call `run`, print its summary as one JSON line and end the process.

    Exit code 0: all of the job is done. 1: it failed. 2: the user has to correct something. One line on stderr says
    what is wrong. Settings come from defaults, then `--config FILE`, then the command line; unknown ones are refused.

    Args:
        plan: makes the plan that `--dry-run` shows; `run` is not called then. None: `run` handles `dry_run` itself.
    """
    try:
        config = parse(config_class, description, argv)
        summary = show_plan(config, plan(config)) if plan and getattr(config, "dry_run", False) else run(config)
    except (ConfigError, JobFailed, OSError) as error:  # of a store or a disk: its own message beats a traceback
        line = PASSWORD.sub("://***@", " ".join(str(error).split()))
        print(progress_line(f"error: {line}", level="error"), file=sys.stderr, flush=True)
        if isinstance(error, JobFailed) and error.summary is not None:
            print(json.dumps(error.summary, default=str), flush=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        sys.exit(130)
    print(json.dumps(summary, default=str), flush=True)
    sys.exit(0)


def show_plan(config: Any, plan: Facts) -> dict[str, Any]:
    """Return the summary of a dry run: the resolved settings and the plan."""
    return {"dry_run": True, "config": asdict(config), "plan": plan}


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def parse(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """Return the job's config from a command line (None: the process's own); print the help and exit on `--help`.

    A config class names in `FIRST` the options of the short help, and in `RECIPES` its sections that are given as a
    YAML file or as a mapping in the job's own, each with the options of it that the command line takes all the same.
    One with a setting `recipe` names in `RECIPE_FOLDER` where recipes lie: settings that every other place overrides.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if asked := re.search(r"^(?:-h|--help)(?:[\n=-](all))?$", "\n".join(words), re.MULTILINE):
        _print_help(config_class, description, everything=asked[1] is not None)
        sys.exit(0)
    given: dict[str, Any] = {}
    for name, value in _split(words, _command_line(config_class)):
        given |= _read_file(Path(value), config_class) if name == "config" else _flatten({name: value}, config_class)
    if (folder := getattr(config_class, "RECIPE_FOLDER", None)) is not None:
        given = _with_recipe(given, folder, config_class)
    if any(PASSWORD.search(str(value)) for value in given.values()):  # it would be printed, and stored in run.json
        raise ConfigError("a URI holds a password: give it in the environment, such as AWS_* or MLFLOW_TRACKING_*")
    config: Config = _construct(config_class, given)
    return config


def _with_recipe(given: dict[str, Any], folder: Path, config_class: type) -> dict[str, Any]:
    """Add the settings of the recipe, by option, that the command line and its file leave open.

    Without a recipe, settings that one would choose count as they are given: the recipe is `custom`.
    """
    recipes = {file.stem: _read_file(file, config_class) for file in sorted(folder.glob("*.yaml"))}
    by_hand = sorted({option for recipe in recipes.values() for option in recipe} & given.keys())
    name = given.get("recipe", CUSTOM if by_hand else _fields(config_class)["recipe"].default)
    if name == AUTO and by_hand:
        raise ConfigError(f"recipe {AUTO} chooses {', '.join(by_hand)}: leave that out, or set --recipe {CUSTOM}")
    if name in (AUTO, CUSTOM):
        return {**given, "recipe": name}
    if name not in recipes and not name.endswith((".yaml", ".yml")):
        raise ConfigError(f"recipe: no {name!r}: take {AUTO}, {CUSTOM}, {', '.join(recipes)}, or give a YAML file")
    with _errors_of("recipe"):
        return (recipes.get(name) or _read_file(Path(name), config_class)) | {**given, "recipe": name}


def _split(words: list[str], options: dict[str, Option]) -> Iterator[tuple[str, str]]:
    """Yield the options of a command line; dashes count as underscores, switches need no value."""
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"unrecognized argument: {word}; settings are given as --name value")
        name = name[2:].replace("-", "_")
        if name not in options:
            raise ConfigError(f"unknown option --{name}{_nearest(name, options, '--')}")
        following = words[0] if words and not words[0].startswith("--") else None
        if not equals and options[name].type is bool and str(following).lower() not in ("true", "false"):
            value = "true"
        elif not equals and following is None:
            raise ConfigError(f"--{name} needs a value")
        elif not equals:
            value = words.pop(0)
        yield name, value


def _nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return a question that names the most similar setting, or how to see all of them where none is similar."""
    ends = {known.rpartition(".")[2]: known for known in reversed(list(names))}
    close = difflib.get_close_matches(name, list(names), 1, cutoff=0.8)
    # a section's name must not make its settings alike: compare what stands behind it
    close += [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], list(ends), 1)]
    return f": did you mean {prefix}{close[0]}?" if close else " (--help all shows every option)"


def _read_file(file: Path, config_class: type) -> dict[str, Any]:
    """Return the settings of a YAML file by option."""
    with _errors_of(str(file)):
        try:
            values = jsonargparse.get_loader("yaml")(file.read_text())
        except OSError as error:
            raise ConfigError(str(error.strerror).lower()) from None
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"the file is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict) or not values:
            raise ConfigError("no settings (name: value) in the file")
        return _flatten(values, config_class, file.parent)


def _flatten(values: dict[str, Any], config_class: type, folder: Path = Path(), section: str = "") -> dict[str, Any]:
    """Return nested settings by option, checked; recipe files are relative to `folder`, absent sections left out."""
    options, own, found = _options(config_class), _fields(config_class), dict[str, Any]()
    for key, value in values.items():
        name = f"{section}{key}"
        below = [option.removeprefix(f"{name}.") for option in options if option.startswith(f"{name}.")]
        if name in options:
            found[name] = _checked(value, options[name])
        elif isinstance(value, str) and name in own and own[name].recipe is not None:
            with _errors_of(name):
                recipe = _read_file(folder / value, own[name].type)
                found |= {f"{name}.{setting}": one for setting, one in recipe.items()}
        elif isinstance(value, dict) and value:
            found |= _flatten(value, config_class, folder, f"{name}.")
        elif not below:
            raise ConfigError(f"unknown setting {name}{_nearest(name, options)}")
        elif value not in (None, {}):
            raise ConfigError(f"{name} has settings below it, such as {', '.join(below[:3])}; it is no setting itself")
    return found


def _checked(value: Any, option: Option) -> Any:
    """Return a value in its option's type; lists need no brackets, and sections in them become configs."""
    if option.may_be_null and value in (None, "null"):
        return None
    if get_origin(option.type) in (tuple, list):
        item_type = get_args(option.type)[0]
        if isinstance(value, str) and not value.startswith("["):
            value = [item.strip() for item in value.split(",")] if item_type is str else f"[{value}]"
        elif isinstance(value, list) and is_dataclass(item_type):
            value = [_item(item, item_type, f"{option.name}[{place}]") for place, item in enumerate(value)]
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{option.name}", type=option.type)
    try:
        return parser.instantiate(parser.parse_object({option.name: value}))[option.name]
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        line = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(str(error).split()))
        line = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", line)
        raise ConfigError(re.sub(r'^Parser key "([^"]*)":', r"\1:", line)) from None


def _item(value: Any, config_class: Any, place: str) -> Any:
    with _errors_of(place):
        if not isinstance(value, dict):
            return value
        given = _flatten(value, config_class)
        folder = getattr(config_class, "RECIPE_FOLDER", None)
        return _construct(config_class, given if folder is None else _with_recipe(given, folder, config_class))


def _construct(config_class: type, values: dict[str, Any], section: str = "", default: Any = None) -> Any:
    """Return a config of values by option; a setting without a value is that of `default`."""
    options = _options(config_class, section, default)
    missing = [name for name, option in options.items() if option.default is MISSING and name not in values]
    if missing:
        raise ConfigError(f"required: {', '.join(missing)}")
    arguments = dict(vars(default)) if isinstance(default, config_class) else {}
    for field in _fields(config_class).values():
        name = f"{section}{field.name}"
        if name in values:
            arguments[field.name] = values[name]
        elif field.default is MISSING or any(given.startswith(f"{name}.") for given in values):
            with _errors_of("" if field.recipe is None else name):
                inner = getattr(default, field.name, field.default)
                arguments[field.name] = _construct(field.type, values, f"{name}.", inner)
    return config_class(**arguments)


@contextmanager
def _errors_of(place: str) -> Iterator[None]:
    """Begin the line of an error with its place, unless that is empty."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from None


@functools.cache
def _fields(config_class: type) -> dict[str, Option]:
    """Return a config class's own settings and sections; a recipe has no default, since it is given as a whole."""
    texts = [docstring_parser.parse_from_object(one) for one in reversed(config_class.__mro__[:-1])]
    helps = {param.arg_name: " ".join((param.description or "").split()) for text in texts for param in text.params}
    hints, recipes = get_type_hints(config_class), getattr(config_class, "RECIPES", {})
    found: dict[str, Option] = {}
    for field in fields(config_class):
        name, kinds = field.name, get_args(hints[field.name])
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        default = None if name in recipes and default is not MISSING else default
        if name == "recipe":  # in Python a config is what its settings say; a job begins with a recipe
            default = getattr(config_class, "DEFAULT_RECIPE", default)
        kind = kinds[0] if NoneType in kinds else hints[name]
        found[name] = Option(name, kind, helps.get(name, ""), default, NoneType in kinds, recipes.get(name))
    return found


def _options(config_class: Any, section: str = "", default: Any = None, optional: bool = False) -> dict[str, Option]:
    """Return every setting by name, those of sections included; `default` has the section's own defaults."""
    found: dict[str, Option] = {}
    for field in _fields(config_class).values():
        name, own = f"{section}{field.name}", getattr(default, field.name, field.default)
        if is_dataclass(field.type):
            found |= _options(field.type, f"{name}.", own, optional or own is None)
        else:
            found[name] = replace(field, name=name, default=SUPPRESS if optional and own is MISSING else own)
    return found


def _command_line(config_class: type) -> dict[str, Option]:
    """Return the options that the command line takes, by name: of a recipe, its file and the settings that it names."""
    found = {"config": Option("config", str, "YAML file of settings, such as one of jobs/configs/.")}
    options = _options(config_class)
    for name, field in _fields(config_class).items():
        if field.recipe is None:
            found |= {one: options[one] for one in options if one.partition(".")[0] == name}
        else:
            text = f"{field.help} A YAML file; or settings below `{name}` in --config.".strip()
            found[name] = Option(name, str, text, field.default or SUPPRESS)
            found |= {one: replace(options[one], default=SUPPRESS) for one in [f"{name}.{end}" for end in field.recipe]}
    return found


def _print_help(config_class: type, description: str, everything: bool) -> None:
    options = _command_line(config_class)
    needed = [name for name, option in options.items() if option.default is MISSING]
    first = ["config", *(getattr(config_class, "FIRST", ()) or dict.fromkeys([*needed, *list(options)[1:]]))]
    usage = " ".join(["%(prog)s", *(f"--{name} VALUE" for name in needed), "[--option VALUE ...]"])
    epilog = None if everything else "--help all shows every option"
    parser = jsonargparse.ArgumentParser(usage=usage, epilog=epilog, add_help=False)
    for option in [options[name] for name in (options if everything else first[:MAX_SHOWN])]:
        more: dict[str, Any] = {"required": True} if option.default is MISSING else {"default": option.default}
        if option.type is not bool and get_origin(option.type) is not Literal:
            more["metavar"] = option.name.rpartition(".")[2].upper()
        parser.add_argument(f"--{option.name}", type=option.type, help=option.help, **more)
    parser.add_argument("-h", "--help", action="help", help="Show the first options, or with `--help all` every one.")
    print(re.sub(r" *\\\n *", " ", description.strip()), end="\n\n")
    parser.print_help()
