"""A real store behind mitmproxy with a bank and an archive in it, and jobs as processes that can be killed.

A mark in the environment identifies a job's own processes, so that no other Ray of this machine is touched.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from steelray.demo.object_store import ObjectStore, start_object_store
from steelray.runs.run import CHECKPOINT_DIR, PENDING, RUNS, Run, read_published
from steelray.storage.location import Location
from tests.nodes.conftest import free_ports
from tests.plant import Plant, fill_archive, upload
from tests.waiting import wait_for

REPOSITORY = Path(__file__).parent.parent.parent
MITMDUMP = REPOSITORY / ".faults-venv" / "bin" / "mitmdump"
NUM_STRIPS = 160
JOB_S = 240
PASSING_COLUMNS = ["scored_at", "run_id"]
"""Columns that may differ between two runs over the same archive."""
MAX_ATTEMPTS = 3
IMAGES = r"^GET /archive/plant/archive/"
"""Requests for images of the archive, as a rule of the proxy's plan matches them."""
SLOW_IMAGES = {"match": IMAGES, "fault": "latency", "seconds": 1.0}
"""Stretch a run to about ten seconds, so that it can be disturbed in the middle."""


class RestartableStore:
    """A store that can be killed and restarted with its data, address and credentials."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = start_object_store(folder)
        self.endpoint_url = self._store.endpoint_url
        self.environment = self._store.environment

    def kill(self) -> None:
        """Kill the server as a power cut would."""
        os.killpg(self._store.process.pid, signal.SIGKILL)
        self._store.process.wait()

    def start(self) -> None:
        """Start the server again."""
        with (self._folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                self._store.process.args,
                env={**os.environ, **self.environment},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._store = ObjectStore(self.endpoint_url, self.environment, process)

    def stop(self) -> None:
        self._store.stop()


@dataclass
class Proxy:
    """mitmproxy in front of the store."""

    endpoint_url: str
    plan_file: Path

    def plan(self, *rules: dict[str, Any]) -> None:
        """Set what to break from now on; nothing without rules."""
        self.log_file.write_text("")
        part = self.plan_file.with_suffix(".part")
        part.write_text(json.dumps(rules))
        part.replace(self.plan_file)

    @property
    def log_file(self) -> Path:
        return Path(f"{self.plan_file}.log")

    def done(self, fault: str) -> int:
        """Return the number of requests broken in this way since the plan was set."""
        return sum(line.startswith(f"{fault} ") for line in self.log_file.read_text().splitlines())


@dataclass
class Job:
    """A running process of jobs/score_archive.py."""

    process: "subprocess.Popen[str]"
    mark: str
    results_uri: str

    def workers(self, title: str) -> dict[int, str]:
        """Return ids and titles of the job's processes whose title contains this."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found |= {int(folder.name): command} if title in command else {}
            except OSError:
                continue  # ended, or not ours
        return found

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Return the first true answer of `condition`; fail if the job ends before."""
        return wait_for(condition, 120, process=self.process)

    def wait_until_some_rows_are_safe(self) -> None:
        """Wait for the middle of the run: the first part is written, others are not."""
        runs = Location(f"{self.results_uri}/{RUNS}")

        def committed() -> bool:
            keys = [stored.key for stored in runs.list()]
            return any(f"/{CHECKPOINT_DIR}/" in key and not key.endswith(PENDING) for key in keys)

        self.wait_for(committed)

    def end(self) -> "Ending":
        stdout, stderr = self.process.communicate(timeout=JOB_S)
        return Ending(self.process.returncode, stdout, stderr)


@dataclass
class Ending:
    """Exit code and output of a job."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """Return the summary, the last line of stdout."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found

    @property
    def complaint(self) -> str:
        """Return the one line that says what went wrong."""
        [line] = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return line


