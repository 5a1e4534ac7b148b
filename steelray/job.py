"""What every entry point in jobs/ does the same way: parse, run one function, say how it ended.

Imports neither torch nor ray: `--help` answers at once.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import jsonargparse

from steelray.config import ConfigError, JobFailed

FORMAT_VARIABLE = "STEELRAY_LOG_FORMAT"
_tags: dict[str, str] = {}


def tag_lines(**tags: str) -> None:
    """From now on every JSON line of this process carries these, such as `run_id`."""
    _tags.update(tags)


def progress_line(message: str, level: str = "info") -> str:
    """A message as it is to be printed."""
    if os.environ.get(FORMAT_VARIABLE) != "json":
        return message
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, **_tags, "message": message}
    return json.dumps(line)


Config = TypeVar("Config")


def run_job(
    config_class: type[Config],
    run: Callable[[Config], dict[str, Any]],
    description: str,
    argv: Sequence[str] | None = None,
) -> None:
    """Parses the command line, calls `run`, prints its summary as one JSON line and ends the process.

    Exit code 0: all of the job is done. 1: it failed. 2: the user has to correct something. One line on stderr says
    what is wrong. Settings come from defaults, then `--config FILE`, then the command line; unknown ones are refused.
    """
    try:
        summary = run(parse(config_class, description, argv))
    except ConfigError as error:
        print(progress_line(f"error: {error}", level="error"), file=sys.stderr, flush=True)
        _end(2)
    except JobFailed as failure:
        print(progress_line(f"error: {failure}", level="error"), file=sys.stderr, flush=True)
        if failure.summary is not None:
            print(json.dumps(failure.summary, default=str), flush=True)
        _end(1)
    except OSError as error:  # the store, or a disk: what it says is clearer than where it was said
        print(progress_line(f"error: {error}", level="error"), file=sys.stderr, flush=True)
        _end(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        _end(130)
    print(json.dumps(summary, default=str), flush=True)
    _end(0)


def parse(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """The job's config from a command line (None: the process's own). Raises `ConfigError`, or exits on `--help`."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.typing.register_type(
        datetime, datetime.isoformat, datetime.fromisoformat, fail_already_registered=False
    )
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False, default_env=False)
    parser.add_argument("--config", action="config", help="YAML file of settings, such as one of jobs/configs/.")
    parser.add_class_arguments(config_class, fail_untyped=True)
    flags = {f.name for f in dataclasses.fields(config_class) if f.type in (bool, "bool")}  # type: ignore[arg-type]
    try:
        namespace = parser.parse_args(_normalized(sys.argv[1:] if argv is None else argv, flags))
        values = parser.instantiate(namespace)
        names = [f.name for f in dataclasses.fields(config_class)]  # type: ignore[arg-type]
        return config_class(**{name: values[name] for name in names})
    except ConfigError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError, OSError) as error:
        raise ConfigError(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    """What jsonargparse says over many lines: which setting, what was expected, what was given."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    reasons = [line[2:] for line in lines if line.startswith("- ") and "NoneType" not in line]
    if "Union subtypes" in text and reasons:
        key = re.match(r'Parser key "[^"]*":', text)
        given = "" if "Namespace" in lines[-1] else f". {lines[-1]}"
        text = f"{key[0] if key else ''} {'; or '.join(reasons)}{given}"
    text = text.replace("Unexpected config:", "config: no settings (name: value) in the file")
    text = text.replace("Problems parsing config:", "config: the file is not YAML:")
    text = re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", text)
    return re.sub(r'^Parser key "([^"]*)":', r"\1:", text).strip()


def _normalized(argv: Sequence[str], flags: set[str]) -> list[str]:
    """`--dry-run` is `--dry_run=true`: options may be written with dashes, switches without a value."""
    result = []
    for position, word in enumerate(argv):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            following = argv[position + 1] if position + 1 < len(argv) else "--"
            if name in flags and not equals and following.lower() not in ("true", "false"):
                equals, value = "=", "true"
            word = f"--{name}{equals}{value}"
        result.append(word)
    return result


def say(message: str) -> None:
    """A line of progress; stdout is kept for the summary."""
    print(progress_line(message), file=sys.stderr, flush=True)


def show_plan(config: Any, plan: dict[str, Any]) -> dict[str, Any]:
    """What `--dry-run` prints: the resolved settings and the plan."""
    return {"dry_run": True, "config": dataclasses.asdict(config), "plan": plan}


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        sys.exit(0)
    sys.exit(code)


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
