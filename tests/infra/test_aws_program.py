from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml

import infra.account.settings
import infra.aws.settings
import infra.render
from infra.render import ACCOUNT, AWS, UNKNOWN, Project, Rendered, Resource
from tests.infra import terraform
from tests.infra.calls import ASKED, NOT_ASKED, faults
from tests.infra.rendering import setting_paths

SETTINGS = {AWS: infra.aws.settings.Settings, ACCOUNT: infra.account.settings.Settings}
STACKS = [(project, file) for project in SETTINGS for file in sorted(project.stacks.glob("Pulumi.*.yaml"))]
_KEYS = {f"keys.{use}": f"arn:aws:kms:us-east-1:000000000000:key/{use}" for use in ("data", "approval")}
_IAM = {"iam.boundary": "arn:aws:iam::000000000000:policy/acme/boundary", "iam.path": "/acme/ml/"}
_NETWORK = {"network.kind": "existing", "network.vpc": "vpc-0a1b", "network.subnets": "subnet-0a,subnet-0b"}
_CLUSTER = {"cluster.kind": "existing", "cluster.name": "shared", "cluster.admins": ""}
_GITHUB = {"github.repository": "acme/ml", "github.subject": "repo:acme@1/ml@2"}
_CHINA = {
    name: value.replace("aws:", "aws-cn:").replace("us-east-1", "cn-north-1") for name, value in (_KEYS | _IAM).items()
}
CHOICES: dict[str, tuple[Project, str, dict[str, Any]]] = {
    f"{project.folder} {file.stem.partition('.')[2]}": (project, file.stem.partition(".")[2], {}) for project, file in STACKS
} | {
    "everything exists": (
        AWS, "dev", _NETWORK | _CLUSTER | _KEYS | _IAM | {"bucket.kind": "existing", "bucket.name": "acme-models", "database.kind": "none"},
    ),
    "network and cluster exist": (AWS, "prod", _NETWORK | _CLUSTER),
    "private endpoints only": (AWS, "dev", {"network.natGateways": 0, "cluster.publicCidrs": ""}),
    "three zones, one gateway": (AWS, "dev", {"network.zones": 3, "network.cidr": "172.16.0.0/20"}),
    "people and pipelines": (
        AWS, "dev",
        {"cluster.github": True, "cluster.admins": "arn:aws:iam::000000000000:role/ml,arn:aws:iam::000000000000:role/ops", "alarms.email": "ml@example.com"},
    ),
    "unlocked": (AWS, "prod", {"unlock": True}),
    "another region, tags, no budget": (AWS, "staging", {"region": "eu-central-1", "tags": "team=ml,cost-center=42", "budget.dollars": 0}),
    "another partition": (AWS, "prod", _CHINA | {"region": "cn-north-1", "cluster.admins": "arn:aws-cn:iam::000000000000:role/ml"}),
    "github": (ACCOUNT, "shared", _GITHUB),
    "an account of its own": (
        ACCOUNT, "shared", {"iam.boundary": _CHINA["iam.boundary"], "environments": "prod", "region": "cn-north-1", "github.repository": "acme/ml", "github.branch": "release/1", "tags": "team=ml"},
    ),
}  # fmt: skip
# Check, stack and resource → why nothing is done about it.
CHECKOV = {
    "CKV*_AWS_* shared aws_iam_policy.mlops-*-boundary": "a boundary grants nothing: it is the most that a role's own policy can",
    "CKV_AWS_355 shared aws_iam_role_policy.mlops-*": "previews look at what has no name before it is made",
    "CKV_AWS_39 *": "public for cluster.publicCidrs alone; without them, private",
    "CKV_AWS_18 *": "every read would be a line to pay for; who needs them has CloudTrail's data events",
    "CKV_AWS_144 *": "a second region doubles the bill; versions and the policy keep what must stay",
    "CKV2_AWS_62 *": "nobody would listen: the platform looks by itself",
    "CKV_AWS_118 *": "Performance Insights says what waits; the machine's own numbers cost extra",
    "CKV_AWS_161 *": "MLflow logs in by password; a second way in would be one more to watch",
    "CKV_AWS_157 dev *": "dev is cheap",
    "CKV_AWS_338 dev *": "dev is cheap; prod keeps a year",
    "CKV_AWS_293 dev *": "dev can be destroyed",
}
needs_checkov = pytest.mark.skipif(not shutil.which("checkov"), reason="needs checkov: pipx install checkov")


