from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.infra.policies import LISTENERS, violations
from tests.infra.rendering import render

Objects = list[dict[str, Any]]


def thing(objects: Objects, kind: str, name: str) -> Any:
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"].startswith(name))


def pod(objects: Objects, kind: str = "Deployment", name: str = "serving") -> Any:
    return thing(objects, kind, name)["spec"]["template"]["spec"]


def app(objects: Objects) -> Any:
    return pod(objects)["containers"][0]


def ingress(annotations: dict[str, str] | None = None, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"kind": "Ingress", "metadata": {"name": "x", "annotations": annotations or {}}, "spec": spec}


def variable(objects: Objects, name: str) -> Any:
    """Of MLflow's server."""
    return next(each for each in pod(objects, name="tracking")["containers"][0]["env"] if each["name"] == name)


def without(objects: Objects, kind: str, name: str) -> None:
    objects.remove(thing(objects, kind, name))


# Those that are for kube-score and checkov to catch are in tests/infra/test_manifests.py.
MUTANTS: dict[str, tuple[str, Callable[[Objects], Any]]] = {
    "runs as root": ("pods_are_confined", lambda o: pod(o)["securityContext"].update(runAsUser=0)),
    "a folder of the host": (
        "pods_are_confined",
        lambda o: pod(o)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    "namespace lets all pods in": (
        "namespaces_enforce_restricted",
        lambda o: thing(o, "Namespace", "mlops")["metadata"]["labels"].clear(),
    ),
    "a CPU limit": ("resources_are_bounded", lambda o: app(o)["resources"]["limits"].update(cpu="1")),
    "scratch without a size": ("resources_are_bounded", lambda o: pod(o)["volumes"][0]["emptyDir"].clear()),
    "liveness asks for a model": (
        "liveness_needs_no_model",
        lambda o: app(o)["livenessProbe"]["httpGet"].update(path="/readyz"),
    ),
    "an update takes replicas away": (
        "serving_stays_up",
        lambda o: thing(o, "Deployment", "serving")["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1),
    ),
    "replicas beside the autoscaler": (
        "serving_stays_up",
        lambda o: thing(o, "Deployment", "serving")["spec"].update(replicas=2),
    ),
    "one replica": (
        "serving_stays_up",
        lambda o: thing(o, "HorizontalPodAutoscaler", "serving")["spec"].update(minReplicas=1),
    ),
    "no disruption budget": ("serving_stays_up", lambda o: without(o, "PodDisruptionBudget", "proxy")),
    "not drained": ("serving_stays_up", lambda o: app(o).pop("lifecycle")),
    "killed while it drains": ("serving_stays_up", lambda o: pod(o).update(terminationGracePeriodSeconds=3)),
    "not spread": ("serving_stays_up", lambda o: pod(o, name="proxy").pop("topologySpreadConstraints")),
    "a version in the selector": (
        "selectors_never_change",
        lambda o: thing(o, "Deployment", "serving")["spec"]["selector"]["matchLabels"].update(version="1"),
    ),
    "a Service of nobody": (
        "services_find_pods",
        lambda o: thing(o, "Service", "tracking")["spec"]["selector"].update({"app.kubernetes.io/name": "x"}),
    ),
    "a load balancer": (
        "services_find_pods",
        lambda o: thing(o, "Service", "proxy")["spec"].update(type="LoadBalancer"),
    ),
    "ours by tag": ("images_are_exact", lambda o: app(o).update(image="registry.example.com/mlops-app:v1")),
    "another's by tag": (
        "images_are_exact",
        lambda o: pod(o, name="proxy")["containers"][0].update(image="docker.io/library/haproxy:3.2.6"),
    ),
    "an Ingress without TLS": (
        "callers_are_encrypted",
        lambda o: o.append(
            ingress(
                spec={"rules": [{"host": "a.example.com"}], "tls": [{"hosts": ["b.example.com"], "secretName": "x"}]}
            )
        ),
    ),
    "a load balancer that listens without TLS": (
        "callers_are_encrypted",
        lambda o: o.extend(
            [
                ingress(
                    {LISTENERS: '[{"HTTP": 80}, {"HTTPS": 443}]'},
                    {"rules": [{"host": "a.example.com"}], "ingressClassName": "alb"},
                ),
                {"kind": "IngressClassParams", "metadata": {"name": "alb"}, "spec": {"certificateARNs": ["arn:x"]}},
            ]
        ),
    ),
    "a port of every node": (
        "callers_are_encrypted",
        lambda o: thing(o, "Service", "proxy")["spec"].update(type="NodePort"),
    ),
    "a database without TLS": ("databases_are_encrypted", lambda o: variable(o, "PGSSLMODE").update(value="prefer")),
    "a database of any authority": (
        "databases_are_encrypted",
        lambda o: variable(o, "PGSSLMODE").update(value="verify-full"),
    ),
    "a replica that is smaller than its parts": (
        "memory_suffices",
        lambda o: app(o)["resources"]["limits"].update(memory="1Gi"),
    ),
    "a controller that is smaller than its decoder": (
        "memory_suffices",
        lambda o: pod(o, name="controller")["containers"][0]["resources"]["limits"].update(memory="1Gi"),
    ),
    "a proxy that is smaller than its buffers": (
        "memory_suffices",
        lambda o: pod(o, name="proxy")["containers"][0]["resources"]["limits"].update(memory="256Mi"),
    ),
    "names asked of anybody": (
        "nobody_talks_unasked",
        lambda o: thing(o, "NetworkPolicy", "default-deny")["spec"]["egress"][0].pop("to"),
    ),
    "names asked of another pod": (
        "nobody_talks_unasked",
        lambda o: thing(o, "NetworkPolicy", "default-deny")["spec"]["egress"][0]["to"].append(
            {"namespaceSelector": {}}
        ),
    ),
    "a token for the app": ("tokens_go_to_who_asks", lambda o: pod(o).update(automountServiceAccountToken=True)),
    "another's identity": ("tokens_go_to_who_asks", lambda o: pod(o).update(serviceAccountName="tracking")),
    "any Secret can be read": (
        "rights_are_small",
        lambda o: thing(o, "Role", "setup-keys")["rules"][1].pop("resourceNames"),
    ),
    "a wildcard": (
        "rights_are_small",
        lambda o: thing(o, "Role", "kube-state-metrics")["rules"][0].update(verbs=["*"]),
    ),
    "administrator": (
        "rights_are_small",
        lambda o: thing(o, "RoleBinding", "setup-keys")["roleRef"].update(kind="ClusterRole", name="cluster-admin"),
    ),
    "policies that EKS does not enforce": (
        "eks_enforces_the_policies",
        lambda o: without(o, "ConfigMap", "amazon-vpc-cni"),
    ),
    "policies that are off": (
        "eks_enforces_the_policies",
        lambda o: thing(o, "ConfigMap", "amazon-vpc-cni")["data"].update({"enable-network-policy-controller": "false"}),
    ),
    "policies that are on in another namespace": (
        "eks_enforces_the_policies",
        lambda o: thing(o, "ConfigMap", "amazon-vpc-cni")["metadata"].update(namespace="mlops"),
    ),
    "nodes of our own, and policies that EKS does not enforce": (
        "eks_enforces_the_policies",
        lambda o: (without(o, "ConfigMap", "amazon-vpc-cni"), without(o, "StorageClass", "gp3")),
    ),
    "no admission": ("pipelines_are_held", lambda o: without(o, "ValidatingAdmissionPolicy", "mlops-train")),
    "an admission that is not bound": (
        "pipelines_are_held",
        lambda o: without(o, "ValidatingAdmissionPolicyBinding", "mlops-promote"),
    ),
    "an admission that warns": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicyBinding", "mlops-train")["spec"].update(
            validationActions=["Warn"]
        ),
    ),
    "an admission that lets through what it cannot judge": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-promote")["spec"].update(failurePolicy="Ignore"),
    ),
    "an admission for everybody": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-train")["spec"].pop("matchConditions"),
    ),
    "an admission in every namespace": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-train")["spec"]["matchConstraints"].pop(
            "namespaceSelector"
        ),
    ),
    "a training with any Secret": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-train")["spec"]["validations"].pop(),
    ),
    "a promotion in any pod": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-promote")["spec"]["validations"].pop(0),
    ),
    "a promotion runs anything": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-promote")["spec"]["validations"].pop(),
    ),
    "a training of another image": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-train")["spec"]["variables"][1].update(expression='"x"'),
    ),
    "a training that may have the approver's key": (
        "pipelines_are_held",
        lambda o: thing(o, "ValidatingAdmissionPolicy", "mlops-train")["spec"]["variables"][2].update(
            expression='["signing-approve"]'
        ),
    ),
    "no default deny": ("nobody_talks_unasked", lambda o: without(o, "NetworkPolicy", "default-deny")),
    "egress to everybody": (
        "nobody_talks_unasked",
        lambda o: thing(o, "NetworkPolicy", "serving")["spec"]["egress"][0].pop("to"),
    ),
    "the node's credentials": (
        "nobody_talks_unasked",
        lambda o: thing(o, "NetworkPolicy", "serving")["spec"].update(
            egress=[{"ports": [{"port": 80}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]
        ),
    ),
    "a workload without a policy": ("nobody_talks_unasked", lambda o: without(o, "NetworkPolicy", "tracking")),
    "a Secret in the state": (
        "secrets_stay_in_the_cluster",
        lambda o: o.append({"kind": "Secret", "metadata": {"name": "x"}}),
    ),
    "a password written out": (
        "secrets_stay_in_the_cluster",
        lambda o: app(o)["env"].append({"name": "DB_PASSWORD", "value": "x"}),
    ),
    "a password in an address": (
        "secrets_stay_in_the_cluster",
        lambda o: app(o)["env"].append({"name": "URL", "value": "postgresql://a:b@c/d"}),
    ),
    "training may approve": (
        "secrets_stay_in_the_cluster",
        lambda o: thing(o, "CronJob", "training")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"][-1][
            "projected"
        ]["sources"].append({"secret": {"name": "signing-approve"}}),
    ),
    "a key that signs in the controller": (
        "secrets_are_ones_own",
        lambda o: pod(o, name="controller")["volumes"].append(
            {"name": "x", "secret": {"secretName": "signing-approve"}}
        ),
    ),
    "credentials of another identity": (
        "secrets_are_ones_own",
        lambda o: app(o)["env"][-1]["valueFrom"]["secretKeyRef"].update(name="bucket-setup"),
    ),
    "a variable of another workload": (
        "secrets_are_ones_own",
        lambda o: app(o)["env"].append(
            {"name": "PGPASSWORD", "valueFrom": {"secretKeyRef": {"name": "database-user", "key": "password"}}}
        ),
    ),
    "one Secret for two workloads": (
        "secrets_are_ones_own",
        lambda o: [
            pod(o, name=name)["containers"][0].update(envFrom=[{"secretRef": {"name": "mine"}}])
            for name in ("serving", "tracking")
        ],
    ),
    "a bundled database in prod": (
        "what_lasts_is_outside",
        lambda o: thing(o, "StatefulSet", "prometheus")["metadata"].update(name="database"),
    ),
    "not labelled": ("everything_is_labelled", lambda o: thing(o, "Service", "proxy")["metadata"].pop("labels")),
    "a deployment waits for MLflow": (
        "only_the_request_path_is_awaited",
        lambda o: thing(o, "Deployment", "tracking")["metadata"].pop("annotations"),
    ),
    "a deployment waits for a Service of the controller": (
        "only_the_request_path_is_awaited",
        lambda o: thing(o, "Service", "controller")["metadata"]["annotations"].clear(),
    ),
    "a deployment does not wait for the app": (
        "only_the_request_path_is_awaited",
        lambda o: thing(o, "Deployment", "serving")["metadata"].update(annotations={"pulumi.com/skipAwait": "true"}),
    ),
}


@pytest.fixture(scope="module")
def prod() -> Objects:
    return render("prod").objects


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught_by_the_policy_that_is_for_it(mutant: str, prod: Objects) -> None:
    policy, change = MUTANTS[mutant]
    objects = copy.deepcopy(prod)
    change(objects)
    assert policy in {found.partition(":")[0] for found in violations(objects, "prod")}
