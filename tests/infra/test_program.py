from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

from infra.components.eks import KINDS
from infra.render import PLATFORM, UNKNOWN, Rendered
from mlops.environment import ROOT
from tests.infra import schemas
from tests.infra.policies import violations
from tests.infra.rendering import render, setting_paths

_EXTERNAL_BUCKET = {"bucket.kind": "external", "bucket.endpoint": "https://s3.example.com:9000", "bucket.secret": "s3"}
_EXTERNAL_DATABASE = {
    "database.kind": "external",
    "database.host": "db.example.com",
    "database.port": 6432,
    "database.secret": "db",
}
_ON_A_CLUSTER = {"cluster.kind": "kubeconfig", "cluster.context": "ours"}
_BUNDLED = {"bucket.kind": "bundled", "database.kind": "bundled"}
STACKS = sorted(PLATFORM.stacks.glob("Pulumi.*.yaml"))
CUSTOM = (
    "ServiceMonitor",
    "PrometheusRule",
    "ScaledObject",
    "NodePool",
    "IngressClassParams",
)  # of operators: their schemas are not here
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "kind": ("kind", {}),
    "dev": ("dev", {}),
    "staging": ("staging", {}),
    "prod": ("prod", {}),
    "a bucket brought along": ("kind", _EXTERNAL_BUCKET),
    "a database brought along": ("kind", _EXTERNAL_DATABASE),
    "a tracking server brought along": ("kind", {"tracking.kind": "external", "tracking.url": "https://mlflow.example.com", "tracking.secret": "mlflow"}),
    "a database with an authority of its own": ("prod", {"database.ca": "database-ca"}),
    "NodeLocal DNSCache": ("kind", {"cluster.dns": "169.254.20.10/32"}),
    "everything brought along": ("prod", _ON_A_CLUSTER | _EXTERNAL_BUCKET | _EXTERNAL_DATABASE | {"tracking.kind": "external", "tracking.url": "https://mlflow.example.com"}),
    "a cluster brought along": ("dev", _ON_A_CLUSTER | _BUNDLED),
    "EKS with a load balancer for everybody": (
        "prod", {"ingress.enabled": True, "ingress.host": "ml.example.com", "ingress.scheme": "internet-facing", "ingress.certificate": "arn:aws:acm:us-east-1:000000000000:certificate/1"},
    ),
    "EKS with arm64 and training alone on spot nodes": ("dev", {"nodes.spot": "training", "nodes.architecture": "arm64"}),
    "EKS with an Ingress of another class": ("dev", {"ingress.enabled": True, "ingress.host": "ml.example.com", "ingress.class": "nginx", "ingress.tlsSecret": "tls"}),
    "EKS without spot nodes": ("prod", {"nodes.spot": "none"}),
    "EKS with everything bundled": ("dev", _BUNDLED),
    "the Prometheus Operator": ("dev", {"monitoring.kind": "operator", "monitoring.labels": "release=prom,team=ml"}),
    "no monitoring": ("dev", {"monitoring.kind": "none"}),
    "no Grafana": ("kind", {"grafana.enabled": False}),
    "a kube-state-metrics of the cluster": ("kind", {"kubeStateMetrics.enabled": False}),
    "a namespace of a shared cluster": ("dev", {"clusterScope": False}),
    "scaled by KEDA": ("kind", {"serving.scaleOn": "keda"}),
    "scaled by KEDA on another Prometheus": (
        "dev", {"monitoring.kind": "operator", "serving.scaleOn": "keda", "monitoring.prometheus": "http://prometheus.monitoring.svc:9090"},
    ),
    "scaled by an adapter": ("dev", _ON_A_CLUSTER | _BUNDLED | {"serving.scaleOn": "adapter"}),
    "an Ingress": ("prod", {"ingress.enabled": True, "ingress.class": "nginx", "ingress.host": "ml.example.com", "ingress.tlsSecret": "tls"}),
    "a code canary": ("kind", {"serving.canaryImage": "docker.io/library/mlops-app:next"}),
    "a mirror and a pull secret": ("prod", {"images.mirror": "mirror.example.com/hub", "images.pullSecret": "registry"}),
    "alerts to people": (
        "prod",
        {"alerts.secret": "alerting", "alerts.slackChannel": "#ml", "alerts.emailTo": "a@example.com", "alerts.emailFrom": "b@example.com",
         "alerts.smtpHost": "smtp.example.com:587", "alerts.webhook": "https://example.com/hook", "alerts.heartbeat": "https://example.com/alive"},
    ),
    "alerts to secret addresses": ("prod", {"alerts.secret": "alerting", "alerts.webhook": "secret", "alerts.heartbeat": "secret"}),
    "training that reaches a warehouse": ("prod", {"training.secret": "warehouse", "training.egress": "10.1.0.0/16:5439,10.2.0.1/32:443,0.0.0.0/0:5432", "training.schedule": ""}),
}  # fmt: skip


