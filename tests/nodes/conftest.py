"""A Ray cluster as an operator starts it (`ray start --head`, a token, a dashboard on loopback), and an archive.

Everything runs in processes and folders of its own, apart from any other Ray of this machine.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from steelray.demo.object_store import ObjectStore
from steelray.demo.synthetic import DEFECTS, make_strip
from steelray.runs.run import CHECKPOINT_DIR, RUNS, Run
from steelray.storage.location import Location
from tests.waiting import wait_for

REPOSITORY = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
SIZE_PX = (64, 256)
START_S = 90
JOB_S = 300
NUM_STRIPS = 40


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def last_json(text: str) -> dict[str, object]:
    """Read a job's summary: the last line of its output that is a JSON object."""
    lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    assert lines, f"no JSON line in:\n{text}"
    found: dict[str, object] = json.loads(lines[-1])
    return found


def scores_of(results_uri: str, run_id: object) -> dict[str, tuple[object, ...]]:
    """Return, by key, the columns of a score table that must not depend on where it was made."""
    names = ["status", "anomaly_score", "verdict", "map_peak", "map_mean", "defect_area_fraction"]
    rows = Run(results_uri, str(run_id)).scores().to_pylist()
    assert len({row["image_key"] for row in rows}) == len(rows)
    return {row["image_key"]: tuple(row[name] for name in names) for row in rows}


def many_strips(root: str, count: int) -> Location:
    """Write an archive that is scored long enough to be disturbed: eight strips, each under many keys."""
    archive = Location(f"{root}/many-{count}")
    bodies = [make_strip(3, index, size_px=SIZE_PX).jpeg() for index in range(8)]
    for index in range(count):
        archive.write(f"{index:04d}.jpg", bodies[index % 8])
    return archive


def rows_written(results_uri: str) -> bool:
    """Tell whether the first rows of a run are written."""
    return any(f"/{CHECKPOINT_DIR}/" in stored.key for stored in Location(f"{results_uri}/{RUNS}").list())


@dataclass(frozen=True)
class RayCluster:
    """A running head and the environment of its clients."""

    job_server: str
    metrics_port: int
    temp_dir: Path
    environment: dict[str, str]

    def ray(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a `ray` command as a client, with stderr and stdout together as on a terminal."""
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            cwd=cwd,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_S,
            check=False,
        )

    def submit(
        self, *arguments: str, cwd: Path, options: Sequence[str] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Submit a job as docs/cluster.md says."""
        folders = (f"--working-dir={REPOSITORY}", f"--runtime-env={REPOSITORY / 'deploy/runtime_env.yaml'}")
        return self.ray("job", "submit", *folders, *options, "--", "python", *arguments, cwd=cwd, **environment)


@pytest.fixture(scope="session")
def ray_cluster(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Start a head with the options of cluster.yaml, but with CPUs. Workers reach the store, clients do not."""
    home = tmp_path_factory.mktemp("home")
    temp_dir = Path(tempfile.gettempdir()) / f"steelray-{os.getpid()}"  # short: a socket's path may have 107 characters
    gcs, dashboard, client, metrics, agent, agent_grpc, env_agent = free_ports(7)
    client_environment = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    generated = subprocess.run(
        [str(BIN / "ray"), "get-auth-token", "--generate"], env=client_environment, capture_output=True, check=False
    )
    assert generated.returncode == 0, generated.stderr
    server_environment = {**client_environment, **object_store.environment, "OMP_NUM_THREADS": "1"}
    del server_environment["RAY_ADDRESS"]
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={env_agent}",
        f"--temp-dir={temp_dir}", "--object-store-memory=500000000", "--disable-usage-stats",
    ]  # fmt: skip
    log = (home / "ray-start.log").open("wb")
    head = subprocess.Popen(command, env=server_environment, cwd=home, stdout=log, stderr=log, start_new_session=True)
    cluster = RayCluster(f"http://127.0.0.1:{dashboard}", metrics, temp_dir, client_environment)
    try:
        wait_for(
            lambda: cluster.ray("job", "list", cwd=home).returncode == 0,
            START_S,
            (home / "ray-start.log").read_text,
            process=head,
        )
        yield cluster
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        log.close()
        shutil.rmtree(temp_dir, ignore_errors=True)


@dataclass(frozen=True)
class World:
    """Nominal strips, a bank of them and an archive in the store."""

    root: str
    bank_uri: str
    archive_uri: str
    environment: dict[str, str] = field(repr=False)
    """Variables with which a driver of this machine reaches the store."""

    def local_job(self, job: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a job as a process of this machine, with a Ray of its own or that of RAY_ADDRESS."""
        clean = {
            name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "STEELRAY_LOG_FORMAT")
        }
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *arguments],
            env={**clean, **self.environment, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=JOB_S,
            check=False,
        )

    def score_arguments(self, results_uri: str, *more: str) -> list[str]:
        """Return arguments of jobs/score_archive.py."""
        uris = ["--archive.uri", self.archive_uri, "--model_uri", self.bank_uri, "--results_uri", results_uri]
        return [*uris, *more]


def build_arguments(root: str, bank_uri: str) -> list[str]:
    return [
        "--nominal.uri", f"{root}/nominal", "--bank_uri", bank_uri, "--embedder.levels", "[2]",
        "--coreset.ratio", "0.05", "--calibration.held_out_fraction", "0.5",
        "--calibration.false_alarm_rate", "0.2", "--calibration.reject_rate", "0.1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def world(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Write 16 nominal strips and an archive of 40 with ten defects and a broken file; build a bank in a process."""
    root = "s3://archive/cluster-world"
    nominal, archive = Location(f"{root}/nominal"), Location(f"{root}/archive")
    for index in range(16):
        nominal.write(f"{index:02d}.jpg", make_strip(0, index, size_px=SIZE_PX).jpeg())
    for index in range(NUM_STRIPS):
        defect = DEFECTS[index // 4 % len(DEFECTS)] if index % 4 == 3 else None
        archive.write(
            f"line{index % 2}/strip {index:02d}.jpg", make_strip(1, index, defect=defect, size_px=SIZE_PX).jpeg()
        )
    archive.write("line0/broken.jpg", b"not a picture")
    made = World(root, f"{root}/bank", archive.uri, object_store.environment)
    done = made.local_job("build_memory_bank", *build_arguments(root, made.bank_uri))
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="session")
def local_scores(world: World) -> dict[str, tuple[object, ...]]:
    """Score the archive in a process of this machine with a Ray of its own."""
    results_uri = f"{world.root}/results-local"
    done = world.local_job("score_archive", *world.score_arguments(results_uri))
    assert done.returncode == 0, done.stderr
    return scores_of(results_uri, last_json(done.stdout)["run_id"])
