"""Banks in float16 or behind a FAISS factory string: what is stored, what is found, and what is said of the recall."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steelray.config import ConfigError
from steelray.patchcore import index as shard_module
from steelray.patchcore.bank import INDEX_FILE, MemoryBank, bank_files, read_bank, read_info
from steelray.patchcore.config import CoresetConfig, IndexConfig, ScoringConfig
from steelray.patchcore.fit import fit_memory_bank
from steelray.patchcore.index import IndexShard, LocalSearch, load_shard, shard_of
from steelray.patchcore.planner import plan_bank, shard_bounds
from steelray.patchcore.portable_embedder import Embedder
from steelray.patchcore.quantised import index_bank, measure_recall, recall_queries
from tests.patchcore import samples
from tests.patchcore.samples import bank_of, strip

DIM = 24
FACTORIES = ["IVF16,Flat", "IVF8,Flat"]


def gaussian(count: int, seed: int) -> NDArray[np.float32]:
    return samples.gaussian(count, DIM, seed)


def clustered(count: int, seed: int) -> NDArray[np.float32]:
    """Points around 40 centres, the same for every seed: what an inverted file is good at."""
    centers = 10 * gaussian(40, 99)
    return (centers[np.arange(count) % 40] + gaussian(count, seed)).astype(np.float32)


def exact_bank(vectors_ND: NDArray[np.float32], **scoring: int) -> MemoryBank:
    return bank_of(vectors_ND, scoring=ScoringConfig(**scoring))


def test_an_exact_bank_is_left_as_it_is() -> None:
    bank = exact_bank(gaussian(50, 0))
    assert index_bank(bank, IndexConfig(), gaussian(5, 1)) is bank
    assert bank.info.recall is None
    assert INDEX_FILE not in dict(bank_files(bank))


@pytest.mark.parametrize("config", [IndexConfig("fp16"), *(IndexConfig(factory=f) for f in FACTORIES)])
def test_what_is_loaded_answers_as_what_was_saved(config: IndexConfig) -> None:
    bank = index_bank(exact_bank(clustered(800, 0)), config, clustered(100, 1))
    files = dict(bank_files(bank))
    loaded = read_bank(files.__getitem__, "here")
    assert replace(loaded.info, shards=(), images=bank.info.images, trained=None) == bank.info
    assert loaded.info.index == config
    assert loaded.vectors_ND.dtype == (np.float16 if config.storage == "fp16" else np.float32)
    queries = clustered(200, 2)
    expected = shard_of(bank).search(queries, 3)
    for shard in (shard_of(loaded), load_shard(files.__getitem__, loaded.info)):
        assert np.array_equal(shard.search(queries, 3)[1], expected[1])
        assert np.array_equal(shard.search(queries, 3)[0], expected[0])


@pytest.mark.parametrize("num_shards", [2, 3, 7])
@pytest.mark.parametrize("config", [IndexConfig("fp16"), *(IndexConfig(factory=f, num_probes=3) for f in FACTORIES)])
def test_answers_do_not_depend_on_the_cut(config: IndexConfig, num_shards: int) -> None:
    bank = index_bank(exact_bank(clustered(700, 0), num_neighbors=3), config, clustered(50, 1))
    files = dict(bank_files(bank))
    bounds = shard_bounds(700, num_shards)
    cut = LocalSearch([load_shard(files.__getitem__, read_info(files.__getitem__, ""), *edges) for edges in bounds])
    queries = clustered(150, 2)
    distances, ids = cut.submit(queries, 3).result()
    whole_distances, whole_ids = shard_of(bank).search(queries, 3)
    np.testing.assert_allclose(distances, whole_distances, rtol=1e-5, atol=1e-4)
    assert np.array_equal(ids, whole_ids)


def test_float16_is_searched_exactly_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = gaussian(500, 0).astype(np.float16), gaussian(60, 1)
    monkeypatch.setattr(shard_module, "BLOCK_ROWS", 64)
    distances, ids = IndexShard(vectors, first_id=7).search(queries, 4)
    expected = IndexShard(vectors.astype(np.float32), first_id=7).search(queries, 4)
    assert np.array_equal(ids, expected[1])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-5)
    padded, padded_ids = IndexShard(vectors[:3]).search(queries, 4)
    assert np.isinf(padded[:, 3]).all()
    assert (padded_ids[:, 3] == -1).all()


def test_float16_halves_the_files_and_the_plan() -> None:
    bank = exact_bank(gaussian(4000, 0))
    half = index_bank(bank, IndexConfig("fp16"), gaussian(100, 1))
    sizes = [sum(len(body) for name, body in bank_files(b) if name.startswith("shard")) for b in (bank, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.info.recall is not None
    assert half.info.recall["recall_at_1"] > 0.98
    assert half.info.recall["distance_error"] < 1e-3
    plans = [
        plan_bank(
            b.info.num_vectors, DIM, bytes_per_vector=b.info.bytes_per_vector, memory_per_actor_bytes=4000 * DIM * 4
        )
        for b in (bank, half)
    ]
    assert [plan.placement for plan in plans] == ["sharded", "replicated"]
    assert "float32" in plans[0].reason
    assert "in 48 bytes each" in plans[1].reason


def test_recall_is_what_counting_by_hand_gives() -> None:
    vectors, queries = gaussian(600, 0), gaussian(300, 1)
    bank = index_bank(exact_bank(vectors), IndexConfig(factory="IVF16,Flat", num_probes=1), queries)
    squared_QN = np.square(queries[:, None].astype(np.float64) - vectors[None]).sum(axis=2)
    found = shard_of(bank).search(queries, 1)[1][:, 0]
    recall = bank.info.recall
    assert recall is not None
    assert recall["recall_at_1"] == pytest.approx((found == squared_QN.argmin(axis=1)).mean(), abs=1e-6)
    assert 0.0 < recall["recall_at_1"] < 0.99, "one of 16 cells does not hold every neighbour"
    assert recall["distance_error"] > 0
    assert recall["num_queries"] == 300
    assert json.loads(dict(bank_files(bank))["bank.json"])["recall"] == recall


def test_more_probes_find_more_and_all_of_them_find_everything() -> None:
    bank, queries = exact_bank(gaussian(1000, 0)), gaussian(300, 1)
    recalls = []
    for num_probes in (1, 4, 32):
        info = index_bank(bank, IndexConfig(factory="IVF32,Flat", num_probes=num_probes), queries).info
        assert info.recall is not None
        recalls.append(info.recall["recall_at_1"])
    assert recalls[0] < recalls[1] < recalls[2] == 1.0


def test_a_duplicate_of_the_nearest_vector_is_the_nearest() -> None:
    vectors = np.repeat(gaussian(40, 0), 2, axis=0)
    shard = IndexShard(vectors[::-1].copy())
    reversed_ids = measure_recall(shard, vectors[::-1].copy(), gaussian(50, 1))
    assert reversed_ids["recall_at_1"] == 1.0


def test_every_setting_gives_the_bank_another_id() -> None:
    bank, queries = exact_bank(gaussian(600, 0)), gaussian(20, 1)
    settings = [
        IndexConfig(),
        IndexConfig("fp16"),
        IndexConfig(factory="IVF4,Flat"),
        IndexConfig(factory="IVF4,Flat", num_probes=2),
        IndexConfig("fp16", "IVF4,Flat"),
        IndexConfig(factory="IVF5,Flat"),
    ]
    banks = [index_bank(bank, config, queries) for config in settings]
    assert len({b.info.bank_id for b in banks}) == len(settings)
    again = [index_bank(bank, config, queries).info.bank_id for config in settings]
    assert again == [b.info.bank_id for b in banks], "the same settings give the same bank"


def test_an_index_that_does_not_suit_the_bank_is_one_clear_line() -> None:
    complaint = r"index\.factory 'IVF256,Flat': .*points \(100\) should be at least .* \(256\)"
    with pytest.raises(ConfigError, match=complaint) as caught:
        index_bank(exact_bank(gaussian(100, 0)), IndexConfig(factory="IVF256,Flat"), gaussian(5, 1))
    assert "\n" not in str(caught.value)


def test_values_beyond_float16_are_refused() -> None:
    with pytest.raises(ConfigError, match="fp16 ends at 65504 but the bank holds 7e\\+04"):
        index_bank(exact_bank(np.full((3, DIM), 7e4, np.float32)), IndexConfig("fp16"), gaussian(5, 1))


def test_cells_that_may_hold_too_few_neighbors_are_refused() -> None:
    vectors = np.concatenate([gaussian(200, 0), gaussian(2, 1) + 1000])
    config = IndexConfig(factory="IVF8,Flat", num_probes=1)
    with pytest.raises(
        ConfigError, match=r"num_probes is 1: so many cells can hold as few as \d+ vectors, but .* is 9"
    ):
        index_bank(exact_bank(vectors, num_neighbors=9), config, gaussian(5, 1))
    bank = index_bank(exact_bank(vectors, num_neighbors=9), replace(config, num_probes=8), gaussian(5, 1))
    assert np.isfinite(shard_of(bank).search(gaussian(50, 2), 9)[0]).all()


def test_recall_is_measured_on_patches_outside_the_bank() -> None:
    picked = np.arange(0, 9000, 2)
    rows = recall_queries(9000, picked)
    assert len(rows) == len(set(rows.tolist())) == 4096
    assert not set(rows.tolist()) & set(picked.tolist())
    assert recall_queries(9000, picked).tolist() == rows.tolist()
    assert recall_queries(5, np.arange(5)).tolist() == [0, 1, 2, 3, 4], "when all patches are in the bank"


def test_fitting_keeps_the_bank_as_asked(eager: Embedder) -> None:
    images, half = [strip(64, 256, index) for index in range(3)], IndexConfig("fp16")
    settings = {"coreset": CoresetConfig(ratio=0.1), "scoring": ScoringConfig()}
    bank = fit_memory_bank(["a", "b", "c"], images, eager, index=half, **settings)  # type: ignore[arg-type]
    assert bank.vectors_ND.dtype == np.float16
    assert bank.info.recall is not None
    assert bank.info.recall["recall_at_1"] > 0.98


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("factory", [None, "IVF16,Flat"])
def test_a_gpu_gives_the_answers_of_the_cpu(storage: str, factory: str | None) -> None:
    bank = index_bank(exact_bank(clustered(800, 0)), IndexConfig(storage, factory), clustered(50, 1))  # type: ignore[arg-type]
    files = dict(bank_files(bank))
    queries = clustered(300, 2)
    distances, ids = shard_of(bank).search(queries, 3)
    found = load_shard(files.__getitem__, read_info(files.__getitem__, ""), use_gpu=True).search(queries, 3)
    np.testing.assert_allclose(found[0], distances, rtol=1e-2, atol=0.05)
    assert (found[1][:, 0] == ids[:, 0]).mean() > 0.98
