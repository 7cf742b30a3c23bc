"""Policies that the rendered objects of every environment must meet.

They are plain functions from objects to violations. What kube-score and checkov check as well is left to them: see
tests/infra/test_manifests.py.
"""

from __future__ import annotations

import inspect
import ipaddress
import json
import re
from collections.abc import Iterator
from typing import Any

from infra.components.bucket import Bucket
from infra.components.database import Database
from infra.identities import SECRETS
from infra.settings import INTERPRETER_MB, amount
from infra.workload import NAME
from mlops.sandbox import run_in_sandbox
from monitoring import decoder

Objects = list[dict[str, Any]]
_WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")
_SERVERS = ("Deployment", "StatefulSet")
_PROBES = ("readinessProbe", "livenessProbe")
_SCRATCH = ("emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim", "downwardAPI")
# Who asks the Kubernetes API, and therefore has a token.
_ASKS_THE_API = ("setup-keys", "kube-state-metrics")
# What `pulumi up` waits for: a request is answered by these, or by what they created.
_REQUEST_PATH = ("setup-keys", "setup-bucket", "bucket", "serving", "proxy")
_OWN_MB = {"app": 512, "train": 2048, "approver": 256, "controller": 1024}  # without children
LISTENERS = "alb.ingress.kubernetes.io/listen-ports"
_SKIP_AWAIT = "pulumi.com/skipAwait"
_LINK_LOCAL = "169.254.0.0/16"  # a node's credentials are there
_RESOLVERS = ("172.20.0.10/32", "10.100.0.10/32", "169.254.20.10/32")  # no pods: of EKS; NodeLocal DNSCache
_KUBE_DNS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
}
# Secrets that are mounted as files, by workload.
_BESIDES = {"training": "signing-build", "approver": "signing-approve", "controller": "client-key"}
_EVERY_SECRET = {secret for known in SECRETS.values() for secret, _ in known.values()} | {*_BESIDES.values()}
_ENVIRONMENT_OF_SECRETS = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CLIENT_KEY")


def _title(thing: dict[str, Any]) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


def _of(objects: Objects, *kinds: str) -> list[dict[str, Any]]:
    return [thing for thing in objects if thing["kind"] in kinds]


def _template(thing: dict[str, Any]) -> dict[str, Any]:
    spec = thing["spec"]["jobTemplate"]["spec"] if thing["kind"] == "CronJob" else thing["spec"]
    return spec["template"]


def _pods(objects: Objects) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for thing in _of(objects, *_WORKLOADS):
        yield thing, _template(thing)["spec"]


def _containers(objects: Objects) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    for thing, pod in _pods(objects):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{_title(thing)} {container['name']}", thing, pod, container


def pods_are_confined(objects: Objects) -> Iterator[str]:
    """No root, and nothing of the host's disk."""
    for thing, pod in _pods(objects):
        security, name = pod.get("securityContext", {}), _title(thing)
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            yield f"{name}: runs as root"
        for volume in pod.get("volumes", []):
            yield from (f"{name}: volume of kind {kind}" for kind in set(volume) - {"name"} - set(_SCRATCH))


