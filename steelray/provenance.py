"""run.json: settings, versions, hardware and times of a run. Holds no environment variables, so no secrets."""

import json
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import steelray

FORMAT_VERSION = 1
PACKAGES = ("ray", "torch", "torchvision", "timm", "faiss-gpu", "faiss-cpu", "openvino", "numpy", "pyarrow", "boto3")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    versions = {"steelray": steelray.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Return the commit of the source tree, with `+` if it has changes; None outside its checkout."""
    source = Path(steelray.__file__)
    # an installed package may lie inside the checkout of another project
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    return _git(source.parent, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def hardware() -> dict[str, str | int | None]:
    """Return CPU model, number of cores and GPU of the driver's machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    import torch

    from steelray.job import num_cores

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": model, "cores": num_cores(), "gpu": gpu}


def run_record(config: Any, started_at: datetime, **facts: Any) -> bytes:
    """Build the bytes of run.json.

    Args:
        config: the job's resolved config dataclass.
        facts: further entries, such as digests, plan and counts.
    """
    ended_at = datetime.now(UTC)
    record = {
        "format_version": FORMAT_VERSION,
        "config": asdict(config),
        "git_commit": git_commit(),
        "packages": package_versions(),
        "hardware": hardware(),
        "started_at": started_at.isoformat(timespec="milliseconds"),
        "ended_at": ended_at.isoformat(timespec="milliseconds"),
        "duration_s": round((ended_at - started_at).total_seconds(), 3),
        **facts,
    }
    return json.dumps(record, indent=2, default=str).encode()