@cache
def rendered(choice: str, preview: bool) -> Rendered:
    project, stack, changes = CHOICES[choice]
    return infra.render.render(stack, changes, preview, project)


def resources(choice: str, kind: str = "") -> list[Resource]:
    return [copy.deepcopy(each) for each in rendered(choice, False).of_aws if each.type.endswith(kind)]


@pytest.mark.parametrize("preview", [False, True], ids=["up", "preview"])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_stack_and_choice_renders_each_thing_once_in_its_account(choice: str, preview: bool) -> None:
    project, stack, changes = CHOICES[choice]
    found = rendered(choice, preview)
    (provider,) = (each for each in found.resources if each.type == "pulumi:providers:aws")
    tags = {"project": "mlops", "environment": stack if project == AWS else "account"}
    tags |= dict(tag.split("=") for tag in changes.get("tags", "").split(",") if tag)
    assert json.loads(provider.inputs["defaultTags"]) == {"tags": tags}
    assert json.loads(provider.inputs["allowedAccountIds"]) == ["000000000000"]
    assert {each.provider.rpartition("::")[0] for each in found.of_aws} == {provider.urn}
    for names in (Counter((each.type, each.name) for each in found.of_aws), Counter(called(found))):
        assert [name for name, times in names.items() if times > 1 or UNKNOWN in str(name)] == []


def called(found: Rendered) -> list[tuple[str, str]]:
    """Names that AWS sees."""
    arguments = [(each.type, each.inputs.get(key)) for each in found.of_aws for key in ("name", "identifier", "bucket")]
    return [(kind, str(name)) for kind, name in arguments if name and "bucket" not in kind]


