"""The bank's files: what was saved is what is loaded, and nothing else is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steelray.config import ConfigError
from steelray.patchcore import bank as bank_module
from steelray.patchcore.bank import (
    IMAGES_FILE,
    INDEX_FILE,
    INFO_FILE,
    MemoryBank,
    bank_files,
    read_bank,
    read_info,
    read_origins,
    read_vectors,
)
from steelray.patchcore.config import EmbedderConfig, IndexConfig, ScoringConfig
from steelray.patchcore.quantised import index_bank
from steelray.storage.location import Location
from tests.patchcore.samples import STATISTICS, bank_of, gaussian

EMBEDDER = EmbedderConfig(levels=(1, 2), resize_px=(64, 128))
SCORING = ScoringConfig(num_neighbors=3, sigma_px=2.5)


def some_bank(num_vectors: int = 100, dim: int = 7, seed: int = 0, **changes: object) -> MemoryBank:
    origins_N3 = np.random.default_rng(seed).integers(0, 50, (num_vectors, 3)).astype(np.int32)
    settings = {"embedder": EMBEDDER, "scoring": SCORING, "input_size_px": (256, 1600), "origins_N3": origins_N3}
    keys = ("a.jpg", "unicode/Ω <b>.jpg")
    return bank_of(gaussian(num_vectors, dim, seed), image_keys=keys, **settings | changes)


def assert_same(loaded: MemoryBank, saved: MemoryBank) -> None:
    assert np.array_equal(loaded.vectors_ND, saved.vectors_ND)
    assert np.array_equal(loaded.origins_N3, saved.origins_N3)
    assert (loaded.vectors_ND.dtype, loaded.origins_N3.dtype) == (np.float32, np.int32)
    assert loaded.image_keys == saved.image_keys
    assert replace(loaded.info, shards=(), images=saved.info.images) == saved.info


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_bank_comes_back_from_storage(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    location = Location(str(tmp_path) if kind == "folder" else request.getfixturevalue("s3_uri"))
    saved = some_bank()
    assert [name for name, _ in bank_files(saved)] == ["shard-00000.arrow", IMAGES_FILE, INFO_FILE]
    for name, body in bank_files(saved):
        location.write(name, body)
    assert_same(read_bank(location.read, location.uri), saved)


def test_a_large_bank_is_cut_into_files_and_every_slice_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "SHARD_BYTES", 93 * 7 * 4)
    large = some_bank()
    files = dict(bank_files(large))
    assert list(files) == ["shard-00000.arrow", "shard-00001.arrow", IMAGES_FILE, INFO_FILE]
    reads: list[str] = []

    def read(name: str) -> bytes:
        reads.append(name)
        return files[name]

    info = read_info(read, "memory")
    assert [shard.num_rows for shard in info.shards] == [93, 7]
    for start, stop in [(0, 3), (91, 96), (93, 100), (95, 96)]:
        reads.clear()
        assert np.array_equal(read_vectors(read, info, start, stop), large.vectors_ND[start:stop])
        assert len(reads) == len(set(reads)) == (2 if start < 93 < stop else 1)
    reads.clear()
    assert np.array_equal(read_origins(read, info)[0], large.origins_N3)
    assert sorted(reads) == sorted(set(reads))
    assert_same(read_bank(read, "memory"), large)


def test_the_identity_follows_from_vectors_and_settings_alone() -> None:
    bank = some_bank()
    assert some_bank(coreset=replace(STATISTICS, num_rounds=2)).info.bank_id == bank.info.bank_id
    others = [
        some_bank(seed=1),
        some_bank(weights_digest="abd"),
        some_bank(scoring=replace(SCORING, num_neighbors=2)),
        some_bank(embedder=replace(EMBEDDER, levels=(2,))),
        some_bank(embedder=replace(EMBEDDER, tile_px=(64, 96), tile_overlap_px=32)),
    ]
    assert len({other.info.bank_id for other in others} | {bank.info.bank_id}) == 6
    assert others[0].info.model_id == bank.info.model_id
    assert len({other.info.model_id for other in others[1:]} | {bank.info.model_id}) == 5


@pytest.mark.parametrize(
    ("embedder", "scoring", "ids"),
    [
        (EmbedderConfig(), ScoringConfig(), ("f55ae246b783db6a", "6a1fc75d9da7da1b")),
        (
            EmbedderConfig(
                "tf_efficientnet_lite1", levels=(4,), border="inside", tile_px=(256, 512), tile_overlap_px=128
            ),
            ScoringConfig(2, image_score="extreme_value", own_strip_fraction=0.1, test_flips="vertical"),
            ("58d25b562d7ee726", "e576055d26bb8520"),
        ),
        (EMBEDDER, ScoringConfig(image_score="top_mean", top_fraction=0.01), ("1e8c6b7f5dfd8bbf", "3786f7e982e64dbe")),
    ],
)
def test_a_bank_from_before_options_were_added_or_removed_loads_under_its_ids(
    embedder: EmbedderConfig, scoring: ScoringConfig, ids: tuple[str, str]
) -> None:
    bank = bank_of(np.eye(4, dtype=np.float32), embedder=embedder, scoring=scoring)
    assert (bank.info.bank_id, bank.info.model_id) == ids  # as the version before gave them
    files = dict(bank_files(bank))
    raw = json.loads(files[INFO_FILE])
    if embedder.tile_px is None:
        del raw["embedder"]["tile_px"], raw["embedder"]["tile_overlap_px"]
    raw["embedder"] |= {"position": "none", "position_weight": 10.0}
    raw["scoring"] |= {"area_distance": None, "strip_median_weight": 0.0, "normalization": "none"}
    raw["scoring"] |= {"background_level": None, "reweight_neighbors": 9, "own_strip_margin_cells": 2}
    raw["coreset"] |= {"projection_dim": None, "projection_seed": None}
    raw["profile"] = None
    files[INFO_FILE] = json.dumps(raw).encode()
    loaded = read_bank(files.__getitem__, "memory")
    assert_same(loaded, bank)
    assert (loaded.info.bank_id, loaded.info.model_id) == ids


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("embedder", "position", "row"),
        ("scoring", "image_score", "area"),
        ("scoring", "area_distance", 2.0),
        ("scoring", "strip_median_weight", 0.5),
        ("scoring", "normalization", "neighborhood"),
        ("scoring", "background_level", 0),
        ("scoring", "reweight_neighbors", 5),
        ("scoring", "own_strip_margin_cells", 1),
        ("coreset", "projection_dim", 8),
        ("index", "factory", "PQ19"),
        ("index", "factory", "SQ8"),
    ],
)
def test_a_bank_with_a_removed_option_on_is_refused_in_one_line(section: str, option: str, value: object) -> None:
    raw = json.loads(dict(bank_files(some_bank()))[INFO_FILE])
    raw[section][option] = value
    with pytest.raises(ConfigError, match=rf"^here/bank\.json: .*{section}\.{option} .*{value}.*: rebuild the bank$"):
        read_info({INFO_FILE: json.dumps(raw).encode()}.__getitem__, "here")


def test_more_neighbours_than_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_neighbors is 3 but the bank has 2 vectors"):
        some_bank(2)


@pytest.mark.parametrize("name", ["shard-00000.arrow", IMAGES_FILE, INDEX_FILE])
def test_a_missing_or_damaged_file_is_noticed(name: str, tmp_path: Path) -> None:
    location = Location(str(tmp_path))
    files = dict(bank_files(index_bank(some_bank(), IndexConfig(factory="IVF4,Flat"), gaussian(5, 7, 1))))
    damaged = bytearray(files.pop(name))
    damaged[len(damaged) // 2] ^= 1
    for other, body in files.items():
        location.write(other, body)
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        read_bank(location.read, location.uri)
    location.write(name, bytes(damaged))
    with pytest.raises(ConfigError, match=f"{name}: digest differs"):
        read_bank(location.read, location.uri)


def test_no_bank_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no memory bank there"):
        read_info(Location(str(tmp_path)).read, str(tmp_path))