@pytest.mark.parametrize("preview", [False, True], ids=["up", "preview"])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_stack_and_choice_renders_valid_in_place_and_within_policy(choice: str, preview: bool) -> None:
    environment, changes = CHOICES[choice]
    rendered = render(environment, changes, preview)
    assert violations(rendered.objects, environment) == []
    names = [
        (thing["kind"], thing["metadata"].get("namespace"), thing["metadata"]["name"]) for thing in rendered.objects
    ]
    assert len(set(names)) == len(names) > 40
    assert kinds(rendered.objects) - {("", "secrets")} <= {
        (group, each) for group, read in KINDS.items() for each in read
    }
    assert UNKNOWN not in str(names)
    assert [fault for thing in rendered.objects if thing["kind"] not in CUSTOM for fault in schemas.faults(thing)] == []
    for resource in rendered.resources:
        if resource.type.startswith("kubernetes:"):
            assert resource.provider.split("::")[-2] == "cluster", resource.urn
            assert "mlops:platform" in resource.parent or resource.inputs["kind"] == "Namespace", resource.urn


def test_in_a_namespace_of_somebody_else_nothing_is_made_outside_it() -> None:
    inside = {
        thing["metadata"].get("namespace") for thing in render(*CHOICES["a namespace of a shared cluster"]).objects
    }
    assert inside == {"mlops"}


def scaler(choice: str) -> dict[str, Any]:
    objects = render(*CHOICES[choice]).objects
    (found,) = (thing for thing in objects if thing["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"))
    return found["spec"]