def namespaces_enforce_restricted(objects: Objects) -> Iterator[str]:
    for thing in _of(objects, "Namespace"):
        if thing["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{_title(thing)}: does not enforce restricted"


def resources_are_bounded(objects: Objects) -> Iterator[str]:
    for name, _, pod, container in _containers(objects):
        if "cpu" in container.get("resources", {}).get("limits", {}):
            yield f"{name}: a CPU limit throttles, it protects nobody"
        yield from (
            f"{name}: {volume['name']} has no size"
            for volume in pod.get("volumes", [])
            if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit")
        )


def liveness_needs_no_model(objects: Objects) -> Iterator[str]:
    """A replica that has no model yet is not ready, and is not killed for it."""
    for name, thing, _, container in _containers(objects):
        if thing["metadata"].get("labels", {}).get(NAME) == "serving":
            asked = [container.get(probe, {}).get("httpGet", {}).get("path") for probe in _PROBES]
            if asked[0] == asked[1] is not None:
                yield f"{name}: liveness asks what readiness asks"


def serving_stays_up(objects: Objects) -> Iterator[str]:
    """No replica goes before the next is there; several, spread, drained, and as many as the autoscaler says."""
    for thing in [t for t in _of(objects, "Deployment") if t["metadata"]["labels"][NAME] in ("serving", "proxy")]:
        name, spec, pod = _title(thing), thing["spec"], _template(thing)["spec"]
        if spec.get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") != 0:
            yield f"{name}: a rolling update takes replicas away"
        if not pod.get("topologySpreadConstraints"):
            yield f"{name}: not spread"
        stop = pod["containers"][0].get("lifecycle", {}).get("preStop")
        if not stop:
            yield f"{name}: not drained before it stops"
        elif pod.get("terminationGracePeriodSeconds", 30) <= stop.get("sleep", {}).get("seconds", 10):
            yield f"{name}: killed while it drains"
        workload = thing["metadata"]["labels"][NAME]
        budgets = [
            b for b in _of(objects, "PodDisruptionBudget") if b["spec"]["selector"]["matchLabels"] == {NAME: workload}
        ]
        if not budgets:
            yield f"{name}: no PodDisruptionBudget"
        least = _least_replicas(objects, thing["metadata"]["name"])
        if least is not None and "replicas" in spec:
            yield f"{name}: replicas and an autoscaler fight"
        stable = spec["selector"]["matchLabels"]["track"] == "stable"
        if stable and (spec.get("replicas", 1) if least is None else least) < 2:
            yield f"{name}: one replica"


def _least_replicas(objects: Objects, deployment: str) -> int | None:
    """As its autoscaler has it; None without one."""
    for kind, least in (("HorizontalPodAutoscaler", "minReplicas"), ("ScaledObject", "minReplicaCount")):
        for scaler in _of(objects, kind):
            if scaler["spec"]["scaleTargetRef"]["name"] == deployment:
                return scaler["spec"][least]
    return None


def selectors_never_change(objects: Objects) -> Iterator[str]:
    for thing in _of(objects, *_SERVERS):
        selector, labels = thing["spec"]["selector"]["matchLabels"], _template(thing)["metadata"]["labels"]
        if set(selector) != {NAME, "track"}:
            yield f"{_title(thing)}: selects by {sorted(selector)}"
        if any(labels.get(key) != value for key, value in selector.items()):
            yield f"{_title(thing)}: does not select its own pods"


def services_find_pods(objects: Objects) -> Iterator[str]:
    labels = [_template(thing)["metadata"]["labels"] for thing in _of(objects, *_WORKLOADS)]
    for thing in _of(objects, "Service"):
        if thing["spec"].get("type") == "ExternalName":
            continue
        selector = thing["spec"].get("selector") or {"": ""}
        if not any(selector.items() <= found.items() for found in labels):
            yield f"{_title(thing)}: selects nothing"
        if thing["spec"].get("type") == "LoadBalancer":
            yield f"{_title(thing)}: open to the world; an Ingress is the way in"


def images_are_exact(objects: Objects, environment: str) -> Iterator[str]:
    for name, _, _, container in _containers(objects):
        image = container["image"]
        if environment != "kind" and "@sha256:" not in image:
            yield f"{name}: {image} is not named by digest"
        if container.get("imagePullPolicy") != "IfNotPresent":
            yield f"{name}: pulls at each start, so it cannot start without the registry"


def tokens_go_to_who_asks(objects: Objects) -> Iterator[str]:
    for thing, pod in _pods(objects):
        workload = _template(thing)["metadata"]["labels"][NAME]
        if pod.get("automountServiceAccountToken") is not (workload in _ASKS_THE_API):
            yield f"{_title(thing)}: token of the Kubernetes API"
        if pod.get("serviceAccountName") != workload:
            yield f"{_title(thing)}: runs as {pod.get('serviceAccountName')}, not as itself"
        if pod.get("enableServiceLinks") is not False:
            yield f"{_title(thing)}: is told of every Service by environment variables"
    accounts = {thing["metadata"]["name"] for thing in _of(objects, "ServiceAccount")}
    yield from (
        f"{_title(t)}: no such ServiceAccount"
        for t, pod in _pods(objects)
        if pod.get("serviceAccountName") not in accounts
    )


def rights_are_small(objects: Objects) -> Iterator[str]:
    for thing in _of(objects, "Role", "ClusterRole"):
        for rule in thing["rules"]:
            if "*" in [*rule.get("verbs", []), *rule.get("resources", []), *rule.get("apiGroups", [])]:
                yield f"{_title(thing)}: a wildcard"
            reads_secrets = "secrets" in rule.get("resources", []) and set(rule["verbs"]) - {"create"}
            if reads_secrets and (thing["kind"] == "ClusterRole" or not rule.get("resourceNames")):
                yield f"{_title(thing)}: reads any Secret"
    for thing in _of(objects, "RoleBinding", "ClusterRoleBinding"):
        if thing["roleRef"]["name"] in ("cluster-admin", "admin", "edit"):
            yield f"{_title(thing)}: binds {thing['roleRef']['name']}"


def nobody_talks_unasked(objects: Objects) -> Iterator[str]:
    """Default deny, a policy for each workload, and none that lets everything in or out."""
    policies = _of(objects, "NetworkPolicy")
    deny = [
        p
        for p in policies
        if p["spec"]["podSelector"] == {}
        and {*p["spec"]["policyTypes"]} == {"Ingress", "Egress"}
        and not p["spec"].get("ingress")
    ]
    if not deny:
        yield "NetworkPolicy/default-deny: missing"
    for policy in policies:
        for way, ends in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(way, []):
                if not rule.get("ports"):
                    yield f"{_title(policy)}: {way} on every port"
                if not rule.get(ends):
                    yield f"{_title(policy)}: {way} with everybody"
                for block in (peer["ipBlock"] for peer in rule.get(ends, []) if "ipBlock" in peer):
                    around = ipaddress.IPv4Network(block["cidr"]).supernet_of(ipaddress.IPv4Network(_LINK_LOCAL))
                    if around and _LINK_LOCAL not in block.get("except", []):
                        yield f"{_title(policy)}: reaches the credentials of the node"
    for policy in policies:
        for rule in policy["spec"].get("egress", []):
            asked = [peer for peer in rule.get("to", []) if any(port.get("port", 53) == 53 for port in rule["ports"])]
            known = [_KUBE_DNS, *({"ipBlock": {"cidr": each}} for each in _RESOLVERS)]
            yield from (f"{_title(policy)}: asks {peer} for names" for peer in asked if peer not in known)
    covered = {policy["spec"]["podSelector"].get("matchLabels", {}).get(NAME) for policy in policies}
    for thing, _ in _pods(objects):
        if _template(thing)["metadata"]["labels"][NAME] not in covered:
            yield f"{_title(thing)}: no NetworkPolicy"


def callers_are_encrypted(objects: Objects, environment: str) -> Iterator[str]:
    """Outside kind: the way in has a certificate, and is the only one."""
    if environment == "kind":
        return
    for thing in _of(objects, "Ingress"):
        spec, notes = thing["spec"], thing["metadata"].get("annotations", {})
        hosts = {host for each in spec.get("tls", []) if each.get("secretName") for host in each["hosts"]}
        classes = [
            c for c in _of(objects, "IngressClassParams") if c["metadata"]["name"] == spec.get("ingressClassName")
        ]
        by_class = any(c["spec"].get("certificateARNs") for c in classes) and 'HTTP"' not in notes.get(
            LISTENERS, 'HTTP"'
        )
        if not by_class and {rule.get("host", "") for rule in spec["rules"]} - hosts:
            yield f"{_title(thing)}: without TLS"
    for thing in _of(objects, "Service"):
        if thing["spec"].get("type") == "NodePort":
            yield f"{_title(thing)}: a port of every node, without TLS"


def databases_are_encrypted(objects: Objects) -> Iterator[str]:
    """Where the server is not bundled, it is asked over TLS, and says who it is where its authority is known."""
    bundled = any(thing["metadata"]["name"] == "database" for thing in _of(objects, "StatefulSet"))
    for name, _, _, container in _containers(objects):
        told = {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}
        if bundled or "MLFLOW_BACKEND_STORE_URI" not in told:
            continue
        if told.get("PGSSLMODE") not in ("require", "verify-full"):
            yield f"{name}: asks the database without TLS"
        if told.get("PGSSLMODE") == "verify-full" and not told.get("PGSSLROOTCERT"):
            yield f"{name}: knows no authority"


def memory_suffices(objects: Objects) -> Iterator[str]:
    """What a container may need at once: its own process, and each child up to its limit."""
    sandbox = inspect.signature(run_in_sandbox).parameters["memory_mb"].default
    for name, _, _, container in _containers(objects):
        told = {each["name"]: each.get("value", "") for each in container.get("env", [])}
        children = {
            "app": [int(told.get("MLOPS_SANDBOX_MEMORY_MB", sandbox))] * 2,  # a challenger, and the sandbox of the next
            "train": [sandbox],
            "approver": [sandbox],
            "controller": [decoder._MEMORY_MB],
        }.get(container["name"], [])
        needed = _OWN_MB.get(container["name"], 0) + sum(INTERPRETER_MB + child for child in children)
        if container["name"] == "haproxy":
            needed = _buffers(objects)
        if amount(container["resources"]["limits"]["memory"]) / 2**20 < needed:
            yield f"{name}: its parts may take {needed} MB"


def _buffers(objects: Objects) -> int:
    """MB that HAProxy takes if every connection uses the three buffers that it may."""
    (text,) = (each["data"]["haproxy.cfg"] for each in _of(objects, "ConfigMap") if "haproxy.cfg" in each["data"])
    connections, buffer = (int(re.findall(rf"^  {key} (\d+)", text, re.M)[0]) for key in ("maxconn", "tune.bufsize"))
    return 64 + 3 * connections * buffer // 2**20


def secrets_stay_in_the_cluster(objects: Objects) -> Iterator[str]:
    """No Secret is rendered, none is in a plain variable or argument, and who trains cannot approve."""
    yield from (f"{_title(thing)}: its content would be in Pulumi's state" for thing in _of(objects, "Secret"))
    for name, thing, pod, container in _containers(objects):
        for variable in container.get("env", []):
            if "value" in variable and _ENVIRONMENT_OF_SECRETS.search(variable["name"]):
                yield f"{name}: {variable['name']} is written out"
            if "value" in variable and re.search(r"://[^/@\s]*:[^/@\s]+@", variable["value"]):
                yield f"{name}: {variable['name']} has a password in its address"
        workload = _template(thing)["metadata"]["labels"][NAME]
        mounted = str(pod.get("volumes", [])) + str(container.get("env", []))
        if "signing-approve" in mounted and workload != "approver":
            yield f"{name}: {workload} could approve models"
        if "signing-build" in mounted and workload != "training":
            yield f"{name}: {workload} could sign trainings"


def secrets_are_ones_own(objects: Objects) -> Iterator[str]:
    """A workload has the variables and Secrets of its identity alone; what was brought along is one workload's too."""
    holders: dict[str, set[str]] = {}
    for name, thing, pod, container in _containers(objects):
        workload = _template(thing)["metadata"]["labels"][NAME]
        known = SECRETS.get(workload, {})
        ours = {secret for secret, _ in known.values()} | {_BESIDES.get(workload, workload)}
        given = {each["name"] for each in container.get("env", []) if "secretKeyRef" in each.get("valueFrom", {})}
        if workload in SECRETS and given - known.keys():
            yield f"{name}: has {', '.join(sorted(given - known.keys()))} of others"
        for secret in {*_secrets(pod)} - ours:
            if secret in _EVERY_SECRET:
                yield f"{name}: has {secret} of others"
            holders.setdefault(secret, set()).add(workload)
    for secret, several in holders.items():
        if len(several) > 1 and several != {"tracking", "setup-database"}:  # of one user of the database
            yield f"{secret}: shared by {', '.join(sorted(several))}"


def what_lasts_is_outside(objects: Objects, environment: str) -> Iterator[str]:
    """Bundled stateful parts are for kind and dev."""
    if environment in ("staging", "prod"):
        for thing in _of(objects, "StatefulSet"):
            if thing["metadata"]["name"] in (Database.__name__.lower(), Bucket.__name__.lower()):
                yield f"{_title(thing)}: bundled in {environment}"


def everything_is_labelled(objects: Objects) -> Iterator[str]:
    for thing in objects:
        namespaced = thing["metadata"].get("namespace") is not None
        if namespaced and thing["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") != "mlops":
            yield f"{_title(thing)}: not labelled as part of the platform"


def only_the_request_path_is_awaited(objects: Objects) -> Iterator[str]:
    """Nothing else may hold up `pulumi up`."""
    for thing in _of(objects, "Deployment", "StatefulSet", "Job", "Service"):
        workload = thing["metadata"].get("labels", {}).get(NAME)
        skipped = thing["metadata"].get("annotations", {}).get(_SKIP_AWAIT)
        if workload in _REQUEST_PATH and skipped is not None:
            yield f"{_title(thing)}: is in the request path, and not awaited"
        if workload not in _REQUEST_PATH and skipped != "true":
            yield f"{_title(thing)}: is not in the request path, and may hold up a deployment"


def eks_enforces_the_policies(objects: Objects) -> Iterator[str]:
    """Auto Mode does only where its controller is told to."""
    classes = [c for c in _of(objects, "StorageClass") if c["provisioner"] == "ebs.csi.eks.amazonaws.com"]
    if classes or _of(objects, "NodePool"):
        place = ("kube-system", "amazon-vpc-cni")
        maps = [
            m for m in _of(objects, "ConfigMap") if (m["metadata"].get("namespace"), m["metadata"]["name"]) == place
        ]
        if not any(each["data"].get("enable-network-policy-controller") == "true" for each in maps):
            yield "ConfigMap/amazon-vpc-cni: NetworkPolicies are not enforced"


# Of what a pipeline's group asks → to which the admission says what else must be so, and in which words.
_HELD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "train": (
        {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]},
        ("serviceAccountName == 'training'", "!has(variables.pod.initContainers)", "all(c, c.image == variables.image)",
         "all(v, has(v.emptyDir) || has(v.projected)", "s.secret.name in variables.secrets",
         "e.valueFrom.?secretKeyRef.name.orValue('') in variables.secrets", "e.?secretRef.name.orValue('') in variables.secrets"),
    ),
    "promote": (
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/exec"]},
        ("request.name.startsWith('controller-')", "request.name.startsWith('approver-')", *(f"object.command[{n}]" for n in range(6)), "== 'cli'"),
    ),
}  # fmt: skip


