from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from steelray.cluster import archive_scorer
from steelray.cluster.archive_scorer import score_archive
from steelray.cluster.image_source import images_per_task
from steelray.cluster.search_actors import ActorSearch, start_search_servers
from steelray.config import ArchiveConfig, ComputeConfig, ConfigError, DecodeConfig, JobFailed
from steelray.demo.synthetic import encode
from steelray.imaging.decode import decode
from steelray.models.calibration import read_calibration
from steelray.models.model import load_scorer, open_model
from steelray.patchcore.bank import read_vectors
from steelray.patchcore.index import BankUnavailable, IndexShard, LocalSearch
from steelray.runs.quarantine import read_quarantine
from steelray.runs.run import Run, read_published
from steelray.schema import SCORES
from steelray.storage.location import Location
from tests.awkward import AWKWARD_KEYS, bad_images
from tests.cluster.conftest import World, score_config, silent, strip_jpeg
from tests.plant import Plant


def test_the_job_gives_every_image_the_score_of_a_single_process(world: World, clean_run: Run) -> None:
    table = clean_run.scores()
    assert table.schema.equals(SCORES)
    assert table.column("image_key").to_pylist() == list(world.keys)
    scorer = load_scorer(open_model(world.bank_uri), ComputeConfig(), num_threads=1)
    archive = Location(world.archive_uri)
    _, expected = scorer.score([decode(archive.read(key)) for key in world.keys])
    np.testing.assert_array_equal(table.column("anomaly_score").to_numpy(), expected)

    threshold = read_calibration(world.bank_uri)[0].groups[""].review.value
    flagged = table.filter(table.column("is_anomalous"))
    assert flagged.column("image_key").to_pylist() == [
        key for key, score in zip(world.keys, expected, strict=True) if score > threshold
    ]
    assert set(world.defects) & set(flagged.column("image_key").to_pylist())
    record = clean_run.record()
    assert record is not None
    assert record.summary.counts == {"listed": 20, "ok": 20, "flagged": flagged.num_rows}
    location = clean_run.location
    assert all(location.exists(key) for key in flagged.column("heatmap_key").to_pylist())
    normal = table.filter(pc.invert(table.column("is_anomalous")))
    assert normal.column("heatmap_key").null_count == normal.num_rows
    assert len(list((location / "heatmaps").list())) == flagged.num_rows
    assert read_published(clean_run.results_uri).current == clean_run.run_id
    page = location.read("report.html").decode()
    assert page.count('class="card"') == 4
    assert "Nearest normal" in page
    assert f"runs/{clean_run.run_id}/report.html" in Location(clean_run.results_uri).read("index.html").decode()


def test_a_sharded_bank_gives_the_same_scores(world: World, clean_run: Run, s3_uri: str) -> None:
    compute = ComputeConfig(bank_shards=3)
    summary = score_archive(score_config(world, s3_uri, compute=compute), silent)
    assert summary["run_id"] == clean_run.run_id, "the placement of the bank is not part of a run's identity"
    tables = [clean_run.scores(), Run(s3_uri, summary["run_id"]).scores()]
    for name in ("anomaly_score", "map_peak", "verdict", "defect_area_fraction"):
        assert tables[0].column(name).to_pylist() == tables[1].column(name).to_pylist(), name