def test_the_app_is_scaled_on_cpu_or_on_a_metric_that_a_rule_records() -> None:
    recorded = {
        rule["record"]
        for file in sorted((ROOT / "monitoring" / "prometheus" / "rules").glob("*.yaml"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    (metric,) = scaler("kind")["metrics"]
    assert metric["resource"]["name"] == "cpu"
    (metric,) = scaler("scaled by an adapter")["metrics"]
    assert metric["object"]["metric"]["name"] in recorded
    for choice, prometheus in (
        ("scaled by KEDA", "http://prometheus.mlops.svc:9090"),
        ("scaled by KEDA on another Prometheus", "http://prometheus.monitoring.svc:9090"),
    ):
        spec = scaler(choice)
        (trigger,) = spec["triggers"]
        name, _, labels = trigger["metadata"]["query"].partition("{")
        assert (spec["scaleTargetRef"], spec["minReplicaCount"], spec["maxReplicaCount"]) == ({"name": "serving"}, 2, 6)
        assert (trigger["type"], trigger["metadata"]["serverAddress"]) == ("prometheus", prometheus)
        assert name in recorded
        assert labels == 'namespace="mlops"}'


def test_rendering_twice_and_in_another_order_gives_the_same() -> None:
    some = list(CHOICES.items())[::4]
    first = {name: render(*choice).objects for name, choice in some}
    again = {name: render(*choice).objects for name, choice in reversed(some)}
    assert first == again


def test_a_changed_app_image_changes_serving_alone() -> None:
    before, after = (
        render("kind", {"images.app": f"docker.io/library/mlops-app:{tag}"}).objects for tag in ("v1", "v2")
    )
    changed = [(b["kind"], b["metadata"]["name"]) for b, a in zip(before, after, strict=True) if a != b]
    assert changed == [("Deployment", "serving")]


def test_a_changed_rule_rolls_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.components import prometheus

    before = render("kind").objects
    monkeypatch.setattr(prometheus, "rules", lambda: {"x.yaml": "groups: []\n"})
    after = render("kind").objects
    names = [
        {thing["metadata"]["name"] for thing in objects if thing["kind"] == "ConfigMap"} for objects in (before, after)
    ]
    assert len(names[0] - names[1]) == len(names[1] - names[0]) == 1
    pods = [
        yaml.safe_dump(next(o for o in objects if o["kind"] == "StatefulSet" and o["metadata"]["name"] == "prometheus"))
        for objects in (before, after)
    ]
    assert pods[0] != pods[1]


def problems(environment: str, changes: dict[str, Any]) -> str:
    with pytest.raises(pulumi.RunError) as error:
        render(environment, changes)
    return str(error.value)


def test_every_problem_of_the_settings_is_named_at_once() -> None:
    found = problems(
        "kind",
        {
            "bucket.kind": "local",
            "serving.minReplicas": 0,
            "serving.cpu": "fast",
            "alerts.webhook": "ftp://x",
            "training.egress": "all",
        },
    )
    for part in (
        "bucket.kind is 'local'",
        "serving.minReplicas is 0",
        "serving.cpu is 'fast'",
        "alerts.webhook is 'ftp://x'",
        "training.egress is 'all'",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("environment", "changes", "says", "hint"),
    [
        ("prod", {"bucket.kind": "bundled"}, "bucket.kind is bundled", "use s3 or external"),
        ("prod", {"database.kind": "bundled"}, "database.kind is bundled", "use rds or external"),
        ("dev", {"images.app": "registry.example.com/app:v1"}, "images.app is registry.example.com/app:v1", "by digest (mlops images --push)"),
        ("kind", {"cluster.kind": "gke"}, "cluster.kind is 'gke'", "'kubeconfig' or 'eks'"),
        ("kind", {"bucket.kind": "s3"}, "bucket.kind is s3", "needs cluster.kind eks; elsewhere use external"),
        ("kind", {"database.kind": "rds"}, "database.kind is rds", "needs cluster.kind eks; elsewhere use external"),
        ("prod", {"ingress.enabled": True, "ingress.host": "a.example.com"}, "ingress.certificate is empty", "needs one outside kind"),
        ("dev", {"ingress.enabled": True, "ingress.host": "a.example.com", "ingress.class": "nginx"}, "ingress.tlsSecret is empty", "needs one outside kind"),
        ("dev", {"serving.nodePort": 30080}, "serving.nodePort", "it has no TLS, use ingress"),
        ("dev", {"images.haproxy": "docker.io/library/haproxy:3.2.6"}, "images.haproxy is docker.io/library/haproxy:3.2.6", "outside kind it must be named by digest: NAME:TAG@sha256:…"),
        ("dev", {"images.digests": False}, "images.digests is false", "only for kind, into which images are loaded without them"),
        ("dev", {"serving.canaryImage": "docker.io/library/mlops-app:next"}, "serving.canaryImage is", "outside kind it must be named by digest"),
        ("dev", {"bucket.kind": "external", "bucket.endpoint": "http://s3.example.com"}, "bucket.endpoint is http://s3.example.com", "it must be https"),
        ("dev", {"tracking.kind": "external", "tracking.url": "http://10.0.0.7:5000"}, "tracking.url is http://10.0.0.7:5000", "it must be https"),
        ("kind", {"database.sslmode": "prefer"}, "database.sslmode is 'prefer'", "'verify-full' or 'require'"),
        ("kind", {"serving.memory": "700Mi"}, "serving.memory is 700Mi", "MB for a model; at least 128"),
        ("kind", {"training.egress": "169.254.169.254/32:80"}, "training.egress is", "where a node's credentials are"),
        ("kind", {"cluster.dns": "10.0.0.300/32"}, "cluster.dns is", "10.0.0.300"),
        ("kind", {"database.kind": "external"}, "database.kind is external", "needs database.host and database.secret"),
        ("kind", {"tracking.kind": "external"}, "tracking.kind is external", "needs tracking.url"),
        ("kind", {"serving.maxReplicas": 1}, "serving.maxReplicas is 1", "at least serving.minReplicas, 2"),
        ("kind", {"serving.scaleOn": "luck"}, "serving.scaleOn is 'luck'", "'cpu', 'keda' or 'adapter'"),
        ("dev", {"monitoring.kind": "none", "serving.scaleOn": "keda"}, "serving.scaleOn is keda", "needs monitoring.prometheus, or the bundled monitoring"),
        ("dev", {"monitoring.kind": "operator", "serving.scaleOn": "keda"}, "serving.scaleOn is keda", "needs monitoring.prometheus, or the bundled monitoring"),
        ("kind", {"ingress.enabled": True}, "ingress.enabled is true", "needs ingress.host"),
        ("dev", {"ingress.enabled": True, "ingress.host": "a.example.com", "ingress.certificate": "arn:aws:acm:us-east-1:000000000000:certificate/1", "clusterScope": False}, "ingress.class is empty", "where clusterScope is false"),
        ("kind", {"alerts.slackChannel": "#ml"}, "alerts.slackChannel", "need alerts.secret"),
        ("kind", {"alerts.webhook": "secret"}, "alerts.webhook", "secret needs alerts.secret"),
        ("kind", {"serving.metricsApi": "bundled"}, "serving.metricsApi", "unknown key"),
        ("kind", {"serving.minReplica": 3}, "serving.minReplica", "unknown key"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_hint(
    environment: str, changes: dict[str, Any], says: str, hint: str
) -> None:
    _, *lines = problems(environment, changes).splitlines()
    assert [line for line in lines if says in line and hint in line] == lines != []


def test_settings_of_the_program_are_those_that_the_project_declares() -> None:
    from infra.settings import Settings

    assert setting_paths(Settings) - {"environment"} == set(PLATFORM.declared["config"])


@pytest.mark.parametrize("file", STACKS, ids=lambda file: file.stem)
def test_an_environment_holds_only_what_differs(file: Path) -> None:
    own = {
        f"{group.removeprefix('mlops:')}.{key}": value
        for group, values in yaml.safe_load(file.read_text())["config"].items()
        for key, value in values.items()
    }
    defaults = {key: entry["default"] for key, entry in PLATFORM.declared["config"].items()}
    assert {key: value for key, value in own.items() if key not in defaults or defaults[key] == value} == {}


def exported(rendered: Rendered) -> dict[str, Any]:
    return rendered.outputs


def test_each_day_it_is_asked_whether_a_training_is_due_and_what_is_refused_is_not_repeated() -> None:
    def asked(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        return next(thing["spec"] for thing in render("prod", changes).objects if thing["kind"] == "CronJob")

    spec = asked()
    assert (spec["schedule"], spec["suspend"], spec["concurrencyPolicy"]) == ("0 3 * * *", False, "Forbid")
    job = spec["jobTemplate"]["spec"]
    [train] = job["template"]["spec"]["containers"]
    assert [*train["command"], *train["args"]] == ["python", "-m", "cli", "--json", "retrain", "--if-due"]
    codes = {"containerName": "train", "operator": "In", "values": [3]}
    assert {"action": "FailJob", "onExitCodes": codes} in job["podFailurePolicy"]["rules"]
    assert asked({"training.schedule": ""})["suspend"]


def test_outputs_say_how_to_reach_what_is_there() -> None:
    found = exported(render("kind"))
    assert found["predictions"] == "http://127.0.0.1:30080"
    assert "port-forward svc/tracking 5000" in found["tracking"]
    assert "grafana" not in exported(render("kind", {"grafana.enabled": False}))
    assert found["next"] == ".venv/bin/mlops --env kind status"


def test_on_eks_the_platform_is_the_same_but_for_what_is_listed() -> None:
    def named(changes: dict[str, Any]) -> dict[tuple[str, str], Any]:
        objects = render("kind", {"images.mlflow": "docker.io/library/mlops-mlflow:v1", **changes}).objects
        return {(thing["kind"], re.sub(r"-[0-9a-f]{10}$", "", thing["metadata"]["name"])): thing for thing in objects}

    there, on_eks = named({}), named({"cluster.kind": "eks"})
    assert there.keys() - on_eks.keys() == set()
    assert on_eks.keys() - there.keys() == {
        ("ConfigMap", "amazon-vpc-cni"),
        ("StorageClass", "gp3"),
        ("NodePool", "mlops-spot"),
        *((kind, f"github-{purpose}") for kind in ("Role", "RoleBinding") for purpose in ("train", "promote")),
        *((kind, "mlops-preview") for kind in ("ClusterRole", "ClusterRoleBinding")),
        *(
            (f"ValidatingAdmissionPolicy{each}", f"mlops-{purpose}")
            for each in ("", "Binding")
            for purpose in ("train", "promote")
        ),
    }
    assert {key for key, thing in there.items() if thing != on_eks[key]} == {
        ("CronJob", "training"),  # may run on spot nodes
        # reach Pod Identity's agent, Secrets Manager, and a resolver that is no pod
        *(("NetworkPolicy", name) for name in (
            "approver", "controller", "default-deny", "serving", "setup-bucket", "setup-database", "setup-keys", "tracking", "training")),
    }  # fmt: skip


def plural(kind: str) -> str:
    name = kind.lower()
    return (
        name
        if name.endswith("params")
        else f"{name[:-1]}ies"
        if name.endswith("y")
        else f"{name}{'e' * name.endswith('s')}s"
    )


def kinds(objects: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(each["apiVersion"].rpartition("/")[0], plural(each["kind"])) for each in objects}


def test_a_preview_and_the_watch_read_every_kind_that_the_platform_makes_but_secrets() -> None:
    """Not more either: these make all kinds there are; that each choice makes no other is seen where it is rendered."""
    some = (
        "dev",
        "a namespace of a shared cluster",
        "EKS with a load balancer for everybody",
        "scaled by KEDA on another Prometheus",
    )
    rendered = {choice: render(*CHOICES[choice]).objects for choice in some}
    made = set[tuple[str, str]]().union(*map(kinds, rendered.values()))
    for choice, kind in (("dev", "ClusterRole"), ("a namespace of a shared cluster", "Role")):
        names = ("mlops-preview", "github-preview")
        found = {each["kind"]: each for each in rendered[choice] if each["metadata"]["name"] in names}
        assert found.keys() == {kind, f"{kind}Binding"}
        role, binding = found[kind], found[f"{kind}Binding"]
        read = [(group, each) for rule in role["rules"] for group in rule["apiGroups"] for each in rule["resources"]]
        assert sorted(read) == sorted(made - {("", "secrets")})
        assert all(rule["verbs"] == ["get", "list", "watch"] and "resourceNames" not in rule for rule in role["rules"])
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (kind, role["metadata"]["name"])
        assert [each["name"] for each in binding["subjects"]] == ["mlops:preview"]


def test_what_mlops_runs_in_the_controller_is_what_a_promotion_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from cli import cluster

    run: list[str] = []
    monkeypatch.setattr(cluster.Cluster, "_wait_for", lambda *_: None)
    monkeypatch.setattr(
        cluster.subprocess,
        "run",
        lambda command, **_: run.extend(command) or cluster.subprocess.CompletedProcess([], 0),
    )
    cluster.Cluster("dev", {"cluster.context": "", "namespace": "mlops"}).run("status", ["status"])
    command = run[run.index("--") + 1 :]
    found = [o for o in render("dev").objects if o["metadata"]["name"] == "mlops-promote" and "spec" in o]
    (wanted,) = (
        v["expression"] for o in found for v in o["spec"].get("validations", []) if "command" in v["expression"]
    )
    exactly = re.findall(r"object\.command\[(\d)\] == '(.*?)'", wanted)
    begins = re.findall(r"object\.command\[(\d)\]\.startsWith\('(.*?)'\)", wanted)
    assert sorted(int(n) for n, _ in exactly + begins) == list(range(6))
    assert all(command[int(n)] == word for n, word in exactly)
    assert all(command[int(n)].startswith(word) for n, word in begins)
    assert run[run.index("exec") + 2] == "deploy/controller"
    run.clear()
    cluster.Cluster("dev", {"cluster.context": "", "namespace": "mlops"}).run("rollout abort", ["rollout", "abort"])
    assert run[run.index("exec") + 2] == "deploy/approver"
