"""What an environment costs a month while nobody uses it, from what its programs would make."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from infra.render import AWS, PLATFORM, Rendered, render
from infra.settings import amount
from mlops.errors import UserError

PRICES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "prices.yaml").read_text("utf-8"))
_HOURS = PRICES["hours"]
# Of a node, what Kubernetes and the system need for themselves; and metrics-server, twice.
_RESERVED_CPU, _RESERVED_GIB = 0.1, 0.9
_ADD_ONS = (0.2, 0.4)


@dataclass(frozen=True)
class Line:
    item: str
    count: int
    dollars: float  # a month, of all


def lines(environment: str) -> list[Line]:
    """Of both programs, dearest first. Traffic, requests, logs and trainings come on top, by use."""
    cloud, platform = render(environment, project=AWS), render(environment)
    found = [*_cloud(cloud), *_in_cluster(platform, PLATFORM.settings(environment)["nodes"])]
    return sorted((line for line in found if line.dollars), key=lambda line: -line.dollars)


def cheaper(environment: str, used: dict[str, float]) -> list[str]:
    """Settings that would lower the sum. `used`: the most that a replica of the app needed in a week, cpu (cores) and
    memory (GiB), as far as it is known."""
    cloud, found = render(environment, project=AWS), []
    settings = PLATFORM.settings(environment)
    for name, unit in (("cpu", 1), ("memory", 2**30)):
        asked = amount(settings["serving"][name]) / unit
        if 0 < used.get(name, 0) < asked / 2:
            found.append(f"serving.{name}: asks for {asked:.2f}, used at most {used[name]:.2f} in a week")
    gateways = [r for r in cloud.of_aws if r.type == "aws:ec2/natGateway:NatGateway"]
    if len(gateways) > 1:
        saved = (len(gateways) - 1) * (PRICES["nat"] + PRICES["ipv4"]) * _HOURS
        found.append(f"network.natGateways: 1 saves {saved:.0f} $ (one zone lost, all lose the internet)")
    for resource in cloud.of_aws:
        if resource.type == "aws:rds/instance:Instance" and resource.inputs["multiAz"]:
            found.append(
                f"database.multiAz: false saves {_database(resource.inputs) / 2:.0f} $ (a failure is an outage)"
            )
    if settings["nodes"]["spot"] != "all":
        found.append("nodes.spot: all saves some 60 % of the nodes (each may go within two minutes)")
    return found


def _cloud(rendered: Rendered) -> Iterator[Line]:
    for item, (kind, price) in _ITEMS.items():
        made = [price(resource.inputs) for resource in rendered.of_aws if resource.type == kind]
        yield Line(item, len(made), round(sum(made), 2))


def _database(inputs: dict[str, Any]) -> float:
    if (kind := inputs["instanceClass"]) not in PRICES["database"]:
        raise UserError("database.instanceClass", kind, "has no price in infra/prices.yaml; add it there")
    once = PRICES["database"][kind] * _HOURS + PRICES["database_gb_month"] * inputs["allocatedStorage"]
    return once * (2 if inputs["multiAz"] else 1)


def _endpoint(inputs: dict[str, Any]) -> float:
    zones = len(inputs["subnetIds"]) if inputs["vpcEndpointType"] == "Interface" else 0
    return PRICES["endpoint"] * _HOURS * zones


def _hourly(name: str) -> Callable[[Any], float]:
    return lambda _: PRICES[name] * _HOURS


_ITEMS: dict[str, tuple[str, Callable[[Any], float]]] = {
    "EKS control plane": ("aws:eks/cluster:Cluster", _hourly("eks")),
    "NAT gateway": ("aws:ec2/natGateway:NatGateway", _hourly("nat")),
    "public IPv4 address": ("aws:ec2/eip:Eip", _hourly("ipv4")),
    "endpoint of AWS": ("aws:ec2/vpcEndpoint:VpcEndpoint", _endpoint),
    "RDS instance and storage": ("aws:rds/instance:Instance", _database),
    "secret of RDS": ("aws:rds/instance:Instance", lambda _: PRICES["secret_month"]),
    "KMS key": ("aws:kms/key:Key", lambda _: PRICES["key_month"]),
    "alarm": ("aws:cloudwatch/metricAlarm:MetricAlarm", lambda _: PRICES["alarm_month"]),
}


def _in_cluster(rendered: Rendered, settings: dict[str, str]) -> Iterator[Line]:
    objects = rendered.objects
    kind, count, hourly = nodes(*_requests(objects), settings["architecture"])
    paid = PRICES["spot"] if settings["spot"] == "all" else 1.0
    yield Line(f"node {kind}, {'spot' if paid < 1 else 'on demand'}", count, round(count * hourly * paid * _HOURS, 2))
    yield Line("EKS Auto Mode", count, round(count * hourly * PRICES["auto_mode"] * _HOURS, 2))
    disks = count * PRICES["node_gigabytes"] * PRICES["volume_gb_month"]
    yield Line("disk of a node", count, round(disks, 2))
    claims = [
        amount(claim["spec"]["resources"]["requests"]["storage"]) / 2**30
        for thing in objects
        for claim in thing.get("spec", {}).get("volumeClaimTemplates", [])
    ]
    yield Line("volume", len(claims), round(sum(claims) * PRICES["volume_gb_month"], 2))
    balancers = [thing for thing in objects if thing["kind"] == "Ingress"]
    yield Line("load balancer", len(balancers), round(len(balancers) * PRICES["balancer"] * _HOURS, 2))


def nodes(cpus: float, gigabytes: float, architecture: str) -> tuple[str, int, float]:
    """The cheapest nodes of one kind that have so much: kind, number, dollars an hour for each."""

    def count(kind: str) -> int:
        cpu, memory, _ = PRICES["nodes"][architecture][kind]
        return max(ceil(cpus / (cpu - _RESERVED_CPU)), ceil(gigabytes / (memory - _RESERVED_GIB)))

    kinds = PRICES["nodes"][architecture]
    cheapest = min(kinds, key=lambda kind: (count(kind) * kinds[kind][2], count(kind)))
    return cheapest, count(cheapest), kinds[cheapest][2]


def _requests(objects: list[dict[str, Any]]) -> tuple[float, float]:
    """CPUs and GiB of what always runs."""
    least = {
        thing["spec"]["scaleTargetRef"]["name"]: thing["spec"].get("minReplicas", thing["spec"].get("minReplicaCount"))
        for thing in objects
        if thing["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    }
    cpus, gigabytes = _ADD_ONS
    for thing in objects:
        if thing["kind"] in ("Deployment", "StatefulSet"):
            replicas = thing["spec"].get("replicas") or least[thing["metadata"]["name"]]
            for container in thing["spec"]["template"]["spec"]["containers"]:
                asked = container["resources"]["requests"]
                cpus += replicas * amount(asked["cpu"])
                gigabytes += replicas * amount(asked.get("memory", container["resources"]["limits"]["memory"])) / 2**30
    return cpus, gigabytes