def test_every_bad_input_gets_its_row_and_its_status(world: World, s3_uri: str) -> None:
    archive = Location(f"{s3_uri}/archive")
    expected = {}
    for number, key in enumerate(AWKWARD_KEYS):
        archive.write(key, strip_jpeg(number, seed=3))
        expected[key] = "ok"
    for name, (body, status) in bad_images().items():
        archive.write(f"bad/{name}", body)
        expected[f"bad/{name}"] = str(status)
    archive.write("dot.png", encode(np.full((1, 1), 9, np.uint8), "PNG"))
    archive.write("tiny.png", encode(np.arange(36, dtype=np.uint8).reshape(6, 6), "PNG"))
    archive.write(
        "other size.png", encode(np.arange(96 * 256, dtype=np.uint16).reshape(96, 256).astype(np.uint8), "PNG")
    )
    archive.write("sixteen bit.png", encode((np.arange(64 * 256).reshape(64, 256) * 4).astype(np.uint16), "PNG"))
    archive.write("large.bin", bytes(500_000))
    expected |= {"dot.png": "too_small", "tiny.png": "too_small", "other size.png": "wrong_shape"}
    expected |= {"sixteen bit.png": "ok", "large.bin": "too_large"}
    settings = {"archive": ArchiveConfig(archive.uri), "decode": DecodeConfig(max_bytes=400_000)}
    with pytest.raises(JobFailed, match=r"11 of 20 objects \(55.0%\) have no score, 5.0% are allowed") as failed:
        score_archive(score_config(world, f"{s3_uri}/results", **settings), silent)
    summary = failed.value.summary
    assert summary is not None
    run = Run(f"{s3_uri}/results", summary["run_id"])
    assert read_published(run.results_uri).current == run.run_id, "the run is published before the failure is reported"
    table = run.scores()
    assert dict(zip(table.column("image_key").to_pylist(), table.column("status").to_pylist(), strict=True)) == expected
    assert summary["counts"]["listed"] == table.num_rows == len(expected)
    for row in table.to_pylist():
        assert (row["anomaly_score"] is not None) == (row["status"] == "ok")
        assert (row["error"] is None) == (row["status"] == "ok")
    quarantine = read_quarantine(run.location)
    assert dict(zip(*(quarantine.column(name).to_pylist() for name in ("image_key", "status")), strict=True)) == {
        key: status for key, status in expected.items() if status != "ok"
    }
    assert quarantine.column("reason").null_count == 0


