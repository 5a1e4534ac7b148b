"""deploy/kubernetes: Kustomize builds it, KubeRay's documented fields and Kubernetes' published schemas accept it."""

import copy
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from steelray.job import parse
from steelray.patchcore.config import BuildMemoryBankConfig
from steelray.reconstruction.config import TrainConfig
from steelray.research.study.config import StudyConfig
from steelray.runs.config import ScoreArchiveConfig
from tests.deploy.kuberay import SCHEMAS

REPOSITORY = Path(__file__).parent.parent.parent
KUBERNETES = "1.34"
CONFIGS = {
    "build_memory_bank": BuildMemoryBankConfig,
    "score_archive": ScoreArchiveConfig,
    "train": TrainConfig,
    "tune": StudyConfig,
}
Manifest = dict[str, Any]


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it builds the overlays")
    command = ["kubectl", "kustomize", str(REPOSITORY / "deploy/kubernetes/overlays" / request.param)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def job_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    specs = {job["metadata"]["name"]: job["spec"] for job in of_kind(manifests, "RayJob")}
    return specs | {job["metadata"]["name"]: job["spec"]["jobTemplate"] for job in of_kind(manifests, "RayCronJob")}


def pod_templates(spec: Manifest) -> Iterator[tuple[str, Manifest]]:
    yield "submitter", spec["submitterPodTemplate"]
    yield "head", spec["rayClusterSpec"]["headGroupSpec"]["template"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield place, pod and container of every job's pods."""
    for spec in job_specs(manifests).values():
        for place, template in pod_templates(spec):
            for container in template["spec"]["containers"]:
                yield place, template["spec"], container


def test_there_is_one_for_every_kind_of_job_and_a_nightly(overlay: list[Manifest]) -> None:
    jobs = {"build-memory-bank", "score-archive", "train", "tune"}
    assert set(job_specs(overlay)) == jobs | {"nightly"}
    assert all(job["spec"]["suspend"] is True for job in of_kind(overlay, "RayJob")), "applying must start nothing"


def test_kuberay_knows_every_field(overlay: list[Manifest]) -> None:
    jobs = of_kind(overlay, "RayJob", "RayCronJob")
    assert len(jobs) == 5
    for job in jobs:
        jsonschema.validate(job, SCHEMAS[job["kind"]])


def test_an_unknown_field_is_found(overlay: list[Manifest]) -> None:
    job = copy.deepcopy(of_kind(overlay, "RayJob")[0])
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, SCHEMAS["RayJob"])


def test_kubernetes_accepts_everything_of_its_own(overlay: list[Manifest]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    own = [manifest for manifest in overlay if not manifest["apiVersion"].startswith("ray.io/")]
    kinds = {"Namespace", "ServiceAccount", "NetworkPolicy", "ConfigMap", "PersistentVolumeClaim"}
    assert {manifest["kind"] for manifest in own} == kinds
    for name, spec in job_specs(overlay).items():
        for place, template in pod_templates(spec):
            metadata = {"name": f"{name}-{place}", **template.get("metadata", {})}
            own.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    for manifest in own:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_nothing_runs_as_root_or_writes_to_its_image(overlay: list[Manifest]) -> None:
    for _, pod, container in containers(overlay):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert "/tmp" in writable  # noqa: S108 (a path in the pod)


def test_every_container_says_what_it_needs(overlay: list[Manifest]) -> None:
    assert all(spec["activeDeadlineSeconds"] > 0 for spec in job_specs(overlay).values())
    for place, pod, container in containers(overlay):
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert resources["limits"]["memory"] == resources["requests"]["memory"] or place == "submitter"
        assert ("nvidia.com/gpu" in resources["limits"]) == (place == "gpu")
        if place != "submitter":
            shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
            assert shm["emptyDir"]["medium"] == "Memory"


def test_the_object_store_fits_into_its_memory(overlay: list[Manifest]) -> None:
    for spec in job_specs(overlay).values():
        cluster = spec["rayClusterSpec"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            shm = next(v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm")
            memory = pod["containers"][0]["resources"]["limits"]["memory"]
            store = int(group["rayStartParams"]["object-store-memory"])
            assert store < int(shm.removesuffix("Gi")) * 2**30
            assert store <= int(memory.removesuffix("Gi")) * 2**30 / 2


def test_the_head_does_no_work_and_ray_asks_for_a_token(overlay: list[Manifest]) -> None:
    for spec in job_specs(overlay).values():
        cluster = spec["rayClusterSpec"]
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"])


def test_secrets_are_named_never_written(overlay: list[Manifest]) -> None:
    assert not of_kind(overlay, "Secret")
    for place, _, container in containers(overlay):
        for variable in container.get("env", []):
            assert not re.search("KEY|SECRET|TOKEN|PASSWORD", variable["name"])
        if place == "head":
            assert container["envFrom"] == [{"secretRef": {"name": "steelray-s3", "optional": True}}]


@pytest.mark.parametrize("name", ["build-memory-bank", "score-archive", "train", "tune", "nightly"])
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_the_settings_are_those_of_the_job(overlay: list[Manifest], name: str, tmp_path: Path) -> None:
    [settings] = [m["data"] for m in of_kind(overlay, "ConfigMap")]
    spec = job_specs(overlay)[name]
    interpreter, job, option, config_file = shlex.split(spec["entrypoint"])
    assert (interpreter, option) == ("python", "--config")
    assert (REPOSITORY / job.removeprefix("/opt/steelray/")).is_file()
    place = Path(config_file)
    assert place.parent == Path("/etc/steelray")
    file = tmp_path / place.name
    file.write_text(settings[place.name])
    config = parse(CONFIGS[place.stem], "", ["--config", str(file)])
    section, share = {
        TrainConfig: (config, "gpus_per_worker"),
        StudyConfig: (getattr(config, "resources", None), "gpus_per_trial"),
    }.get(type(config), (getattr(config, "compute", None), "gpus_per_scorer"))
    wants_gpu = getattr(section, share)
    groups = {group["groupName"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    assert bool(wants_gpu) == ("gpu" in groups)


def test_the_nightly_is_the_scoring_job(overlay: list[Manifest]) -> None:
    specs = job_specs(overlay)
    for field in ("entrypoint", "rayClusterSpec", "submitterPodTemplate"):
        assert specs["nightly"][field] == specs["score-archive"][field]
    assert "suspend" not in specs["nightly"]
    assert specs["nightly"]["activeDeadlineSeconds"] < 24 * 3600, "two nightly runs must not overlap"
