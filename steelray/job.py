"""Runs the job of every script in jobs/: reads its settings, calls one function, reports how it ended.

Imports neither torch nor ray: `--help` answers at once.
"""

import argparse
import dataclasses
import difflib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
import jsonargparse
import yaml

from steelray.config import ConfigError, Facts, JobFailed

FORMAT_VARIABLE = "STEELRAY_LOG_FORMAT"
MAX_SHOWN = 10
"""Options in the short help, `--config` included."""
PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_tags: dict[str, str] = {}
_started_at: datetime | None = None

Config = TypeVar("Config")
Given = list[tuple[str, Any]]
"""Names and values of options, in the order in which they were given; `config` has a file's path or its content."""


@dataclass(frozen=True)
class Option:
    """A setting that the command line takes."""

    name: str
    type: Any
    help: str
    default: Any
    """`MISSING`: it must be given. `argparse.SUPPRESS`: its section is absent unless one of its options is given."""


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
    global _started_at
    _started_at = datetime.now(UTC)
    try:
        config = parse(config_class, description, argv)
        dry = plan is not None and getattr(config, "dry_run", False)
        summary = show_plan(config, plan(config)) if plan is not None and dry else run(config)
    except ConfigError as error:
        _fail(error, 2)
    except JobFailed as failure:
        _fail(failure, 1, failure.summary)
    except OSError as error:  # the store or a disk: its own message is clearer than a traceback
        _fail(error, 1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        sys.exit(130)
    print(json.dumps(summary, default=str), flush=True)
    sys.exit(0)


def _fail(error: Exception, code: int, summary: Facts | None = None) -> typing.NoReturn:
    line = PASSWORD.sub("://***@", " ".join(str(error).split()))
    print(progress_line(f"error: {line}", level="error"), file=sys.stderr, flush=True)
    if summary is not None:
        print(json.dumps(summary, default=str), flush=True)
    sys.exit(code)


def started_at() -> datetime:
    """Return when `run_job` started this process's job; now, outside of one."""
    return _started_at or datetime.now(UTC)


def show_plan(config: Any, plan: Facts) -> dict[str, Any]:
    """Return the summary of a dry run: the resolved settings and the plan."""
    return {"dry_run": True, "config": dataclasses.asdict(config), "plan": plan}


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def parse(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """Return the job's config from a command line (None: the process's own); print the help and exit on `--help`.

    A config class names in `FIRST` the options of the short help, and in `RECIPES` its sections that are given as a
    YAML file or as a mapping in the job's own, each with the options of it that the command line takes all the same.

    Raises:
        ConfigError: a setting is unknown, missing or wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    asked = [place for place, word in enumerate(words) if word.partition("=")[0] in ("-h", "--help", "--help-all")]
    if asked:
        rest = " ".join(words[asked[0] : asked[0] + 2]).replace("=", " ").replace("-all", " all").split()
        _print_help(config_class, description, everything=rest[1:2] == ["all"])
        sys.exit(0)
    return _parse_given(config_class, _given(words, config_class))


def _parse_given(config_class: type[Config], given: Given) -> Config:
    """Return the config that these options make; later ones overrule earlier ones."""
    recipes = _recipes(config_class)
    of_recipes: dict[str, Given] = {name: [] for name in recipes}
    words = []
    for name, value in given:
        section, _, below = name.partition(".")
        if section in recipes:
            of_recipes[section].append((below or "config", value))
        elif name == "config":
            values = _read_file(value, config_class) if isinstance(value, str) else value
            for section in recipes.keys() & values.keys():
                of_recipes[section].append(("config", values[section]))
            rest = {name: value for name, value in values.items() if name not in recipes}
            words += [f"--config={json.dumps(rest, default=str)}"] if rest else []
        else:
            words.append(f"--{name}={value}")
    if any(PASSWORD.search(word) for word in words):  # it would be printed, and stored in run.json
        raise ConfigError("a URI holds a password: give it in the environment, such as AWS_* or MLFLOW_TRACKING_*")
    try:
        parser = _parser(list(_options(config_class)))
        values = parser.instantiate(parser.parse_args(words)).as_dict()
        values.pop("config", None)
    except ConfigError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_one_line(error)) from None
    for section, inner_given in of_recipes.items():
        try:
            if inner_given or section in _required(config_class):
                values[section] = _parse_given(recipes[section], inner_given)
        except ConfigError as error:
            raise ConfigError(f"{section}: {error}") from None
    return _construct(config_class, values)


def _construct(config_class: type[Config], values: dict[str, Any], prefix: str = "") -> Config:
    """Return a config and its sections from parsed values."""
    missing = [f"{prefix}{name}" for name in _required(config_class) if name not in values]
    if missing:
        raise ConfigError(f"required: {', '.join(missing)}")
    for name, section in _sections(config_class).items():
        if isinstance(values.get(name), dict):
            values[name] = _construct(section, values[name], f"{prefix}{name}.")
    return config_class(**values)


def _given(words: Sequence[str], config_class: type) -> Given:
    """Return the options of a command line; dashes count as underscores, switches need no value, lists no brackets."""
    options, given, rest = _command_line_options(config_class), Given(), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--"):
            raise ConfigError(f"unrecognized argument: {word}; settings are given as --name value")
        if name != "config" and name not in options:
            raise ConfigError(f"unknown option --{name}{_nearest(name, options, '--')}")
        hint = str if name == "config" else options[name].type
        if not equals:
            following = rest[0] if rest and not rest[0].startswith("--") else None
            if hint is bool and (following is None or following.lower() not in ("true", "false")):
                value = "true"
            elif following is None:
                raise ConfigError(f"--{name} needs a value")
            else:
                value = rest.pop(0)
        given.append((name, _bracketed(value, hint)))
    return given


def _bracketed(value: str, hint: Any) -> str:
    """Return `2,3` as `[2, 3]` where a list is expected."""
    kinds = [hint, *typing.get_args(hint)]
    lists = [kind for kind in kinds if typing.get_origin(kind) in (tuple, list)]
    if not lists or value.startswith("[") or (value == "null" and type(None) in kinds):
        return value
    if typing.get_args(lists[0])[0] is str:
        return json.dumps([item.strip() for item in value.split(",")])
    return f"[{value}]"


def _nearest(name: str, names: Iterable[str], dashes: str = "") -> str:
    """Return a question that names the most similar setting, or how to see all of them where none is similar."""
    close = difflib.get_close_matches(name, list(names), 1, cutoff=0.8)
    if not close:  # a section's name must not make its settings alike: compare what stands behind it
        ends = {known.rpartition(".")[2]: known for known in reversed(list(names))}
        close = [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], list(ends), 1)]
    return f": did you mean {dashes}{close[0]}?" if close else " (--help all shows every option)"


def _read_file(file: str, config_class: type) -> dict[str, Any]:
    """Return the settings of a YAML file, those of recipe files that it names included."""
    try:
        values = jsonargparse.get_loader("yaml")(Path(file).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: the file is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{file}: no settings (name: value) in the file")
    return _checked(values, config_class, file)


def _checked(values: dict[str, Any], config_class: type, file: str, prefix: str = "") -> dict[str, Any]:
    """Return a file's settings with recipe files read and absent sections left out, if all of their names are known."""
    hints, result = typing.get_type_hints(config_class), {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            known = [f"{prefix}{one}" for one in (*hints, *(option.name for option in _options(config_class)))]
            raise ConfigError(f"{file}: unknown setting {name}{_nearest(name, known)}")
        section = _section(hints[key])
        element = next((_section(one) for one in typing.get_args(hints[key])), None)
        if section is not None and value is None:
            continue
        if key in _recipes(config_class) and isinstance(value, str):
            value = _read_file(str(Path(file).parent / value), section or config_class)
        elif section is not None and not isinstance(value, dict):
            some = ", ".join(list(typing.get_type_hints(section))[:3])
            raise ConfigError(f"{file}: {name} has settings below it, such as {some}; it is no setting itself")
        elif section is not None:
            value = _checked(value, section, file, f"{name}.")
        elif element is not None and isinstance(value, list):
            value = [
                _checked(item, element, file, f"{name}[{place}].") if isinstance(item, dict) else item
                for place, item in enumerate(value)
            ]
        result[key] = value
    return result


def _one_line(error: Exception) -> str:
    """Return jsonargparse's message of many lines as one: the setting, what was expected, what was given."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    reasons = [line[2:] for line in lines if line.startswith("- ") and "NoneType" not in line]
    if "Union subtypes" in text and reasons:
        key = re.match(r'Parser key "[^"]*":', text)
        given = "" if "Namespace" in lines[-1] else f". {lines[-1]}"
        text = f"{key[0] if key else ''} {'; or '.join(reasons)}{given}"
    text = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", text)
    return re.sub(r'^(?:Parser key "config": )?Parser key "([^"]*)":', r"\1:", text).strip()


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Leaves the lines of the description as they are, but for commands that go on in the next line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return re.sub(r" *\\\n *", " ", text.strip()) + "\n"


def _parser(options: Sequence[Option], grouped: bool = True, **texts: Any) -> jsonargparse.ArgumentParser:
    jsonargparse.typing.register_type(
        datetime, datetime.isoformat, datetime.fromisoformat, fail_already_registered=False
    )
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        default_env=False,
        print_config=None,
        add_help=False,
        formatter_class=_HelpFormatter,
        **texts,
    )
    parser.add_argument("--config", action="config", help="YAML file of settings, such as one of jobs/configs/.")
    groups: dict[str, Any] = {"": parser}
    for option in options:
        section = option.name.rpartition(".")[0] if grouped else ""
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        kwargs: dict[str, Any] = {"required": True} if option.default is MISSING else {"default": option.default}
        if option.type is not bool and typing.get_origin(option.type) is not typing.Literal:
            kwargs["metavar"] = option.name.rpartition(".")[2].upper()
        groups[section].add_argument(f"--{option.name}", type=option.type, help=option.help, **kwargs)
    return parser


def _print_help(config_class: type, description: str, everything: bool) -> None:
    options = _command_line_options(config_class)
    needed = [name for name, option in options.items() if option.default is MISSING]
    first = getattr(config_class, "FIRST", ()) or (*needed, *(name for name in options if name not in needed))
    shown = list(options.values()) if everything else [options[name] for name in first[: MAX_SHOWN - 1]]
    usage = " ".join(["%(prog)s", *(f"--{name} VALUE" for name in needed), "[--option VALUE ...]"])
    epilog = None if everything else "--help all shows every option"
    parser = _parser(shown, grouped=everything, description=description, usage=usage, epilog=epilog)
    parser.add_argument("-h", "--help", action="help", help="Show the first options, or with `--help all` every one.")
    parser.print_help()


# --- the options of a config class


def _options(config_class: type, prefix: str = "", default: Any = MISSING) -> Iterator[Option]:
    """Yield an option per setting, also those in sections but not those of recipes; `default`: the section's own."""
    hints, texts = typing.get_type_hints(config_class), _texts(config_class)
    for field in dataclasses.fields(config_class):
        own = field.default_factory() if field.default_factory is not MISSING else field.default
        own = argparse.SUPPRESS if default == argparse.SUPPRESS else getattr(default, field.name, own)
        name, section = f"{prefix}{field.name}", _section(hints[field.name])
        if field.name in _recipes(config_class):
            continue
        if section is not None:
            yield from _options(section, f"{name}.", argparse.SUPPRESS if own is None else own)
        else:
            yield Option(name, hints[field.name], texts.get(field.name, ""), own)


def _texts(config_class: type) -> dict[str, str]:
    """Return the docstring of every setting that has one, inherited settings included."""
    classes = reversed(config_class.__mro__[:-1])
    found = [param for one in classes for param in docstring_parser.parse_from_object(one).params]
    return {text.arg_name: " ".join((text.description or "").split()) for text in found}


def _command_line_options(config_class: type) -> dict[str, Option]:
    """Return every option that the command line takes, by name."""
    found = {option.name: option for option in _options(config_class)}
    for name, recipe in _recipes(config_class).items():
        text = f"{_texts(config_class).get(name, '')} A YAML file; or settings below `{name}` in --config.".strip()
        found[name] = Option(name, str, text, MISSING if name in _required(config_class) else argparse.SUPPRESS)
        direct = [f"{name}.{one}" for one in getattr(config_class, "RECIPES")[name]]  # noqa: B009
        inner = [option for option in _options(recipe, f"{name}.") if option.name in direct]
        found |= {one.name: dataclasses.replace(one, default=argparse.SUPPRESS) for one in inner}
    return found


def _section(hint: Any) -> type | None:
    """Return the config class of a nested or optional section; None for a setting."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(hint) if one is not type(None)]
        hint = inner[0] if len(inner) == 1 else None
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _sections(config_class: type) -> dict[str, type]:
    hints = typing.get_type_hints(config_class)
    found = {field.name: _section(hints[field.name]) for field in dataclasses.fields(config_class)}
    return {name: section for name, section in found.items() if section is not None}


def _recipes(config_class: type) -> dict[str, type]:
    return {name: _sections(config_class)[name] for name in getattr(config_class, "RECIPES", {})}


def _required(config_class: type) -> list[str]:
    return [f.name for f in dataclasses.fields(config_class) if f.default is MISSING and f.default_factory is MISSING]
