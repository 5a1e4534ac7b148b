"""Normalised scores on a cluster: the profile is that of a single process, and scores rest on it."""

from collections.abc import Sequence

import numpy as np
import pytest

from steelray.cluster.archive_scorer import score_archive
from steelray.cluster.bank_builder import build_memory_bank
from steelray.cluster.bank_grower import grow_memory_bank
from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, ConfigError
from steelray.imaging.decode import decode
from steelray.models.calibration import read_calibration_rows, split_held_out
from steelray.models.model import load_profile, load_scorer, open_model
from steelray.patchcore.bank import read_bank
from steelray.patchcore.config import GrowMemoryBankConfig, GrowthConfig, ScoringConfig
from steelray.patchcore.embedder import build_patch_embedder, compile_embedder
from steelray.patchcore.index import LocalSearch, shard_of
from steelray.patchcore.meter import measure_profile
from steelray.patchcore.profile import PROFILE_FILE, Kind, NominalProfile
from steelray.runs.run import Run
from steelray.storage.listing import list_archive
from steelray.storage.location import Location
from tests.cluster.conftest import EMBEDDER, World, build_config, score_config, silent, strip_jpeg


def build(nominal_uri: str, bank_uri: str, kind: Kind, **changes: object) -> dict[str, object]:
    scoring = ScoringConfig(normalization=kind)
    return build_memory_bank(build_config(nominal_uri, bank_uri, scoring=scoring, **changes), silent)


def stored_profile(uri: str) -> NominalProfile:
    profile = load_profile(open_model(uri))
    assert profile is not None
    return profile


def measured_here(bank_uri: str, nominal_uri: str, keys: Sequence[str]) -> NominalProfile:
    """What a single process measures of these strips."""
    bank = read_bank(Location(bank_uri).read, bank_uri)
    embed = compile_embedder(build_patch_embedder(EMBEDDER), backend="openvino")
    search, images = LocalSearch([shard_of(bank)]), [decode(Location(nominal_uri).read(key)) for key in keys]
    profile = measure_profile(embed, search, EMBEDDER, bank.info.scoring, bank.info.num_vectors, images)
    assert profile is not None
    return profile


SHARDED = ComputeConfig(bank_placement="sharded", bank_shards=3, batch_size=3)


@pytest.mark.parametrize(
    ("kind", "compute"),
    [
        ("row", ComputeConfig()),
        ("position", SHARDED),
        ("neighborhood", ComputeConfig(batch_size=2)),
        ("neighborhood", SHARDED),
    ],
)
def test_the_profile_is_that_of_a_single_process(world: World, s3_uri: str, kind: Kind, compute: ComputeConfig) -> None:
    bank_uri = f"{s3_uri}/bank"
    summary = build(world.nominal_uri, bank_uri, kind, compute=compute)
    manifest = list_archive(ArchiveConfig(world.nominal_uri))
    _, held_out_rows = split_held_out(manifest.num_rows, 0.4, 0)
    keys = manifest.take(held_out_rows).column("image_key").to_pylist()
    expected, found = measured_here(bank_uri, world.nominal_uri, keys), stored_profile(bank_uri)
    assert found.mean == pytest.approx(expected.mean, rel=1e-5)
    np.testing.assert_allclose(found.expected, expected.expected, rtol=1e-5)
    assert np.ptp(found.expected) > 0.05 * found.mean
    bank, plain = (read_bank(Location(uri).read, uri) for uri in (bank_uri, world.bank_uri))
    np.testing.assert_array_equal(bank.vectors_ND, plain.vectors_ND)
    assert bank.info.bank_id == summary["bank_id"] != plain.info.bank_id
    run = score_archive(score_config(world, f"{s3_uri}/results", model_uri=bank_uri, compute=compute), silent)
    scores = Run(f"{s3_uri}/results", run["run_id"]).scores()
    assert set(scores.column("bank_id").to_pylist()) == {bank.info.bank_id}
    assert set(read_calibration_rows(bank_uri, 1).column("bank_id").to_pylist()) == {bank.info.bank_id}
    scorer = load_scorer(open_model(bank_uri), ComputeConfig(), num_threads=1)
    here = [
        scorer.score([decode(Location(world.archive_uri).read(key))])[1][0]
        for key in scores.column("image_key").to_pylist()
    ]
    np.testing.assert_allclose(scores.column("anomaly_score").to_numpy(), here, rtol=1e-4)


def test_strips_that_cannot_be_measured_do_not_count(world: World, s3_uri: str) -> None:
    nominal, source = Location(f"{s3_uri}/nominal"), Location(world.nominal_uri)
    for index in range(8):
        nominal.write(f"{index:02d}.jpg", source.read(f"{index:02d}.jpg"))
    rows = list_archive(ArchiveConfig(nominal.uri))
    _, held_out_rows = split_held_out(rows.num_rows, 0.4, 0)
    keys = rows.take(held_out_rows).column("image_key").to_pylist()
    nominal.write(keys[0], b"not an image")
    build(nominal.uri, f"{s3_uri}/bank", "row")
    expected = measured_here(f"{s3_uri}/bank", nominal.uri, keys[1:])
    np.testing.assert_allclose(stored_profile(f"{s3_uri}/bank").expected, expected.expected, rtol=1e-5)
    for key in keys:
        nominal.write(key, b"not an image")
    with pytest.raises(ConfigError, match=r"'row': no held-out nominal strip could be measured") as caught:
        build(nominal.uri, f"{s3_uri}/other", "row")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"names no profile of held-out strips: its build was interrupted"):
        load_scorer(open_model(f"{s3_uri}/other"), ComputeConfig(), num_threads=1)


@pytest.mark.parametrize("kind", ["position", "neighborhood"])
def test_a_grown_bank_keeps_what_it_knows(world: World, s3_uri: str, kind: Kind) -> None:
    bank_uri, grown_uri = f"{s3_uri}/bank", f"{s3_uri}/grown"
    build(world.nominal_uri, bank_uri, kind)
    for index in range(5):
        Location(f"{s3_uri}/new").write(f"new/{index:02d}.jpg", strip_jpeg(index, seed=9))
    config = GrowMemoryBankConfig(
        ArchiveConfig(f"{s3_uri}/new"),
        bank_uri,
        grown_uri,
        growth=GrowthConfig(cover_radius=1.0),
        calibration=CalibrationConfig(held_out_fraction=0.4, false_alarm_rate=0.1, reject_rate=0.1),
    )
    summary = grow_memory_bank(config, silent)
    assert int(summary["added"]) > 0
    before, grown = stored_profile(bank_uri), stored_profile(grown_uri)
    known = before.expected.shape[0]
    np.testing.assert_array_equal(grown.expected[:known], before.expected)
    np.testing.assert_allclose(grown.expected[known:], before.mean, rtol=1e-6)
    Location(bank_uri).delete(PROFILE_FILE)
    with pytest.raises(ConfigError, match=r"profile\.npz is missing"):
        grow_memory_bank(config, silent)
