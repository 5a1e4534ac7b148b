"""The fields of KubeRay's custom resources (ray.io/v1, KubeRay 1.6) as its API reference documents them.

Written by hand from the reference, as a JSON schema that refuses every other field: the published CRDs come with the
operator's Helm chart only, which no package registry carries. Pod templates are left open here; the test hands them to
the published schema of Kubernetes itself.
"""

from typing import Any

TEXT, FLAG, MAP, OPEN = {"type": "string"}, {"type": "boolean"}, {"type": "object"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


WORKER_GROUP = fields(
    ("groupName", "template", "rayStartParams", "minReplicas", "maxReplicas"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    template=OPEN,
    scaleStrategy=OPEN,
)
HEAD_GROUP = fields(
    ("template", "rayStartParams"),
    template=OPEN,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    headService=OPEN,
    enableIngress=FLAG,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
AUTOSCALER = fields(
    resources=OPEN,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=OPEN,
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
CLUSTER_SPEC = fields(
    ("headGroupSpec",),
    suspend=FLAG,
    managedBy=TEXT,
    authOptions=fields(mode={"enum": ["token", "disabled"]}, secretName=TEXT, enableK8sTokenAuth=FLAG),
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=OPEN,
    headGroupSpec=HEAD_GROUP,
    rayVersion=TEXT,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
JOB_SPEC = fields(
    ("rayClusterSpec", "entrypoint"),
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
    submitterPodTemplate=OPEN,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=OPEN,
    managedBy=TEXT,
    deletionStrategy=OPEN,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
CRON_JOB_SPEC = fields(("schedule", "jobTemplate"), schedule=TEXT, suspend=FLAG, jobTemplate=JOB_SPEC)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=MAP,
        spec=spec,
    )


SCHEMAS = {"RayJob": resource("RayJob", JOB_SPEC), "RayCronJob": resource("RayCronJob", CRON_JOB_SPEC)}