def test_what_is_looked_up_is_asked_of_the_same_account(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, call = {}, infra.render._Mocks.call
    monkeypatch.setattr(
        infra.render._Mocks, "call", lambda self, args: asked.update({args.token: args.provider}) or call(self, args)
    )
    infra.render.render("dev", _CLUSTER, project=AWS)
    assert {token.rpartition(":")[2] for token in asked} == {"getAvailabilityZones", "getCluster"}
    assert all("pulumi:providers:aws::aws::" in provider for provider in asked.values())


@pytest.mark.parametrize("project", SETTINGS, ids=lambda project: project.name)
def test_settings_of_a_program_are_those_that_its_project_declares(project: Project) -> None:
    assert setting_paths(SETTINGS[project]) - {"environment"} == set(project.declared["config"])


@pytest.mark.parametrize(("project", "file"), STACKS, ids=lambda value: value.name)
def test_a_stack_holds_only_what_differs(project: Project, file: Path) -> None:
    own: dict[str, Any] = {}
    for key, value in yaml.safe_load(file.read_text())["config"].items():
        path = key.removeprefix(f"{project.name}:")
        own |= {f"{path}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {path: value}
    declared = project.declared["config"]
    assert {path: value for path, value in own.items() if declared[path].get("default") == value} == {}


def test_what_exists_is_not_made() -> None:
    names = {each.type.rpartition(":")[2] for each in resources("everything exists")}
    assert names == {"Role", "RolePolicy", "PodIdentityAssociation", "Topic", "TopicPolicy", "Budget"}
    for role in resources("everything exists", ":Role"):
        assert {"iam.boundary": role.inputs["permissionsBoundary"], "iam.path": role.inputs["path"]} == _IAM


def test_without_public_addresses_nothing_reaches_the_cluster_or_leaves_it() -> None:
    (cluster,) = resources("private endpoints only", ":Cluster")
    assert cluster.inputs["vpcConfig"]["endpointPublicAccess"] is False
    assert resources("private endpoints only", ":NatGateway") == []
    assert {each.name for each in resources("private endpoints only", ":Route")} == {"public"}
    assert (
        len(resources("private endpoints only", ":VpcEndpoint")) > len(resources("infra/aws dev", ":VpcEndpoint")) == 1
    )


def test_data_of_prod_is_protected_until_it_is_unlocked() -> None:
    protected = {each.type.rpartition(":")[2] for each in resources("infra/aws prod") if each.protect}
    assert protected == {"Alias", "Bucket", "Cluster", "Instance", "Key"}
    assert [each.urn for each in resources("unlocked") if each.protect] == []
    for kind, argument, locked in (
        (":Cluster", "deletionProtection", True),
        (":Instance", "deletionProtection", True),
        ("s3/bucket:Bucket", "forceDestroy", False),
    ):
        (prod,), (unlocked,) = (resources(choice, kind) for choice in ("infra/aws prod", "unlocked"))
        assert (prod.inputs[argument], unlocked.inputs[argument]) == (locked, not locked)
    (unlocked,) = resources("unlocked", ":Instance")
    assert (unlocked.inputs["skipFinalSnapshot"], unlocked.inputs["finalSnapshotIdentifier"]) == (
        False,
        "mlops-prod-final",
    )


# Choice → the environments that pipelines deliver to, the first one first.
@pytest.mark.parametrize(
    ("choice", "stages"),
    [("infra/account shared", []), ("github", ["dev", "staging", "prod"]), ("an account of its own", ["prod"])],
)
def test_keys_and_roles_of_deliveries_are_there_where_pipelines_are(choice: str, stages: list[str]) -> None:
    outputs, keys = rendered(choice, False).outputs, {each.name: each for each in resources(choice, ":Key")}
    assert {name for name in keys if name.endswith("-delivery")} == {f"{stage}-delivery" for stage in stages}
    assert {stage: arn.rpartition("/")[2] for stage, arn in outputs["deliveryKeys"].items()} == {
        stage: f"{stage}-delivery" for stage in stages
    }
    assert [stage for stage, roles in outputs["roles"].items() if "build" in roles] == stages[:1]
    made = {f"{each.inputs['path']}{each.inputs['name']}" for each in resources(choice, ":Role")}
    for stage in stages:
        allowed, denied = json.loads(keys[f"{stage}-delivery"].inputs["policy"])["Statement"]
        signers = denied["Condition"]["ArnNotEquals"]["aws:PrincipalArn"]
        signers = [signers] if isinstance(signers, str) else signers
        assert {signer.partition(":role")[2] for signer in signers} <= made
        assert len(signers) == (2 if stage == stages[0] else 1)
        assert (allowed["Action"], denied["Effect"], denied["Action"]) == ("kms:*", "Deny", "kms:Sign")


@pytest.mark.parametrize("choice", ["another partition", "an account of its own"])
def test_in_another_partition_every_arn_is_of_it(choice: str) -> None:
    (secret,) = infra.render._MADE["Instance"]["masterUserSecrets"]
    found = str([each.inputs for each in resources(choice)]).replace(secret["secretArn"], "")
    assert "arn:aws-cn:" in found
    assert "arn:aws:" not in found
    assert "us-east-1" not in found


def test_every_type_is_checked_against_the_api_or_says_why_not() -> None:
    types = {each.type.removeprefix("aws:") for choice in CHOICES for each in rendered(choice, False).of_aws}
    assert types == ASKED.keys() | NOT_ASKED.keys()


@pytest.mark.parametrize("choice", CHOICES)
def test_the_api_takes_every_argument(choice: str) -> None:
    asked = [each for each in rendered(choice, False).of_aws if each.type.removeprefix("aws:") in ASKED]
    assert [(each.type, each.name, fault) for each in asked for fault in faults(each)] == []


REFUSED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a wrong choice": (":FlowLog", lambda flow: flow.update(trafficType="REJECTED"), "none of ACCEPT, REJECT, ALL"),
    "a wrong choice inside": (":Cluster", lambda cluster: cluster["upgradePolicy"].update(supportType="FREE"), "none of STANDARD"),
    "a long name": (":Role", lambda role: role.update(name="x" * 65), "more than 64"),
    "a name with a space": (":LogGroup", lambda group: group.update(name="my logs"), "logGroupName is 'my logs'"),
    "many actions": (":MetricAlarm", lambda alarm: alarm.update(okActions=["arn"] * 6), "more than 5"),
    "too few": (":MetricAlarm", lambda alarm: alarm.update(evaluationPeriods=0), "valid min value: 1"),
    "too long": (":Role", lambda role: role.update(maxSessionDuration=50000), "more than 43200"),
    "something missing": (":Cluster", lambda cluster: cluster.pop("roleArn"), 'Missing required parameter in input: "roleArn"'),
    "something missing inside": (":Budget", lambda budget: budget["notifications"][0].pop("threshold"), '"Threshold"'),
    "no such argument": (":Vpc", lambda vpc: vpc.update(cidr="10.0.0.0/16"), "no call has cidr"),
    "no such argument inside": (":Cluster", lambda cluster: cluster["vpcConfig"].update(publicCidrs=[]), 'publicCidrs'),
    "a text for a number": (":Instance", lambda instance: instance.update(allocatedStorage="20"), "valid types: <class 'int'>"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", REFUSED)
def test_what_the_api_would_refuse_is_found(mutant: str) -> None:
    kind, change, says = REFUSED[mutant]
    resource = resources("infra/aws dev", kind)[0]
    change(resource.inputs)
    found = faults(resource)
    assert [fault for fault in found if says in fault] == found != []


def checkov(found: list[Resource], folder: Path) -> set[tuple[str, str]]:
    """Check and resource of each failure."""
    (file := folder / "plan.json").write_text(json.dumps(terraform.plan(found)))
    how = ["--framework", "terraform_plan", "--skip-download", "--compact", "-o", "json"]
    done = subprocess.run(["checkov", "-f", str(file), *how], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["summary"]["resource_count"] == len(found)
    return {(check["check_id"], check["resource"]) for check in report["results"]["failed_checks"]}


@needs_checkov
def test_checkov_finds_what_is_accepted_and_nothing_else(tmp_path: Path) -> None:
    places = {
        f"{check} {CHOICES[choice][1]} {resource}"
        for choice in ("infra/aws dev", "private endpoints only", "infra/aws prod", "github")
        for check, resource in checkov(resources(choice), tmp_path)
    }
    assert [place for place in places if not any(fnmatch(place, accepted) for accepted in CHECKOV)] == []
    assert [accepted for accepted in CHECKOV if not any(fnmatch(place, accepted) for place in places)] == []


def everybody(policy: dict[str, Any], **changes: Any) -> None:
    statement = {"Effect": "Allow", "Action": "*", "Resource": "*"} | changes
    policy["policy"] = json.dumps({"Version": "2012-10-17", "Statement": [statement]})


# Resource → what is wrong with it; the check that is for it, and where.
BAD: dict[str, tuple[str, str, Callable[[Any], Any], str]] = {
    "a public bucket": ("BucketPublicAccessBlock", "bucket", lambda block: block.update(blockPublicPolicy=False), "CKV_AWS_54 aws_s3_bucket_public_access_block.bucket"),
    "a bucket for everybody": ("BucketPolicy", "bucket", lambda policy: everybody(policy, Principal="*"), "CKV_AWS_70 aws_s3_bucket_policy.bucket"),
    "a bucket without versions": ("BucketVersioning", "bucket", lambda versions: versions["versioningConfiguration"].update(status="Suspended"), "CKV_AWS_21 aws_s3_bucket.bucket"),
    "a database that anybody can read": ("Instance", "database", lambda database: database.update(storageEncrypted=False), "CKV_AWS_16 aws_db_instance.database"),
    "a database in public": ("Instance", "database", lambda database: database.update(publiclyAccessible=True), "CKV_AWS_17 aws_db_instance.database"),
    "an open group": ("SecurityGroupIngressRule", "database", lambda rule: rule.update(cidrIpv4="0.0.0.0/0", fromPort=22, toPort=22), "CKV_AWS_24 aws_vpc_security_group_ingress_rule.database"),
    "a default group for all": ("DefaultSecurityGroup", "default", lambda group: group.update(ingress=[{"protocol": "-1"}]), "CKV2_AWS_12 aws_vpc.vpc"),
    "flows of something else": ("FlowLog", "flows", lambda flows: flows.update(vpcId="vpc-0"), "CKV2_AWS_11 aws_vpc.vpc"),
    "a cluster for everybody": ("Cluster", "cluster", lambda cluster: cluster["vpcConfig"].update(publicAccessCidrs=["0.0.0.0/0"]), "CKV_AWS_38 aws_eks_cluster.cluster"),
    "secrets in the open": ("Cluster", "cluster", lambda cluster: cluster.pop("encryptionConfig"), "CKV_AWS_58 aws_eks_cluster.cluster"),
    "a role that makes itself more": ("RolePolicy", "serving", lambda policy: everybody(policy, Action="iam:*"), "CKV_AWS_286 aws_iam_role_policy.serving"),
    "a key for ever": ("Key", "data", lambda key: key.update(enableKeyRotation=False), "CKV_AWS_7 aws_kms_key.data"),
    "alarms in the open": ("Topic", "alarms", lambda topic: topic.pop("kmsMasterKeyId"), "CKV_AWS_26 aws_sns_topic.alarms"),
}  # fmt: skip


@needs_checkov
def test_checkov_catches_each_bad_resource_by_the_check_that_is_for_it(tmp_path: Path) -> None:
    found = resources("infra/aws prod")
    for kind, name, change, _ in BAD.values():
        (resource,) = (each for each in found if each.type.endswith(f":{kind}") and each.name == name)
        change(resource.inputs)
    caught = {" ".join(failure) for failure in checkov(found, tmp_path)}
    assert [bad for bad, (*_, check) in BAD.items() if check not in caught] == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network.natGateways": 3}, "network.natGateways is 3: must be 0, 1 or network.zones, 2"),
        ({"network.cidr": "10.0.0.0/8"}, "network.cidr is 10.0.0.0/8: must be a /16 to a /20"),
        ({"network.cidr": "fd00::/16"}, "network.cidr"),
        ({"network.kind": "existing"}, "needs network.vpc and network.subnets"),
        ({"cluster.kind": "existing"}, "needs cluster.name"),
        ({"cluster.admins": ""}, "cluster.admins is empty: nobody could deploy the platform"),
        ({"cluster.admins": "nobody"}, "cluster.admins"),
        ({"bucket.kind": "existing"}, "needs bucket.name"),
        ({"database.maxGigabytes": 10}, "database.maxGigabytes is 10: must be at least database.gigabytes, 20"),
        ({"account": "12"}, "account"),
        ({"cluster.versions": "1.34"}, "unknown key"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_with_a_hint(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(pulumi.RunError) as error:
        infra.render.render("dev", changes, project=AWS)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("environments", "says"),
    [
        ("dev,dev-eu,prod", "environments has dev and dev-eu: rights go by how a name begins"),
        ("dev-eu,prod,dev", "environments has dev and dev-eu"),
        ("dev,state", "environments has state: what they share is named so"),
        ("account,state", "environments has account, state"),
    ],
)
def test_names_that_would_reach_into_one_another_are_refused(environments: str, says: str) -> None:
    with pytest.raises(pulumi.RunError) as error:
        infra.render.render("shared", {"environments": environments}, project=ACCOUNT)
    assert says in str(error.value)
    assert infra.render.render("shared", {"environments": "dev,dev2,eu-dev"}, project=ACCOUNT).of_aws


def test_who_reaches_the_cluster_and_as_what() -> None:
    entries, policies = (
        resources("people and pipelines", f":{kind}") for kind in ("AccessEntry", "AccessPolicyAssociation")
    )
    views, admins = ("preview", "watch"), ("deploy", "admin-0", "admin-1")
    groups = {each: ["mlops:preview"] for each in views} | {each: [f"mlops:{each}"] for each in ("train", "promote")}
    assert {each.name: each.inputs.get("kubernetesGroups") for each in entries} == groups | dict.fromkeys(admins)
    wanted = dict.fromkeys(views, "AmazonEKSViewPolicy") | dict.fromkeys(admins, "AmazonEKSClusterAdminPolicy")
    assert {each.name: each.inputs["policyArn"].rpartition("/")[2] for each in policies} == wanted


def test_an_environment_that_the_account_does_not_know_is_told_where_to_add_it() -> None:
    known = {"account": "000000000000", "cluster.admins": "arn:aws:iam::000000000000:role/ml"}
    with pytest.raises(
        pulumi.RunError, match=r"environments in environments/account/Pulumi\.shared\.yaml has nothing for new"
    ):
        infra.render.render("new", known, project=AWS)