def pipelines_are_held(objects: Objects) -> Iterator[str]:
    """On a cluster of ours: a training's Jobs are like its CronJob's, a promotion runs mlops in the controller."""
    if not any(c["provisioner"] == "ebs.csi.eks.amazonaws.com" for c in _of(objects, "StorageClass")):
        return
    (training,) = (thing for thing in _of(objects, "CronJob") if thing["metadata"]["name"] == "training")
    pod, ours = _template(training)["spec"], {"kubernetes.io/metadata.name": training["metadata"]["namespace"]}
    known = {"image": pod["containers"][0]["image"], "secrets": sorted({*_secrets(pod)})}
    for purpose, (rule, words) in _HELD.items():
        found = {t["kind"]: t["spec"] for t in objects if t["metadata"]["name"] == f"mlops-{purpose}"}
        spec, bound = (found.get(f"ValidatingAdmissionPolicy{end}", {}) for end in ("", "Binding"))
        where = {"namespaceSelector": {"matchLabels": ours}, "resourceRules": [rule]}
        who = [each["expression"] for each in spec.get("matchConditions", [])]
        if (spec.get("failurePolicy"), spec.get("matchConstraints")) != ("Fail", where):
            yield f"{purpose}: not asked, or others are asked too"
        if who != [f"'mlops:{purpose}' in request.userInfo.groups"]:
            yield f"{purpose}: another group is asked"
        if bound != {"policyName": f"mlops-{purpose}", "validationActions": ["Deny"]}:
            yield f"{purpose}: nothing is denied"
        said = "".join(each["expression"] for each in spec.get("validations", []))
        yield from (f"{purpose}: nothing says {each}" for each in words if each not in said)
        values = {each["name"]: each["expression"] for each in spec.get("variables", [])}
        if purpose == "train" and {key: json.loads(values.get(key, "0")) for key in known} != known:
            yield "train: its Jobs have other images or Secrets than the CronJob"


def _secrets(value: Any) -> Iterator[str]:
    """Names of the Secrets that a pod has."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key in ("secret", "secretKeyRef", "secretRef"):
            yield each.get("name") or each["secretName"]
        else:
            yield from _secrets(each)


EVERYWHERE = (
    eks_enforces_the_policies,
    pods_are_confined,
    namespaces_enforce_restricted,
    resources_are_bounded,
    liveness_needs_no_model,
    serving_stays_up,
    selectors_never_change,
    services_find_pods,
    tokens_go_to_who_asks,
    rights_are_small,
    nobody_talks_unasked,
    databases_are_encrypted,
    memory_suffices,
    secrets_stay_in_the_cluster,
    secrets_are_ones_own,
    everything_is_labelled,
    only_the_request_path_is_awaited,
    pipelines_are_held,
)
BY_ENVIRONMENT = (images_are_exact, callers_are_encrypted, what_lasts_is_outside)


def violations(objects: Objects, environment: str) -> list[str]:
    found = [(policy.__name__, policy(objects)) for policy in EVERYWHERE]
    found += [(policy.__name__, policy(objects, environment)) for policy in BY_ENVIRONMENT]
    return [f"{name}: {violation}" for name, each in found for violation in each]
