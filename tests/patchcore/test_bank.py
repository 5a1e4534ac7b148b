"""The bank's files: what was saved is what is loaded, and nothing else is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steelray.config import ConfigError
from steelray.demo.synthetic import make_strip
from steelray.imaging.decode import decode
from steelray.patchcore import bank as bank_module
from steelray.patchcore.bank import (
    IMAGES_FILE,
    INFO_FILE,
    CoresetStatistics,
    MemoryBank,
    bank_files,
    make_bank,
    read_bank,
    read_info,
    read_origins,
    read_vectors,
)
from steelray.patchcore.config import EmbedderConfig, ScoringConfig
from steelray.patchcore.index import IndexShard, LocalSearch
from steelray.patchcore.portable_embedder import Embedder
from steelray.patchcore.scorer import PatchCoreScorer
from steelray.storage.location import Location

EMBEDDER = EmbedderConfig(levels=(1, 2), resize_px=(64, 128))
SCORING = ScoringConfig(num_neighbors=3, sigma_px=2.5)
STATISTICS = CoresetStatistics(10_000, 1.25, 3, 0.5)


def some_bank(num_vectors: int = 100, dim: int = 7, seed: int = 0, **changes: object) -> MemoryBank:
    rng = np.random.default_rng(seed)
    settings: dict[str, object] = {
        "embedder": EMBEDDER,
        "weights_digest": "abc",
        "scoring": SCORING,
        "input_size_px": (256, 1600),
        "coreset": STATISTICS,
    }
    return make_bank(
        rng.standard_normal((num_vectors, dim)).astype(np.float32),
        rng.integers(0, 50, (num_vectors, 3)).astype(np.int32),
        ("a.jpg", "unicode/Ω <b>.jpg"),
        **{**settings, **changes},  # type: ignore[arg-type]
    )


def assert_same(loaded: MemoryBank, saved: MemoryBank) -> None:
    assert np.array_equal(loaded.vectors_ND, saved.vectors_ND)
    assert np.array_equal(loaded.origins_N3, saved.origins_N3)
    assert (loaded.vectors_ND.dtype, loaded.origins_N3.dtype) == (np.float32, np.int32)
    assert loaded.image_keys == saved.image_keys
    assert replace(loaded.info, shards=(), images=saved.info.images) == saved.info


@pytest.fixture(scope="module")
def large() -> MemoryBank:
    """A bank whose vectors fill a file and a part of a second."""
    dim = 200_000
    return some_bank(bank_module.SHARD_BYTES // (4 * dim) + 7, dim)


def test_a_bank_comes_back_whole() -> None:
    saved = some_bank()
    files = dict(bank_files(saved))
    assert list(files) == ["shard-00000.arrow", IMAGES_FILE, INFO_FILE]
    assert_same(read_bank(files.__getitem__, "memory"), saved)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_bank_comes_back_from_storage(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    location = Location(str(tmp_path) if kind == "folder" else request.getfixturevalue("s3_uri"))
    saved = some_bank()
    for name, body in bank_files(saved):
        location.write(name, body)
    assert_same(read_bank(location.read, location.uri), saved)


def test_a_large_bank_is_cut_into_files_and_every_slice_can_be_read(large: MemoryBank) -> None:
    files = dict(bank_files(large))
    assert list(files) == ["shard-00000.arrow", "shard-00001.arrow", IMAGES_FILE, INFO_FILE]
    reads: list[str] = []

    def read(name: str) -> bytes:
        reads.append(name)
        return files[name]

    info = read_info(read, "memory")
    first = info.shards[0].num_rows
    assert [shard.num_rows for shard in info.shards] == [first, 7]
    for start, stop in [(0, 3), (first - 2, first + 3), (first, first + 7), (first + 2, first + 3)]:
        reads.clear()
        assert np.array_equal(read_vectors(read, info, start, stop), large.vectors_ND[start:stop])
        assert len(reads) == len(set(reads)) == (2 if start < first < stop else 1)
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
    ]
    assert len({other.info.bank_id for other in others} | {bank.info.bank_id}) == 5
    assert others[0].info.model_id == bank.info.model_id
    assert others[1].info.model_id != bank.info.model_id


def test_a_bank_from_before_there_were_tiles_loads_and_keeps_its_ids() -> None:
    vectors_ND = np.arange(12, dtype=np.float32).reshape(4, 3)
    settings = {"weights_digest": "abc", "scoring": ScoringConfig(), "input_size_px": None, "coreset": STATISTICS}
    bank = make_bank(vectors_ND, np.zeros((4, 3), np.int32), ("a.jpg",), embedder=EMBEDDER, **settings)  # type: ignore[arg-type]
    then = ("1ab1ec06ac0ef07e", "c3d55ba81e56b20e")  # as the version before gave them
    assert (bank.info.bank_id, bank.info.model_id) == then
    files = dict(bank_files(bank))
    raw = json.loads(files[INFO_FILE])
    for name in ("tile_px", "tile_overlap_px"):
        del raw["embedder"][name]
    info = read_info({INFO_FILE: json.dumps(raw).encode()}.__getitem__, "memory")
    assert (info.bank_id, info.model_id) == then
    assert info.embedder == EMBEDDER


def test_tiles_are_stored_with_the_bank_and_part_of_its_identity() -> None:
    tiled = some_bank(embedder=replace(EMBEDDER, tile_px=(64, 96), tile_overlap_px=32))
    assert tiled.info.model_id != some_bank().info.model_id
    assert_same(read_bank(dict(bank_files(tiled)).__getitem__, "memory"), tiled)


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
def test_a_bank_from_before_options_were_removed_loads_under_its_ids(
    embedder: EmbedderConfig, scoring: ScoringConfig, ids: tuple[str, str]
) -> None:
    bank = make_bank(
        np.eye(4, dtype=np.float32),
        np.zeros((4, 3), np.int32),
        ("a",),
        embedder=embedder,
        weights_digest="w",
        scoring=scoring,
        input_size_px=None,
        coreset=STATISTICS,
    )
    assert (bank.info.bank_id, bank.info.model_id) == ids  # as the version before gave them
    files = dict(bank_files(bank))
    raw = json.loads(files[INFO_FILE])
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


class TestDamage:
    @pytest.fixture
    def files(self) -> dict[str, bytes]:
        return dict(bank_files(some_bank()))

    @pytest.mark.parametrize("name", ["shard-00000.arrow", IMAGES_FILE])
    def test_a_changed_byte_is_noticed(self, files: dict[str, bytes], name: str) -> None:
        body = bytearray(files[name])
        body[len(body) // 2] ^= 1
        files[name] = bytes(body)
        with pytest.raises(ConfigError, match=f"{name}: digest differs"):
            read_bank(files.__getitem__, "memory")

    @pytest.mark.parametrize("name", ["shard-00000.arrow", IMAGES_FILE])
    def test_a_missing_file_is_noticed(self, files: dict[str, bytes], name: str, tmp_path: Path) -> None:
        del files[name]
        with pytest.raises(ConfigError, match=f"{name} is missing"):
            read_bank(files.__getitem__, "memory")
        location = Location(str(tmp_path))
        location.write(INFO_FILE, files[INFO_FILE])
        with pytest.raises(ConfigError, match=r"\.arrow is missing"):
            read_bank(location.read, str(tmp_path))

    def test_no_bank_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no memory bank there"):
            read_info(Location(str(tmp_path)).read, str(tmp_path))


SCORE_ELSEWHERE = """
import sys
import numpy as np
from steelray.patchcore.config import EmbedderConfig
from steelray.imaging.decode import decode
from steelray.storage.location import Location
from steelray.patchcore.bank import read_bank
from steelray.patchcore.index import IndexShard, LocalSearch
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.scorer import PatchCoreScorer

