"""Runs the benchmarks, each case in a process of its own, and writes the table of benchmarks/README.md.

python -m benchmarks.run            all cases; those that finished in the last hours are not run again
python -m benchmarks.run --quick    small ones, in minutes; leaves the README's table alone
python -m benchmarks.run --only coreset search/placements-20k --force

One JSON object per case is printed and kept: benchmarks/results/*.json, or .bench/quick/*.json. Nothing else should run
on the machine meanwhile.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, SCRATCH, environment, load_average, rounded
from benchmarks.table import write_readme

BENCHMARKS = ("coreset", "search", "pipeline", "growth")
APART = ("nightly", "nodes")
"""Run only where `--only` names them: each takes ten minutes."""
RESULTS = ROOT / "benchmarks" / "results"
MAX_AGE_H = 12.0
CASE_TIMEOUT_S = 1500


def names(quick: bool, only: Sequence[str]) -> list[str]:
    """`benchmark/case`, in the order in which they run. Raises `SystemExit` for an unknown name in `only`."""
    every = []
    for benchmark in (*BENCHMARKS, *APART):
        module = importlib.import_module(f"benchmarks.{benchmark}")
        every += [f"{benchmark}/{case}" for case in (module.QUICK_CASES if quick else module.CASES)]
    unknown = [name for name in only if not any(name in (each, each.partition("/")[0]) for each in every)]
    if unknown:
        raise SystemExit(f"unknown benchmark {unknown[0]}; there are {', '.join(every)}")
    return [
        each
        for each in every
        if (each in only or each.partition("/")[0] in only if only else each.partition("/")[0] in BENCHMARKS)
    ]


def result_file(name: str, quick: bool) -> Path:
    return (SCRATCH / "quick" if quick else RESULTS) / f"{name.replace('/', '-')}.json"


def run_case(name: str, quick: bool) -> None:
    """Runs one case in this process and writes its file."""
    benchmark, _, case = name.partition("/")
    module = importlib.import_module(f"benchmarks.{benchmark}")
    load, start_s = load_average(), time.perf_counter()
    result = rounded((module.QUICK_CASES if quick else module.CASES)[case]())
    took_s = round(time.perf_counter() - start_s, 1)
    record: dict[str, Any] = {
        "benchmark": benchmark, "case": case, **environment(), "load_average_before": load, "result": result,
        "took_s": took_s,
    }  # fmt: skip
    path = result_file(name, quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small cases, in minutes")
    parser.add_argument("--force", action="store_true", help="also what finished a short while ago")
    parser.add_argument("--max_age_h", type=float, default=MAX_AGE_H, help="how long a result counts as fresh")
    parser.add_argument("--only", nargs="*", default=[], help="benchmarks, or benchmark/case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.quick)
        return 0
    SCRATCH.mkdir(exist_ok=True)
    failed = []
    for name in names(options.quick, options.only):
        path = result_file(name, options.quick)
        age_h = (time.time() - path.stat().st_mtime) / 3600 if path.exists() else float("inf")
        if age_h < options.max_age_h and not options.force:
            print(f"{name}: {age_h:.1f} h old, not run again", file=sys.stderr, flush=True)
        else:
            print(f"{name}: running", file=sys.stderr, flush=True)
            if not _in_its_own_process(name, options.quick):
                failed.append(name)
                continue
        print(json.dumps(json.loads(path.read_text())), flush=True)
    if not options.quick:
        write_readme(ROOT / "benchmarks" / "README.md", RESULTS)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _in_its_own_process(name: str, quick: bool) -> bool:
    command = [sys.executable, "-m", "benchmarks.run", "--case", name, *(["--quick"] if quick else [])]
    quiet = {**os.environ, "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=CASE_TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        print(f"{name}: not finished after {CASE_TIMEOUT_S} s", file=sys.stderr)
        return False
    if done.returncode != 0:
        print(f"{name}: failed\n{done.stderr[-3000:]}", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
