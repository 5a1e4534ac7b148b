"""The fields of KubeRay's custom resources (ray.io/v1, KubeRay 1.6) as its API reference documents them.

Written by hand from the reference, as a JSON schema that refuses every other field: the published CRDs come with the
operator's Helm chart only, which no package registry carries. Pod templates are left open here; the test hands them to
the published schema of Kubernetes itself.
"""

from typing import Any

TEXT, FLAG, MAP, OPEN = {"type": "string"}, {"type": "boolean"}, {"type": "object"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


def each(schema: dict[str, Any], names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), schema)


WORKER_GROUP = fields(
    "groupName template rayStartParams minReplicas maxReplicas",
    groupName=TEXT,
    suspend=FLAG,
    **each(COUNT, "replicas minReplicas maxReplicas numOfHosts idleTimeoutSeconds"),
    **each(TEXTS, "rayStartParams resources labels"),
    **each(OPEN, "template scaleStrategy"),
)
HEAD_GROUP = fields(
    "template rayStartParams",
    **each(OPEN, "template headService"),
    **each(TEXTS, "rayStartParams resources labels"),
    enableIngress=FLAG,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
AUTOSCALER = fields(
    **each(OPEN, "resources securityContext"),
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    **each({"type": "array"}, "env envFrom volumeMounts"),
)
CLUSTER_SPEC = fields(
    "headGroupSpec",
    **each(FLAG, "suspend enableInTreeAutoscaling"),
    **each(TEXT, "managedBy rayVersion"),
    authOptions=fields(mode={"enum": ["token", "disabled"]}, secretName=TEXT, enableK8sTokenAuth=FLAG),
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    gcsFaultToleranceOptions=OPEN,
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
JOB_SPEC = fields(
    "rayClusterSpec entrypoint",
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    rayClusterSpec=CLUSTER_SPEC,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    **each(TEXT, "managedBy entrypoint runtimeEnvYAML jobId entrypointResources"),
    **each(TEXTS, "metadata clusterSelector"),
    **each(OPEN, "submitterPodTemplate submitterConfig deletionStrategy"),
    **each(COUNT, "backoffLimit ttlSecondsAfterFinished"),
    **each({"type": "number"}, "entrypointNumCpus entrypointNumGpus"),
    **each(FLAG, "shutdownAfterJobFinishes suspend"),
)
CRON_JOB_SPEC = fields("schedule jobTemplate", schedule=TEXT, suspend=FLAG, jobTemplate=JOB_SPEC)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=MAP,
        spec=spec,
    )


SCHEMAS = {"RayJob": resource("RayJob", JOB_SPEC), "RayCronJob": resource("RayCronJob", CRON_JOB_SPEC)}
