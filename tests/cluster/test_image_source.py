"""Reading tasks: their slices of the manifest, and objects that cannot be read."""

import os
from pathlib import Path

import pytest

from steelray.cluster.image_source import ImageDatasource, read_image
from steelray.config import ArchiveConfig, DecodeConfig
from steelray.schema import DECODED
from steelray.storage.listing import ImageSet, list_archive
from steelray.storage.location import Location
from tests.cluster.conftest import strip_jpeg


def test_a_file_that_may_not_be_read_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(strip_jpeg(0))
    manifest = list_archive(ArchiveConfig(str(tmp_path)))
    [row] = manifest.to_pylist()

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # as root, which tests may be, every file can be read
    result = read_image(ImageSet(str(tmp_path), manifest, DecodeConfig()), Location(str(tmp_path)), row)
    assert result["status"] == "denied"
    assert "Permission denied" in result["error"]


def test_reading_tasks_cover_the_manifest_once_and_hold_their_own_rows_only(tmp_path: Path) -> None:
    for index in range(10):
        (tmp_path / f"{index}.jpg").write_bytes(strip_jpeg(index))
    manifest = list_archive(ArchiveConfig(str(tmp_path)))
    tasks = ImageDatasource(ImageSet(str(tmp_path), manifest, DecodeConfig()), 4).get_read_tasks(3)
    assert [task.metadata.num_rows for task in tasks] == [4, 4, 2]
    blocks = [block for task in tasks for block in task()]
    assert all(block.schema.equals(DECODED) for block in blocks)
    assert [key for block in blocks for key in block.column("image_key").to_pylist()] == [f"{i}.jpg" for i in range(10)]