@dataclass
class FaultyPlant:
    """The plant in s3://archive/plant/, its store and its proxy."""

    store: RestartableStore
    proxy: Proxy
    clean: pa.Table | None = field(default=None, repr=False)

    def start(self, results_uri: str, *arguments: str, environment: dict[str, str] | None = None) -> Job:
        """Start the job, with its store behind the proxy."""
        mark = uuid.uuid4().hex
        command = [
            sys.executable, str(REPOSITORY / "jobs" / "score_archive.py"),
            "--archive.uri", "s3://archive/plant/archive", "--model_uri", "s3://archive/plant/bank",
            "--results_uri", results_uri, "--report.gallery", "2", *arguments,
        ]  # fmt: skip
        settings = {
            **os.environ,
            **self.store.environment,
            "AWS_ENDPOINT_URL": self.proxy.endpoint_url,
            "STEELRAY_FAULT_MARK": mark,
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return Job(process, mark, results_uri)

    def run(self, results_uri: str, *arguments: str, environment: dict[str, str] | None = None) -> Ending:
        return self.start(results_uri, *arguments, environment=environment).end()

    def finish(self, results_uri: str, *arguments: str) -> Ending:
        """Run the same command until it succeeds; every failure before must be one clear line."""
        for _ in range(MAX_ATTEMPTS):
            ending = self.run(results_uri, *arguments)
            if ending.code == 0:
                return ending
            assert "run the same command" in ending.complaint, ending.stderr
        raise AssertionError(f"not done in {MAX_ATTEMPTS} attempts: {ending.stderr}")

    def continue_after(self, ending: Ending, results_uri: str, *arguments: str) -> None:
        """Check the run's rows; if it failed, check that its one line says to continue, and continue it first."""
        if ending.code != 0:
            assert "run the same command to continue" in ending.complaint, ending.stderr
            self.finish(results_uri, *arguments)
        self.check_like_clean(results_uri)

    def check_like_clean(self, results_uri: str) -> None:
        """Assert that the published run has one row per object, each equal to that of the undisturbed run."""
        assert self.clean is not None
        run = Run(results_uri, read_published(results_uri).current or "")
        table = run.scores().drop_columns(PASSING_COLUMNS)
        assert table.num_rows == NUM_STRIPS
        assert table.equals(self.clean)
        record = run.record()
        assert record is not None
        assert record.summary.counts["listed"] == NUM_STRIPS


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableStore]:
    """Start a store. The AWS_* variables of this process point at it, those of the jobs at the proxy."""
    patch = pytest.MonkeyPatch()
    store = RestartableStore(tmp_path_factory.mktemp("fault-store"))
    try:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store
    finally:
        patch.undo()
        store.stop()


@pytest.fixture(scope="session")
def proxy(store: RestartableStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    binary = MITMDUMP if MITMDUMP.is_file() else shutil.which("mitmdump")
    if binary is None:
        pytest.skip("needs mitmproxy: make test-faults installs it into .faults-venv")
    folder = tmp_path_factory.mktemp("proxy")
    [port] = free_ports(1)
    proxy = Proxy(f"http://127.0.0.1:{port}", folder / "plan.json")
    proxy.plan()
    process = subprocess.Popen(
        [
            str(binary), "--quiet", "--mode", f"reverse:{store.endpoint_url}", "--listen-host", "127.0.0.1",
            "--listen-port", str(port), "--set", "keep_host_header=true", "--set", f"confdir={folder}",
            "--scripts", str(Path(__file__).with_name("proxy_addon.py")),
        ],
        env={**os.environ, "STEELRAY_FAULT_PLAN": str(proxy.plan_file)},
    )  # fmt: skip
    try:
        wait_for(lambda: not socket.create_connection(("127.0.0.1", port), timeout=1).close(), 60, process=process)
        yield proxy
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def undisturbed(built_plant: Plant, store: RestartableStore, proxy: Proxy) -> FaultyPlant:
    """Upload a plant to the store and score its archive undisturbed."""
    fill_archive(built_plant, NUM_STRIPS)
    upload(built_plant, "s3://archive/plant", "bank", "archive")
    plant = FaultyPlant(store, proxy)
    ending = plant.run("s3://archive/clean")
    assert ending.code == 0, ending.stderr
    plant.clean = Run("s3://archive/clean", ending.summary["run_id"]).scores().drop_columns(PASSING_COLUMNS)
    assert plant.clean.num_rows == NUM_STRIPS
    return plant


@pytest.fixture
def plant_in_store(undisturbed: FaultyPlant) -> Iterator[FaultyPlant]:
    """Return the plant with a proxy that breaks nothing yet."""
    undisturbed.proxy.plan()
    yield undisturbed
    undisturbed.proxy.plan()


@pytest.fixture
def results_uri(store: RestartableStore) -> str:
    return f"s3://archive/{uuid.uuid4().hex}"


def strip_keys(count: int) -> Sequence[str]:
    """Return the first keys of the archive, in the manifest's order."""
    return sorted(f"line{index % 2}/strip {index:03d}.jpg" for index in range(NUM_STRIPS))[:count]
