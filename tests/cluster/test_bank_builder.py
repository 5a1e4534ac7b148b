import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from steelray.cluster import driver, patch_selection
from steelray.cluster.bank_builder import build_memory_bank
from steelray.cluster.embedding_actors import RemotePatches, RemoteShards, start_embedding_servers
from steelray.cluster.patch_selection import EmbeddingActor
from steelray.config import ArchiveConfig, CalibrationConfig, ComputeConfig, ConfigError, JobFailed
from steelray.demo.synthetic import DEFECTS
from steelray.imaging.decode import decode
from steelray.models.calibration import read_calibration, read_calibration_rows, split_nominal
from steelray.patchcore.bank import read_bank
from steelray.patchcore.config import EmbedderConfig
from steelray.patchcore.coreset import greedy_coreset, select
from steelray.patchcore.embedder import load_embedder
from steelray.patchcore.fit import coreset_limits, fit_memory_bank, select_patches
from steelray.patchcore.suspects import LocalPatches
from steelray.storage.listing import list_archive
from steelray.storage.location import Location
from tests.cluster.conftest import EMBEDDER, World, build_config, silent, strip_jpeg


def test_the_distributed_bank_is_the_one_of_a_single_process(world: World) -> None:
    config = build_config(world.nominal_uri, world.bank_uri)
    every = list_archive(config.nominal).column("image_key").to_pylist()
    fit_rows, _ = split_nominal(every, config.calibration)
    nominal, keys = Location(world.nominal_uri), [every[row] for row in fit_rows]
    expected = fit_memory_bank(
        keys,
        [decode(nominal.read(key)) for key in keys],
        load_embedder(EMBEDDER, backend="openvino"),
        coreset=config.coreset,
        scoring=config.scoring,
    )
    bank = read_bank(Location(world.bank_uri).read, world.bank_uri)
    assert bank.info.bank_id == expected.info.bank_id
    assert bank.image_keys == tuple(keys)
    np.testing.assert_array_equal(bank.vectors_ND, expected.vectors_ND)
    np.testing.assert_array_equal(bank.origins_N3, expected.origins_N3)
    assert bank.info.input_size_px == (64, 256)


def test_a_sharded_selection_from_tiles_is_that_of_a_single_process(world: World, s3_uri: str) -> None:
    """Two files are left out because they are not images."""
    nominal = Location(f"{s3_uri}/nominal")
    for stored in Location(world.nominal_uri).list():
        nominal.write(stored.key, Location(world.nominal_uri).read(stored.key))
    nominal.write("00-empty.jpg", b"")
    nominal.write("00-text.jpg", b"not an image")
    config = build_config(
        nominal.uri,
        f"{s3_uri}/bank",
        embedder=replace(EMBEDDER, tile_px=(64, 128), tile_overlap_px=32),
        compute=ComputeConfig(bank_shards=2),
    )
    summary = build_memory_bank(config, silent)
    bank = read_bank(Location(config.bank_uri).read, config.bank_uri)
    expected = fit_memory_bank(
        bank.image_keys,
        [decode(nominal.read(key)) for key in bank.image_keys],
        load_embedder(config.embedder, backend="openvino"),
        coreset=config.coreset,
        scoring=config.scoring,
    )
    assert bank.info.bank_id == expected.info.bank_id
    np.testing.assert_array_equal(bank.origins_N3, expected.origins_N3)
    assert bank.info.coreset.num_candidates == len(bank.image_keys) * 8 * 32
    assert summary["skipped"] == {"empty": 1, "unreadable": 1}
    assert (len(bank.image_keys), summary["held_out"]) == (14, 10)
    assert all(stored.key.startswith(("bank/", "nominal/")) for stored in Location(s3_uri).list()), "no scratch files"


def test_a_bank_ends_in_its_page_and_forgets_excluded_strips(world: World, s3_uri: str, tmp_path: Path) -> None:
    config = build_config(world.nominal_uri, f"{s3_uri}/bank", calibration=CalibrationConfig())
    keys = list_archive(config.nominal).column("image_key").to_pylist()
    (tmp_path / "odd").write_text("\n".join([*keys[:3], "elsewhere.jpg"]))
    lines: list[str] = []
    summary = build_memory_bank(replace(config, exclude=str(tmp_path / "odd")), lines.append)
    location = Location(config.bank_uri)
    assert read_bank(location.read, config.bank_uri).image_keys == tuple(keys[3:])
    assert set(read_calibration_rows(config.bank_uri, 1)["image_key"].to_pylist()) == set(keys[3:])
    assert json.loads(location.read("run.json"))["excluded"] == keys[:3]
    assert any("1 of 4 keys, such as elsewhere.jpg, are not in" in line for line in lines)
    assert summary["page_uri"] == f"{config.bank_uri}/bank.html"
    assert [f"warning: {warning}" for warning in summary["warnings"]] == [
        line for line in lines if line.startswith("warning: ") and "elsewhere" not in line
    ]
    page = location.read("bank.html").decode()
    assert f"{len(keys) - 3} nominal strips set the thresholds; 3 are excluded" in page
    assert page.count("Nearest normal patch is from") == min(20, len(keys) - 3)


