"""The disk with the results is full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import FaultyPlant

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_run_continues_when_there_is_room(
    plant_in_store: FaultyPlant, small_disk: Path
) -> None:
    results_uri = f"{small_disk}/results"
    arguments = ("--save_anomaly_maps", "true")  # 5 MB of them
    ending = plant_in_store.run(results_uri, *arguments)
    assert ending.code == 1
    assert "No space left on device" in ending.complaint
    assert not list(small_disk.rglob("*.part")), "no half-written files stay"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    plant_in_store.continue_after(ending, results_uri, *arguments)
