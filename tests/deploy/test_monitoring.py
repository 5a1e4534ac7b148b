"""Alert rules and dashboard: valid, about metrics that exist, and raised by the runs that they are for."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent.parent
ALERTS = REPOSITORY / "deploy/prometheus/alerts.yaml"
DASHBOARD = REPOSITORY / "deploy/grafana/steelray.json"
SUFFIXES = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}


def exported_names() -> set[str]:
    """Return the names under which Ray exports the metrics of steelray/cluster/metrics.py."""
    names = set()
    tree = ast.parse((REPOSITORY / "steelray/cluster/metrics.py").read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        if call.func.id in SUFFIXES:
            names |= {f"ray_{ast.literal_eval(call.args[0])}{suffix}" for suffix in SUFFIXES[call.func.id]}
    return names


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", "--syntax-only", str(REPOSITORY / "deploy/prometheus/prometheus.yaml"))


def test_every_alert_is_raised_by_its_run_and_by_no_other() -> None:
    promtool("test", "rules", str(Path(__file__).parent / "alerts_test.yaml"))
    tested = (Path(__file__).parent / "alerts_test.yaml").read_text()
    for alert in alerts():
        for expectation in (f"alertname: {alert['alert']}}}", f"alertname: {alert['alert']}\n        exp_alerts"):
            assert expectation in tested, f"{alert['alert']} is not tested both ways"


def test_every_alert_has_its_section_for_the_operator() -> None:
    headings = re.findall(r"^#+ (.+)$", (REPOSITORY / "docs/operating.md").read_text(), re.MULTILINE)
    for alert in alerts():
        place, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert place == "docs/operating.md"
        assert anchor == alert["alert"].lower()
        assert alert["alert"] in headings
        assert alert["labels"]["severity"] in ("warning", "critical")


def test_rules_and_panels_are_about_metrics_that_exist() -> None:
    text = ALERTS.read_text() + DASHBOARD.read_text()
    used = set(re.findall(r"ray_steelray_\w+", text))
    assert used == exported_names() - {name for name in exported_names() if name.endswith("_count")} - {
        "ray_steelray_score_ratio_sum"
    }


def test_every_panel_s_query_is_valid(tmp_path: Path) -> None:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(queries) > 10
    rules = [{"record": f"panel:{number}", "expr": query.replace("$run", ".*")} for number, query in enumerate(queries)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_panels_do_not_cover_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
    assert len({panel["id"] for panel in panels()}) == len(panels())
