import numpy as np
import pytest

from steelray.cluster.archive_scorer import score_archive
from steelray.cluster.bank_builder import build_memory_bank
from steelray.config import ComputeConfig, ConfigError
from steelray.patchcore.bank import INFO_FILE, read_bank
from steelray.patchcore.config import IndexConfig
from steelray.runs.run import Run
from steelray.storage.location import Location
from tests.cluster.conftest import World, build_config, score_config, silent


def test_a_quantised_bank_scores_alike_however_it_is_placed(world: World, clean_run: Run, s3_uri: str) -> None:
    bank_uri, index = f"{s3_uri}/bank", IndexConfig("fp16", "IVF8,Flat", num_probes=3)
    summary = build_memory_bank(build_config(world.nominal_uri, bank_uri, index=index), silent)
    exact, bank = (read_bank(Location(uri).read, uri) for uri in (world.bank_uri, bank_uri))
    assert bank.info.bank_id == summary["bank_id"] != exact.info.bank_id
    np.testing.assert_array_equal(bank.origins_N3, exact.origins_N3)
    np.testing.assert_allclose(bank.vectors_ND, exact.vectors_ND, rtol=1e-3, atol=1e-6)
    assert bank.info.recall is not None
    assert summary["recall_at_1"] == bank.info.recall["recall_at_1"] > 0.9
    scores = []
    for place, compute in enumerate((ComputeConfig(), ComputeConfig(bank_shards=3))):
        results = f"{s3_uri}/results{place}"
        run = score_archive(score_config(world, results, model_uri=bank_uri, compute=compute), silent)
        scores.append(Run(results, run["run_id"]).scores().column("anomaly_score").to_numpy())
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    exact_scores = clean_run.scores().column("anomaly_score").to_numpy()
    assert (scores[0] >= exact_scores * 0.999).all(), "what an inverted file does not look at can only be nearer"
    np.testing.assert_allclose(scores[0], exact_scores, rtol=0.5)


def test_an_index_that_the_bank_cannot_have_is_refused_and_nothing_is_written(world: World, s3_uri: str) -> None:
    index = IndexConfig(factory="IVF4096,Flat")
    with pytest.raises(ConfigError, match=r"index.factory 'IVF4096,Flat': .* \(4096\)"):
        build_memory_bank(build_config(world.nominal_uri, f"{s3_uri}/bank", index=index), silent)
    assert not Location(f"{s3_uri}/bank").exists(INFO_FILE)