def test_suspects_on_shards_are_those_of_a_single_process(cluster: dict[str, float], s3_uri: str) -> None:
    nominal = Location(f"{s3_uri}/nominal")
    for index in range(16):
        nominal.write(f"{index:02d}.jpg", strip_jpeg(index, DEFECTS[index % 4] if index == 10 else None))
    config = build_config(
        nominal.uri,
        f"{s3_uri}/bank",
        compute=ComputeConfig(bank_shards=3),
        calibration=CalibrationConfig(false_alarm_rate=0.1, reject_rate=0.1),
    )
    lines: list[str] = []
    summary = build_memory_bank(config, lines.append)
    bank = read_bank(Location(config.bank_uri).read, config.bank_uri)
    expected = select_patches(
        bank.image_keys,
        [decode(nominal.read(key)) for key in bank.image_keys],
        load_embedder(config.embedder, backend="openvino"),
        coreset_limits(config.coreset),
        drop_suspects=True,
    )
    assert summary["dropped"] == expected.num_dropped > 0
    assert expected.suspects[0].image_key == "10.jpg"
    np.testing.assert_array_equal(bank.origins_N3, expected.origins_M3)
    np.testing.assert_array_equal(bank.vectors_ND, expected.vectors_MD)
    [line] = [line for line in lines if line.startswith("left out of the bank")]
    assert line.startswith(f"left out of the bank: {expected.num_dropped} of ")
    assert "look at 10.jpg, " in line


def test_thresholds_rest_on_strips_that_the_bank_never_saw(world: World) -> None:
    calibration, version = read_calibration(world.bank_uri)
    rows = read_calibration_rows(world.bank_uri, version)
    bank = read_bank(Location(world.bank_uri).read, world.bank_uri)
    assert rows.num_rows == 10
    assert not set(rows.column("image_key").to_pylist()) & set(bank.image_keys)
    assert calibration.groups[""].review.value == pytest.approx(max(rows.column("anomaly_score").to_pylist()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "holds a memory bank already: set overwrite"),
        (
            {"bank_uri": "s3://archive/new", "nominal": ArchiveConfig("s3://archive/nothing-here")},
            "the archive is empty",
        ),
        ({"bank_uri": "s3://archive/new", "embedder": EmbedderConfig("resnet_of_steel")}, "not known to timm"),
        ({"bank_uri": "s3://archive/new", "embedder": EmbedderConfig(levels=(9,))}, "has no feature levels"),
        (
            {"bank_uri": "s3://archive/new", "calibration": CalibrationConfig(group_pattern="^cam")},
            r"group_pattern '\^cam' matches none of \d+ nominal keys, such as 0",
        ),
    ],
)
def test_mistakes_are_found_before_any_work_on_the_cluster(
    world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.delattr(driver, "connected")
    config = replace(build_config(world.nominal_uri, world.bank_uri), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message) as caught:
        build_memory_bank(config, silent)
    assert "\n" not in str(caught.value)


class FailingActor(EmbeddingActor):
    """An actor whose node has a full disk."""

    def __init__(self, *_: object) -> None:
        """Load nothing."""

    def __call__(self, decoded: pa.Table) -> pa.Table:
        raise OSError(28, "No space left on device")


def test_an_actor_that_raises_ends_the_build_with_one_line(
    world: World, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_selection, "EmbeddingActor", FailingActor)
    line = r"^the build stopped: OSError: \[Errno 28\] No space left on device; run the same command again$"
    with pytest.raises(JobFailed, match=line):
        build_memory_bank(build_config(world.nominal_uri, s3_uri), silent)
    assert not list(Location(s3_uri).list())


def test_no_usable_nominal_image_is_an_error_with_the_reasons(cluster: dict[str, float], s3_uri: str) -> None:
    for index in range(4):
        Location(f"{s3_uri}/nominal").write(f"{index}.jpg", b"")
    with pytest.raises(ConfigError, match=r"none of 2 images can be used: \{'empty': 2\}"):
        build_memory_bank(build_config(f"{s3_uri}/nominal", f"{s3_uri}/bank"), silent)
    assert not list(Location(f"{s3_uri}/bank").list())


def test_a_lost_embedding_actor_is_restored_and_the_picks_stay_the_same(cluster: dict[str, float], s3_uri: str) -> None:
    rng = np.random.default_rng(0)
    images = {index: rng.standard_normal((150, 8)).astype(np.float32) for index in range(6)}
    firsts = {index: 150 * index for index in images}
    everything = torch.from_numpy(np.concatenate([images[index] for index in sorted(images)]))
    servers = start_embedding_servers(f"{s3_uri}/scratch", 2, 1)
    ray.get([servers[index % 2].add.remote(index, images[index]) for index in images])
    shards = RemoteShards(servers, firsts)
    rounds = 0

    def gather(count: int, centers: torch.Tensor, picked: torch.Tensor) -> object:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            ray.kill(servers[1], no_restart=False)
        return shards.gather(count, centers, picked)

    chosen = select([shards], 200, gather=gather, num_candidates=32)  # type: ignore[list-item,arg-type]
    assert rounds > 4
    assert chosen.indices_M.tolist() == greedy_coreset(everything, 200).tolist()
    np.testing.assert_array_equal(shards.vectors(chosen.indices_M.numpy()), everything[chosen.indices_M].numpy())
    vectors_MD, strips_M = everything[::9].numpy(), np.arange(900)[::9] // 150
    local = LocalPatches(images, dict.fromkeys(images, 10))
    remote = RemotePatches(servers, {index: index for index in images}, dict.fromkeys(images, 10))
    ray.kill(servers[0], no_restart=False)
    compared, whole = (patches.compare(vectors_MD, strips_M, range(6)) for patches in (remote, local))
    np.testing.assert_allclose(compared.nearest_M, whole.nearest_M, rtol=1e-6)
    assert compared.usual.keys() == whole.usual.keys()
    origins_M3 = np.array([[0, 3, 4], [5, 0, 0]], np.int32)
    np.testing.assert_allclose(remote.own_distances(origins_M3), local.own_distances(origins_M3), rtol=1e-6)
    for server in servers:
        ray.kill(server)
