"""Jobs submitted with `ray job submit` from outside the repository, to a cluster that requires a token."""

import json
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from steelray.demo.object_store import ObjectStore
from steelray.demo.synthetic import make_strip
from steelray.research.study.results import read_trials
from steelray.runs.run import Run
from steelray.storage.location import Location
from tests.nodes.conftest import (
    NUM_STRIPS,
    REPOSITORY,
    SIZE_PX,
    RayCluster,
    World,
    build_arguments,
    last_json,
    many_strips,
    rows_written,
    scores_of,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.cluster
MAX_UPLOAD_BYTES = 5 * 2**20
LARGE = 600


def token_of(cluster: RayCluster) -> str:
    return (Path(cluster.environment["HOME"]) / ".ray" / "auth_token").read_text().strip()


def job_info(cluster: RayCluster, submission_id: str) -> dict[str, object]:
    request = urllib.request.Request(  # noqa: S310 (loopback)
        f"{cluster.job_server}/api/jobs/{submission_id}", headers={"Authorization": f"Bearer {token_of(cluster)}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        info: dict[str, object] = json.load(answer)
    return info


def test_a_client_without_the_token_is_refused(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{ray_cluster.job_server}/api/jobs/", timeout=10)  # noqa: S310
    assert refused.value.code in (401, 403)
    refused.value.close()
    done = ray_cluster.submit("jobs/score_archive.py", "--help", cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode != 0
    assert "token" in done.stdout


def test_a_bank_is_built_and_the_archive_scored_as_here(
    ray_cluster: RayCluster, world: World, local_scores: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    bank_uri = f"{world.root}/bank-submitted"
    built = ray_cluster.submit("jobs/build_memory_bank.py", *build_arguments(world.root, bank_uri), cwd=tmp_path)
    assert built.returncode == 0, built.stdout
    assert last_json(built.stdout)["bank_id"] == json.loads(Location(world.bank_uri).read("bank.json"))["bank_id"]

    results_uri = f"{world.root}/results-submitted"
    page = f"{results_uri}/index.html"
    options = [f"--submission-id=score-{uuid.uuid4().hex[:8]}", "--metadata-json", json.dumps({"report": page})]
    done = ray_cluster.submit(
        "jobs/score_archive.py", *world.score_arguments(results_uri), cwd=tmp_path, options=options
    )
    assert done.returncode == 0, done.stdout
    summary = last_json(done.stdout)
    assert summary["counts"]["listed"] == NUM_STRIPS + 1  # type: ignore[index]
    assert scores_of(results_uri, summary["run_id"]) == local_scores

    # the job ran from the uploaded copy, which is small
    record = json.loads(Run(results_uri, str(summary["run_id"])).location.read("run.json"))
    assert record["git_commit"] is None, "the uploaded copy is no checkout"
    uploads = ray_cluster.temp_dir / "session_latest" / "runtime_resources" / "working_dir_files"
    packages = [place for place in uploads.iterdir() if place.is_dir()]
    assert packages
    for package in packages:
        files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert {file.relative_to(package).parts[0] for file in files} == {"steelray", "jobs"}
        assert sum(file.stat().st_size for file in files) < MAX_UPLOAD_BYTES
    # the job's page in the dashboard leads to the report
    assert job_info(ray_cluster, options[0].partition("=")[2])["metadata"] == {"report": page}
    # its lines are JSON, for a collector of logs
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"time"')]
    assert any(line["run_id"] == summary["run_id"] and "memory bank replicated" in line["message"] for line in lines)


def test_a_model_is_trained_and_scores_the_archive(ray_cluster: RayCluster, world: World, tmp_path: Path) -> None:
    models_uri, results_uri = f"{world.root}/models", f"{world.root}/results-trained"
    arguments = [
        "--model", "conv_ae", "--data.nominal.uri", f"{world.root}/nominal", "--output_uri", models_uri,
        "--run_name", "line1", "--input.size_px", "[64, 64]", "--num_steps", "6", "--batch_size", "4",
        "--checkpoint_every_steps", "3",
    ]  # fmt: skip
    trained = ray_cluster.submit("jobs/train.py", *arguments, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout
    assert last_json(trained.stdout)["model_uri"] == f"{models_uri}/line1"
    scored = ray_cluster.submit(
        "jobs/score_archive.py", *world.score_arguments(results_uri, "--model_uri", f"{models_uri}/line1"), cwd=tmp_path
    )
    assert scored.returncode == 0, scored.stdout
    assert len(scores_of(results_uri, last_json(scored.stdout)["run_id"])) == NUM_STRIPS + 1


def test_a_sweep_leaves_its_trials_in_the_store(ray_cluster: RayCluster, world: World, tmp_path: Path) -> None:
    results_uri = f"{world.root}/study"
    arguments = ["--config", "jobs/configs/study_smoke.yaml", "--results_dir", results_uri, "--train.num_steps", "10"]
    for ran in (2, 0):  # submitted again, it has nothing left to do
        done = ray_cluster.submit("jobs/tune_draem.py", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert last_json(done.stdout)["ran"] == ran
    assert {row["arm"] for row in read_trials(results_uri)} == {"baseline", "fix"}
    done = ray_cluster.submit("jobs/report_study.py", "--results_dir", results_uri, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert b"10 steps" in Location(results_uri).read("study.md")


def test_the_jobs_around_a_run_are_submitted_in_the_same_way(
    ray_cluster: RayCluster, world: World, tmp_path: Path
) -> None:
    results_uri, grown_uri = f"{world.root}/results-after", f"{world.root}/bank-grown"
    jobs = {
        # half of the archive: a run of its own, whose id no other test counts strips by
        "score_archive": world.score_arguments(results_uri, "--archive.glob", "line1/*"),
        "runs": ["--results_uri", results_uri],
        "grow_memory_bank": [
            "--nominal.uri", f"{world.root}/more", "--bank_uri", world.bank_uri, "--grown_uri", grown_uri,
        ],
        "calibrate": ["--model_uri", grown_uri, "--false_alarm_rate", "0.1", "--reject_rate", "0.05"],
    }  # fmt: skip
    for index in range(16, 20):
        strip = make_strip(0, index, size_px=SIZE_PX)
        Location(f"{world.root}/more").write(f"{index}.jpg", strip.jpeg())
    found = {}
    for job, arguments in jobs.items():
        done = ray_cluster.submit(f"jobs/{job}.py", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        found[job] = last_json(done.stdout)
    assert found["score_archive"]["run_id"] in json.dumps(found["runs"])  # type: ignore[operator]
    assert json.loads(Location(grown_uri).read("bank.json"))["bank_id"] == found["grow_memory_bank"]["bank_id"]
    assert found["calibrate"]["version"] == 2


def test_a_mistake_comes_back_as_its_line_and_a_failure(ray_cluster: RayCluster, world: World, tmp_path: Path) -> None:
    arguments = world.score_arguments(world.root, "--model_uri", f"{world.root}/none")
    done = ray_cluster.submit("jobs/score_archive.py", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "exit code 2" in done.stdout
    # Ray shows the line twice: while the job runs, and in the reason of its failure
    [text] = {line for line in done.stdout.splitlines() if line.startswith('{"time"')}
    line = json.loads(text)
    assert line["level"] == "error"
    assert f"{world.root}/none" in line["message"]


def test_a_stopped_job_continues_where_it_was(ray_cluster: RayCluster, world: World, tmp_path: Path) -> None:
    archive, results_uri = many_strips(world.root, LARGE), f"{world.root}/results-stopped"
    arguments = world.score_arguments(results_uri, "--compute.batch_size", "1", "--compute.num_scorers", "1")
    arguments[1] = archive.uri
    submission = f"stopped-{uuid.uuid4().hex[:8]}"
    begun = ray_cluster.submit(
        "jobs/score_archive.py", *arguments, cwd=tmp_path, options=[f"--submission-id={submission}", "--no-wait"]
    )
    assert begun.returncode == 0, begun.stdout
    logs = ["job", "logs", submission]
    wait_for(lambda: rows_written(results_uri), 120, lambda: ray_cluster.ray(*logs, cwd=tmp_path).stdout)
    stopped = ray_cluster.ray("job", "stop", submission, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stdout
    assert job_info(ray_cluster, submission)["status"] == "STOPPED"
    assert not Location(results_uri).exists("published.json")

    done = ray_cluster.submit("jobs/score_archive.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    summary = last_json(done.stdout)
    assert 0 < int(str(summary["scored_now"])) < LARGE
    assert len(scores_of(results_uri, summary["run_id"])) == LARGE


def test_credentials_are_nowhere_to_be_read(ray_cluster: RayCluster, object_store: ObjectStore, tmp_path: Path) -> None:
    """Neither Ray's files nor its answers hold the store's secret, after the jobs above or alone."""
    done = ray_cluster.submit("jobs/score_archive.py", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    secret = object_store.environment["AWS_SECRET_ACCESS_KEY"].encode()
    assert secret.decode() not in ray_cluster.ray("job", "list", cwd=tmp_path).stdout
    read = 0
    for file in ray_cluster.temp_dir.rglob("*"):
        if file.is_file() and file.suffix in (".log", ".out", ".err", ".json", ".yaml", ".yml"):
            assert secret not in file.read_bytes(), file
            read += 1
    assert read > 10
    assert secret not in (REPOSITORY / "deploy/runtime_env.yaml").read_bytes()
