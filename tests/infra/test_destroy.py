"""In which order everything goes, from the graph of dependencies: Pulumi deletes what depends on a thing before that thing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
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
def platform(environment: str = "prod", unlock: bool = False, more: tuple[tuple[str, Any], ...] = ()) -> Rendered:
    return render(environment, _INGRESS | {"unlock": unlock} | dict(more))


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


_BUNDLED = (("bucket.kind", "bundled"), ("database.kind", "bundled"))  # more volumes
# Kinds of which a controller makes something in AWS → what it needs to delete that.
CONTROLLED = {
    "Ingress": ("IngressClass", "IngressClassParams"),
    "StatefulSet": ("StorageClass", "NodePool"),
    "Deployment": ("NodePool",),
    "Job": ("NodePool",),
    "CronJob": ("NodePool",),
}


@pytest.mark.parametrize("kind", CONTROLLED)
def test_what_a_controller_makes_in_aws_goes_before_what_deletes_it(kind: str) -> None:
    for made in (platform(), platform("dev", more=_BUNDLED)):
        assert late(made, of(made, kind), of(made, *CONTROLLED[kind])) == []


def test_nothing_else_makes_something_in_aws() -> None:
    for made in (platform(), platform("dev", more=_BUNDLED)):
        balancers = [each for each in of(made, "Service") if each.inputs["spec"].get("type") == "LoadBalancer"]
        assert balancers + of(made, "PersistentVolumeClaim", "Pod", "DaemonSet", "ReplicaSet") == []


def test_objects_go_before_the_connection_to_their_cluster_and_their_namespace() -> None:
    made = platform()
    objects = [each for each in made.resources if each.type.startswith("kubernetes:")]
    inside = [each for each in objects if each.inputs["metadata"].get("namespace") == "mlops"]
    assert late(made, objects, [each for each in made.resources if each.type == "pulumi:providers:kubernetes"]) == []
    assert late(made, inside, of(made, "Namespace")) == []


def test_the_cluster_goes_before_the_network_and_the_roles_that_its_controllers_need() -> None:
    made = cloud()
    cluster, entries = of(made, "Cluster"), of(made, "AccessEntry")
    network = of(
        made, "Subnet", "Vpc", "NatGateway", "InternetGateway", "Route", "RouteTableAssociation", "VpcEndpoint"
    )
    assert late(made, cluster, [*network, *of(made, "RolePolicyAttachment")]) == []
    assert late(made, cluster, named(of(made, "Role", "LogGroup"), "cluster", "nodes")) == []
    assert (
        late(made, [*of(made, "PodIdentityAssociation", "AccessPolicyAssociation", "Addon"), *entries], cluster) == []
    )
    for each in of(made, "AccessPolicyAssociation"):
        assert late(made, [each], named(entries, each.name)) == []


def test_the_database_goes_before_what_it_stands_on() -> None:
    made = cloud()
    below = named(of(made, "SubnetGroup", "ParameterGroup", "SecurityGroup"), "database")
    assert len(below) == 3
    assert late(made, of(made, "Instance"), [*below, *of(made, "Key", "Subnet")]) == []
    # A group that a rule of another one names cannot be deleted.
    assert late(made, of(made, "SecurityGroupIngressRule"), of(made, "Cluster")) == []


def test_what_writes_goes_before_its_log() -> None:
    made = cloud()
    for kind, logs in {"Cluster": ["cluster"], "Instance": ["postgresql", "upgrade"], "FlowLog": ["flows"]}.items():
        assert len(found := named(of(made, "LogGroup"), *logs)) == len(logs)
        assert late(made, of(made, kind), found) == []


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


def protected(made: Rendered) -> set[str]:
    return {f"{each.type.rpartition(':')[2]} {each.name}" for each in made.resources if each.protect}


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_data_of_staging_and_prod_is_protected_until_it_is_unlocked(environment: str) -> None:
    locked, unlocked = cloud(environment), cloud(environment, unlock=True)
    data = {"Bucket bucket", "Instance database", "Cluster cluster", "Key data", "Alias data"}
    assert protected(locked) == data
    assert protected(platform(environment)) == {"Namespace namespace"}
    assert protected(unlocked) == protected(platform(environment, unlock=True)) == set()
    (bucket,), (instance,), (cluster,) = (of(unlocked, kind) for kind in ("Bucket", "Instance", "Cluster"))
    assert bucket.inputs["forceDestroy"] is True
    assert not instance.inputs["deletionProtection"]
    assert not cluster.inputs["deletionProtection"]
    kept = ["s3:DeleteObject" in of(made, "BucketPolicy")[0].inputs["policy"] for made in (locked, unlocked)]
    assert kept == [True, False]


def test_nothing_of_dev_is_protected() -> None:
    assert protected(cloud("dev")) == protected(platform("dev", more=_BUNDLED)) == set()


def cut(made: Rendered, name: str) -> Rendered:
    """Without what the component of that name depends on."""
    found = [(each, each.type.startswith("mlops:") and each.name == name) for each in made.resources]
    return Rendered([replace(each, depends_on=[]) if component else each for each, component in found])


@pytest.mark.parametrize("kind", CONTROLLED)
def test_a_dependency_that_is_missing_is_seen(kind: str) -> None:
    made = platform()
    assert late(cut(made, "network"), of(made, kind), of(made, *CONTROLLED[kind])) != []


def test_a_cluster_that_knows_no_more_than_its_subnets_is_seen() -> None:
    made = cloud()
    cluster, subnets = of(made, "Cluster"), [each for each in of(made, "Subnet") if each.name.startswith("private")]
    assert late(cut(made, "cluster"), cluster, subnets) == []
    assert late(cut(made, "cluster"), cluster, of(made, "NatGateway")) != []