def test_objects_deleted_or_replaced_after_the_listing_get_a_row(
    world: World, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Location(f"{s3_uri}/archive")
    for index in range(4):
        archive.write(f"{index}.jpg", strip_jpeg(index, seed=4))
    list_first = archive_scorer.list_archive

    def list_then_change(config: ArchiveConfig) -> object:
        manifest = list_first(config)
        archive.delete("1.jpg")
        archive.write("2.jpg", strip_jpeg(9, seed=4))
        return manifest

    monkeypatch.setattr(archive_scorer, "list_archive", list_then_change)
    settings = {"archive": ArchiveConfig(archive.uri), "max_quarantine_share": None, "incremental": True}
    config = score_config(world, f"{s3_uri}/results", **settings)
    summary = score_archive(config, silent)
    assert summary["counts"] | {"flagged": 0} == {"listed": 4, "ok": 2, "changed": 1, "missing": 1, "flagged": 0}

    monkeypatch.undo()
    again = score_archive(config, silent)
    assert again["counts"]["listed"] == again["counts"]["ok"] == 1, "the one that was replaced"
    assert again["already_scored"] == 2
    lines: list[str] = []
    last = score_archive(config, lines.append)
    assert lines == ["nothing new: all 3 objects have been scored by earlier runs"]
    assert (last["run_id"], last["counts"]) == (again["run_id"], {"listed": 0})


def test_a_finished_run_is_not_run_again(world: World, clean_run: Run) -> None:
    results = Location(clean_run.results_uri)
    before = {stored.key: stored.etag for stored in results.list()}
    lines: list[str] = []
    second = score_archive(score_config(world, clean_run.results_uri), lines.append)
    record = clean_run.record()
    assert record is not None
    assert second == {**asdict(record.summary), "already_complete": True}
    assert lines == [f"run {clean_run.run_id} is complete already: nothing to do"]
    assert before == {stored.key: stored.etag for stored in results.list()}


def test_an_interrupted_run_continues_where_it_stopped(world: World, clean_run: Run, s3_uri: str) -> None:
    run = Run(s3_uri, clean_run.run_id)
    # a killed driver leaves some rows committed, some written but not committed, and no run.json
    table = clean_run.scores()

    def put(key: str, part: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink)
        run.location.write(key, sink.getvalue().to_pybytes())

    put("scores/aaa_000000-0.parquet", table.slice(0, 7))
    put("checkpoint/aaa_000000.parquet", table.slice(0, 7).select(["image_key"]))
    put("scores/aaa_000001-0.parquet", table.slice(7, 4))
    put("checkpoint/aaa_000001.pending.parquet", table.slice(7, 4).select(["image_key"]))
    lines: list[str] = []
    again = score_archive(score_config(world, s3_uri), lines.append)
    assert again["scored_now"] == 13
    assert "13 of 20 objects are left" in lines[0]
    assert run.scores().column("anomaly_score").to_pylist() == table.column("anomaly_score").to_pylist()
    assert not list((run.location / "checkpoint").list())


def test_a_killed_shard_actor_comes_back_with_the_same_answers(world: World) -> None:
    info = open_model(world.bank_uri).bank
    assert info is not None
    vectors_ND = read_vectors(Location(world.bank_uri).read, info)
    queries_QD = np.random.default_rng(0).standard_normal((50, info.dim)).astype(np.float32)
    expected = LocalSearch([IndexShard(vectors_ND)]).submit(queries_QD, 3).result()
    servers = start_search_servers(world.bank_uri, info.bank_id, info.num_vectors, 3)
    search = ActorSearch(servers)
    before = search.submit(queries_QD, 3)
    ray.kill(servers[1], no_restart=False)
    after = search.submit(queries_QD, 3).result()
    np.testing.assert_array_equal(after[1], expected[1])
    np.testing.assert_allclose(after[0], expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(before.result()[1], expected[1])
    ray.kill(servers[2], no_restart=True)
    with pytest.raises(BankUnavailable, match="a shard of the memory bank did not answer"):
        search.submit(queries_QD, 3).result()
    for server in servers[:2]:
        ray.kill(server)


def test_another_bank_under_the_same_uri_is_refused(world: World) -> None:
    with pytest.raises(BankUnavailable, match="not 0123456789abcdef"):
        start_search_servers(world.bank_uri, "0123456789abcdef", 10, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archive": ArchiveConfig("s3://archive/nothing-here")}, "the archive is empty"),
        ({"archive": ArchiveConfig("s3://no-such-bucket/x")}, "no such bucket"),
        ({"model_uri": "s3://archive/nothing-here"}, "no model there"),
        ({"compute": ComputeConfig(bank_shards=10_000)}, "use fewer shards"),
        ({"calibration": 7}, "no calibration 7"),
    ],
)
def test_mistakes_are_one_clear_line(world: World, s3_uri: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        score_archive(score_config(world, s3_uri, **changes), silent)
    assert "\n" not in str(caught.value)


def test_a_dry_run_shows_the_plan_and_writes_nothing(world: World, s3_uri: str) -> None:
    answer = score_archive(score_config(world, s3_uri, dry_run=True), silent)
    assert answer["dry_run"] is True
    assert answer["plan"]["objects"] == 20
    assert answer["plan"]["bank_plan"]["placement"] == "replicated"
    assert answer["plan"]["compute"]["num_scorers"] >= 1
    assert not list(Location(s3_uri).list())


def test_a_pattern_that_matches_no_object_is_told_before_any_work(plant: Plant) -> None:
    plant.place("archive").write("cam1/a.jpg", strip_jpeg(0))
    lines: list[str] = []
    (plant.root / "results").mkdir()
    answer = score_archive(plant.config(dry_run=True), lines.append)
    [warning] = answer["plan"]["group_warnings"]
    assert "does not match 1 of 1 objects in the archive, such as cam1/a.jpg:" in warning
    assert f"warning: {warning}" in lines


def test_tasks_are_whole_batches_and_keep_every_scorer_busy() -> None:
    for num_images in (1, 7, 16, 240, 10_000, 1_000_000):
        for num_scorers in (1, 2, 16):
            rows = images_per_task(num_images, num_scorers, 8)
            assert rows % 8 == 0
            assert 8 <= rows <= 64
            if num_images >= 8 * 8 * num_scorers:
                assert num_images / rows >= 8 * num_scorers
