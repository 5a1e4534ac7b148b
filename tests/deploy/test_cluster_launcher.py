"""cluster.yaml and its on-premise variant against the launcher's own schema, and against what they promise."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parent.parent.parent
FILES = ["cluster.yaml", "deploy/cluster-onprem.yaml"]


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / name).read_text())
    return config


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def start_options(command: str) -> dict[str, str]:
    words = shlex.split(command[command.index("ray start") :])
    return dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))


def test_the_launcher_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_the_launcher_s_schema_refuses_a_typing_error(config: dict[str, Any]) -> None:
    config["idle_timeout_minuets"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(config))


def test_workers_come_and_go_by_themselves_and_the_head_does_no_work() -> None:
    config = prepare_config(load("cluster.yaml"))
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"]["CPU"] == 0
    workers = {name: kind for name, kind in kinds.items() if name != config["head_node_type"]}
    assert [kind["resources"].get("GPU", 0) > 0 for kind in workers.values()] == [False, True]
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) == config["max_workers"]
    for kind in workers.values():
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"], "the head must not be taken away"


def test_every_machine_of_the_plant_is_used() -> None:
    kind = prepare_config(load("deploy/cluster-onprem.yaml"))["available_node_types"]["local.cluster.node"]
    assert kind["min_workers"] == kind["max_workers"] == 3


def test_nodes_install_the_pins_and_nothing_else(config: dict[str, Any]) -> None:
    [remote] = [remote for remote, local in config["file_mounts"].items() if local == "requirements.txt"]
    [install] = [command for command in config["setup_commands"] if " install " in command]
    assert "--no-deps" in install
    assert install.endswith(f"--requirement {remote}")
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert prepare_config(config)[commands] == config["setup_commands"], "the launcher's defaults install more"
    pins = [line for line in (REPOSITORY / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in pins)


def test_ray_asks_for_a_token_and_shows_its_dashboard_to_nobody(config: dict[str, Any]) -> None:
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token ray start" in command
        options = start_options(command)
        assert int(options["object-store-memory"]) >= 2**30
        assert "spill" in options["object-spilling-directory"]
    assert start_options(head)["dashboard-host"] == "127.0.0.1"
    assert start_options(head)["num-cpus"] == "0"
    assert {remote: local for remote, local in config["file_mounts"].items() if ".ray/" in local} == dict(
        [("~/.ray/auth_token",) * 2]
    )


def test_no_secret_is_in_the_files() -> None:
    for file in [REPOSITORY / name for name in FILES] + sorted((REPOSITORY / "deploy").rglob("*.*")):
        if file.is_file():
            text = file.read_text()
            assert not re.search(r"AKIA[0-9A-Z]{16}", text), file
            assert not re.search(r"(?i)(secret_access_key|auth_token)\s*[:=]\s*['\"]?[0-9a-zA-Z/+]{16,}", text), file


def test_roles_not_keys() -> None:
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in load("cluster.yaml")["available_node_types"].items()
    }
    assert profiles == {"head": "steelray-head", "cpu_worker": "steelray-worker", "gpu_worker": "steelray-worker"}
    jobs = json.loads((REPOSITORY / "deploy/iam/jobs.json").read_text())
    read, write = jobs["Statement"]
    assert not [action for action in read["Action"] if "Put" in action or "Delete" in action]
    assert "s3:PutObject" in write["Action"]
    for name in ("head", "jobs"):
        for statement in json.loads((REPOSITORY / f"deploy/iam/{name}.json").read_text())["Statement"]:
            assert statement["Action"] != "*"