bank = read_bank(Location(sys.argv[1]).read, sys.argv[1])
search = LocalSearch([IndexShard(bank.vectors_ND)])
scorer = PatchCoreScorer(load_embedder(bank.info.embedder, backend="eager"), search, bank.info.scoring)
maps, scores = scorer.score([decode(open(sys.argv[2], "rb").read())])
np.savez(sys.argv[3], scores=scores, map=maps[0])
"""


def test_a_new_process_scores_bit_for_bit_the_same(tmp_path: Path, eager: Embedder) -> None:
    embeddings_hwD = eager.embed(make_strip(0, 0, size_px=(64, 160)).pixels_HW[None, :, :, None])[0]
    vectors_ND = np.ascontiguousarray(embeddings_hwD.reshape(-1, embeddings_hwD.shape[2])[::3])
    bank = make_bank(
        vectors_ND,
        np.zeros((len(vectors_ND), 3), np.int32),
        ("strip",),
        embedder=eager.config,
        weights_digest=eager.weights_digest,
        scoring=SCORING,
        input_size_px=None,
        coreset=STATISTICS,
    )
    for name, body in bank_files(bank):
        Location(str(tmp_path / "bank")).write(name, body)
    (tmp_path / "strip.jpg").write_bytes(make_strip(0, 1, defect="scratch", size_px=(64, 160)).jpeg())
    command = [sys.executable, "-c", SCORE_ELSEWHERE, tmp_path / "bank", tmp_path / "strip.jpg", tmp_path / "out.npz"]
    subprocess.run(command, check=True)
    search = LocalSearch([IndexShard(vectors_ND)])
    scorer = PatchCoreScorer(eager, search, SCORING)
    maps, scores = scorer.score([decode((tmp_path / "strip.jpg").read_bytes())])
    elsewhere = np.load(tmp_path / "out.npz")
    assert np.array_equal(elsewhere["scores"], scores)
    assert np.array_equal(elsewhere["map"], maps[0])
