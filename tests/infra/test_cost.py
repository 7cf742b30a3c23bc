"""What an environment costs: arithmetic by hand, and that nothing that has a price is left out."""

from __future__ import annotations

from functools import cache

import pytest

from infra import cost
from infra.render import AWS, PLATFORM, Project, Rendered, render
from mlops.environment import ROOT
from mlops.errors import UserError
from tests.infra import rendering

# Types that cost nothing by themselves: rules, roles, records of settings; or by use: logs, topics, images, a bucket.
FREE = {
    "budgets/budget", "cloudwatch/logGroup", "ec2/defaultSecurityGroup", "ec2/flowLog", "ec2/internetGateway", "ec2/route",
    "ec2/routeTable", "ec2/routeTableAssociation", "ec2/securityGroup", "ec2/subnet", "ec2/vpc", "eks/accessEntry",
    "eks/accessPolicyAssociation", "eks/addon", "eks/podIdentityAssociation", "iam/role", "iam/rolePolicy",
    "iam/rolePolicyAttachment", "kms/alias", "rds/parameterGroup", "rds/subnetGroup", "s3/bucket", "sns/topic",
    "sns/topicPolicy", "sns/topicSubscription", "vpc/securityGroupIngressRule",
}  # fmt: skip


@cache
def rendered(stack: str, project: Project = PLATFORM) -> Rendered:
    return rendering.render(stack) if project == PLATFORM else render(stack, project=project)


@pytest.fixture(autouse=True)
def a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "render", rendered)


def by_item(environment: str) -> dict[str, tuple[int, float]]:
    return {line.item: (line.count, line.dollars) for line in cost.lines(environment)}


def test_dev_by_hand() -> None:
    assert by_item("dev") == {
        "EKS control plane": (1, 73.00),  # 0.10 × 730
        "node r6a.large, spot": (1, 33.11),  # 0.1134 × 0.4 × 730
        "NAT gateway": (1, 32.85),  # 0.045 × 730
        "RDS instance and storage": (1, 13.98),  # 0.016 × 730 + 20 × 0.115
        "EKS Auto Mode": (1, 9.93),  # 0.1134 × 0.12 × 730
        "disk of a node": (1, 6.40),  # 80 × 0.08
        "public IPv4 address": (1, 3.65),  # 0.005 × 730
        "KMS key": (1, 1.00),
        "volume": (1, 0.80),  # 10 × 0.08
        "alarm": (5, 0.50),
        "secret of RDS": (1, 0.40),
    }
    assert sum(dollars for _, dollars in by_item("dev").values()) <= 200


def test_prod_by_hand() -> None:
    found = by_item("prod")
    assert found["NAT gateway"] == (3, 98.55)
    assert found["RDS instance and storage"] == (1, 256.78)  # (0.168 × 730 + 50 × 0.115) × 2
    assert found["node r6a.large, on demand"] == (1, 82.78)


@pytest.mark.parametrize(
    ("cpus", "gigabytes", "architecture", "nodes"),
    [
        (1.0, 3.0, "amd64", ("c6a.large", 1)),  # fits 1.9 CPUs, 3.1 GiB
        (1.0, 3.2, "amd64", ("m6a.large", 1)),
        (2.0, 3.0, "amd64", ("c6a.large", 2)),  # 0.153, one m6a.xlarge would be 0.1728
        (3.0, 31.0, "amd64", ("r6a.xlarge", 1)),
        (1.0, 9.0, "arm64", ("r7g.large", 1)),
    ],
)
def test_nodes_are_the_cheapest_that_hold_it(
    cpus: float, gigabytes: float, architecture: str, nodes: tuple[str, int]
) -> None:
    assert cost.nodes(cpus, gigabytes, architecture)[:2] == nodes


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_all_that_is_made_has_a_price_or_is_known_to_be_free(environment: str) -> None:
    made = {each.type.removeprefix("aws:").partition(":")[0] for each in rendered(environment, AWS).of_aws}
    priced = {kind.removeprefix("aws:").partition(":")[0] for kind, _ in cost._ITEMS.values()}
    assert {kind for kind in made - priced if kind not in FREE and not kind.startswith("s3/bucket")} == set()


def test_an_instance_without_a_price_is_an_error_that_says_where_to_add_it() -> None:
    with pytest.raises(UserError, match=r"infra/prices\.yaml"):
        cost._database({"instanceClass": "db.x9.huge", "allocatedStorage": 20, "multiAz": False})


def test_what_would_be_cheaper_is_said_with_its_price() -> None:
    assert cost.cheaper("dev", {}) == []
    assert [hint.partition(" (")[0] for hint in cost.cheaper("prod", {"memory": 0.3, "cpu": 0.2})] == [
        "serving.memory: asks for 2.00, used at most 0.30 in a week",
        "network.natGateways: 1 saves 73 $",  # 2 × (0.045 + 0.005) × 730
        "database.multiAz: false saves 128 $",
        "nodes.spot: all saves some 60 % of the nodes",
    ]


def test_the_docs_have_these_figures() -> None:
    said = (ROOT / "docs" / "aws.md").read_text()
    totals = [round(sum(line.dollars for line in cost.lines(each))) for each in ("dev", "staging", "prod")]
    assert "| a month, idle | " + " | ".join(f"{total} $" for total in totals) + " |" in said
    for line in cost.lines("dev"):
        assert f"{line.dollars:.2f}" in said, line
