"""A real Prometheus scrapes a real run: the metrics of the alerts and the dashboard exist and are correct."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.nodes.conftest import NUM_STRIPS, REPOSITORY, RayCluster, World, free_ports, last_json, scores_of
from tests.waiting import wait_for

pytestmark = pytest.mark.cluster


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        question = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{question}", timeout=10) as answer:  # noqa: S310
            result = json.load(answer)["data"]["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def wait_for(self, expression: str, wanted: float, timeout_s: float = 60) -> None:
        def seen() -> list[float]:
            return [value for _, value in self.query(expression)]

        wait_for(lambda: seen() == [wanted], timeout_s, lambda: f"{expression} is {seen()}, not {wanted}")


@pytest.fixture
def prometheus(ray_cluster: RayCluster, tmp_path: Path) -> Iterator[Prometheus]:
    """Start Prometheus with the project's configuration, except for its nodes, its port and a scrape every second."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    config = yaml.safe_load((REPOSITORY / "deploy/prometheus/prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(REPOSITORY / "deploy/prometheus/alerts.yaml")]
    nodes = ray_cluster.temp_dir / "prom_metrics_service_discovery.json"
    assert nodes.is_file(), "Ray lists its nodes for Prometheus"
    config["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(nodes)]}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    [port] = free_ports(1)
    command = [
        "prometheus", f"--config.file={tmp_path / 'prometheus.yaml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    log = (tmp_path / "prometheus.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:
        log_text = (tmp_path / "prometheus.log").read_text
        wait_for(lambda: found.query("up") is not None, 30, log_text, process=process)
        yield found
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


def calls_by_stage(prometheus: Prometheus) -> dict[str, float]:
    """Return the calls of each stage, summed over all processes that Prometheus has seen."""
    found = prometheus.query("sum by (stage) (max_over_time(ray_steelray_stage_s_count[10m]))")
    return {labels["stage"]: value for labels, value in found}


def test_prometheus_sees_the_metrics_of_a_run(
    ray_cluster: RayCluster, world: World, prometheus: Prometheus, tmp_path: Path
) -> None:
    prometheus.wait_for("min(up)", 1)
    before = calls_by_stage(prometheus)
    results_uri = f"{world.root}/results-watched"
    sharded = ("--compute.bank_shards", "2")
    # another setting gives another run id: the cluster still reports the counts of other tests' runs
    arguments = world.score_arguments(results_uri, *sharded, "--decode.max_bytes", "60000000")
    done = ray_cluster.submit("jobs/score_archive.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    run_id = last_json(done.stdout)["run_id"]
    scores = scores_of(results_uri, run_id)
    flagged = sum(row[2] in ("review", "reject") for row in scores.values())
    run = f'run_id="{run_id}"'

    # a process takes its figures with it, so that the largest that Prometheus has seen counts
    def total(metric: str, labels: str) -> str:
        return f"sum(max_over_time({metric}{{{labels}}}[10m]))"

    prometheus.wait_for(total("ray_steelray_strips_total", f'{run},status="ok"'), NUM_STRIPS)
    prometheus.wait_for(total("ray_steelray_strips_total", f'{run},status="unreadable"'), 1)
    prometheus.wait_for(total("ray_steelray_flagged_total", run), flagged)
    prometheus.wait_for(total("ray_steelray_score_ratio_count", run), NUM_STRIPS)
    prometheus.wait_for(f"max_over_time(ray_steelray_strips_listed{{{run}}}[10m])", NUM_STRIPS + 1)
    prometheus.wait_for(f"max_over_time(ray_steelray_bank_shards_wanted{{{run}}}[10m])", 2)
    prometheus.wait_for("count(count by (bank_id, start) (max_over_time(ray_steelray_bank_shard_alive[10m])))", 2)
    stages = {stage: calls - before.get(stage, 0) for stage, calls in calls_by_stage(prometheus).items()}
    assert set(stages) == {"read", "decode", "embed", "search", "score", "write"}
    assert stages["read"] == NUM_STRIPS + 1
    assert stages["search"] == NUM_STRIPS
    # alerts may be pending, but nothing here lasts long enough for one to fire
    firing = [labels["alertname"] for labels, _ in prometheus.query('ALERTS{alertstate="firing"}')]
    assert firing == []
    for panel in json.loads((REPOSITORY / "deploy/grafana/steelray.json").read_text())["panels"]:
        for target in panel["targets"]:
            prometheus.query(target["expr"].replace("$run", ".*"))
