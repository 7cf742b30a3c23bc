"""In which order everything goes, from the graph of dependencies: Pulumi deletes what depends on a thing before that thing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

from infra.render import AWS, Rendered, Resource
from infra.render import render as render_program
from mlops.environment import ROOT
from tests.infra.rendering import render

_INGRESS = {
    "ingress.enabled": True, "ingress.host": "ml.example.com", "ingress.certificate": "arn:aws:acm:us-east-1:000000000000:certificate/1",
}  # fmt: skip


@cache
def platform(environment: str = "prod", unlock: bool = False) -> Rendered:
    return render(environment, _INGRESS | {"unlock": unlock})


@cache
def cloud(environment: str = "prod", unlock: bool = False) -> Rendered:
    return render_program(environment, {"unlock": unlock, "cluster.github": True}, project=AWS)


def of(rendered: Rendered, *kinds: str) -> list[Resource]:
    made = [each for each in rendered.resources if not each.type.startswith("mlops:")]
    return [each for each in made if each.type.rpartition(":")[2] in kinds]


def named(resources: Iterable[Resource], *names: str) -> list[Resource]:
    return [each for each in resources if each.name in names]


def before(rendered: Rendered) -> dict[str, set[str]]:
    """By URN, what is deleted after it, as Pulumi's engine sees it: what it depends on (of a whole, the parts too), its
    provider, the whole that it is a part of, and what those need in turn."""
    by_urn = {each.urn: each for each in rendered.resources}
    parts: dict[str, set[str]] = {}
    for each in rendered.resources:
        parts.setdefault(each.parent, set()).add(each.urn)
    direct: dict[str, set[str]] = {}
    for urn, each in by_urn.items():
        needed = {*each.depends_on, each.provider.rpartition("::")[0]}
        direct[urn] = needed.union({each.parent}, *(parts.get(one, set()) for one in needed)) & by_urn.keys()
    reached: dict[str, set[str]] = {}

    def walk(urn: str) -> set[str]:
        if urn not in reached:
            reached[urn] = set()
            reached[urn] = direct[urn].union(*(walk(each) for each in direct[urn]))
        return reached[urn]

    return {urn: walk(urn) for urn in by_urn}


def late(rendered: Rendered, first: list[Resource], then: list[Resource]) -> list[str]:
    """Of `first`, what is not surely deleted before each of `then`."""
    assert first, "nothing to look at"
    assert then, "nothing to look at"
    needs = before(rendered)
    return [f"{a.name} before {b.name}" for a in first for b in then if b.urn not in needs[a.urn]]


def test_what_makes_load_balancers_volumes_and_nodes_goes_before_what_cleans_them_up() -> None:
    made = platform()
    assert late(made, of(made, "Ingress"), of(made, "IngressClass", "IngressClassParams")) == []
    volumes = [each for each in of(made, "StatefulSet") if each.inputs["spec"].get("volumeClaimTemplates")]
    assert late(made, volumes, of(made, "StorageClass")) == []
    pods = [
        each for each in of(made, "Deployment", "StatefulSet", "Job", "CronJob") if each.name != "kube-state-metrics"
    ]
    assert late(made, pods, of(made, "NodePool")) == []
    objects = [each for each in made.resources if each.type.startswith("kubernetes:")]
    assert {each.provider.split("::")[-2] for each in objects} == {"cluster"}


def test_pods_go_while_the_network_policies_and_the_namespace_are_still_there() -> None:
    made = platform()
    inside = [
        each
        for each in made.resources
        if each.type.startswith("kubernetes:") and each.inputs.get("metadata", {}).get("namespace") == "mlops"
    ]
    assert late(made, inside, of(made, "Namespace")) == []


def test_the_cluster_goes_before_the_network_and_the_roles_that_its_controllers_need() -> None:
    made = cloud()
    cluster = of(made, "Cluster")
    assert late(made, cluster, of(made, "Subnet", "Vpc")) == []
    assert late(made, cluster, named(of(made, "Role"), "cluster", "nodes")) == []
    assert late(made, cluster, of(made, "RolePolicyAttachment")) == []
    assert late(made, cluster, of(made, "NatGateway", "InternetGateway", "Route")) == []
    assert late(made, of(made, "PodIdentityAssociation", "AccessEntry", "Addon"), cluster) == []
    assert (
        late(made, of(made, "AccessPolicyAssociation"), named(of(made, "AccessEntry"), "deploy")[:0] or cluster) == []
    )


def test_the_database_goes_before_what_it_stands_on() -> None:
    made = cloud()
    instance = of(made, "Instance")
    assert (
        late(made, instance, named(of(made, "SubnetGroup", "ParameterGroup", "SecurityGroup", "LogGroup"), "database"))
        == []
    )
    assert late(made, named(of(made, "SecurityGroupIngressRule"), "database"), of(made, "Cluster")) == []
    assert late(made, of(made, "Cluster"), named(of(made, "LogGroup"), "cluster")) == []


def test_controllers_own_nothing_in_infra_aws() -> None:
    assert {each.type.partition(":")[0] for each in cloud().resources} == {"aws", "mlops", "pulumi"}


def test_make_destroys_the_platform_first_and_waits_for_its_volumes() -> None:
    target = (ROOT / "Makefile").read_text().partition("\ndestroy:")[2].partition("\n\n")[0]
    order = [
        "environments/pulumi $(ENV) destroy",
        "mlops --env $(ENV) emptied",
        "environments/pulumi aws/$(ENV) destroy",
    ]
    assert [target.index(each) for each in order] == sorted(target.index(each) for each in order)


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_data_of_staging_and_prod_is_protected_until_it_is_unlocked(environment: str) -> None:
    def protected(made: Rendered) -> set[str]:
        return {f"{each.type.rpartition(':')[2]} {each.name}" for each in made.resources if each.protect}

    locked = environment != "dev"
    data = {"Bucket bucket", "Instance database", "Cluster cluster", "Key data", "Alias data"}
    assert protected(cloud(environment)) == (data if locked else set())
    assert protected(platform(environment)) == ({"Namespace namespace"} if locked else set())
    assert protected(cloud(environment, True)) == protected(platform(environment, True)) == set()
    (bucket,), (policy,) = of(cloud(environment, True), "Bucket"), of(cloud(environment, True), "BucketPolicy")
    assert bucket.inputs["forceDestroy"] is True
    assert "s3:DeleteObject" not in policy.inputs["policy"]
    assert "s3:DeleteObject" in of(cloud(environment), "BucketPolicy")[0].inputs["policy"]


def test_a_missing_dependency_is_seen() -> None:
    made: Any = platform()
    assert late(made, of(made, "StorageClass"), of(made, "Ingress")) != []
