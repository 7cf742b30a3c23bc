from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from infra.render import ACCOUNT, AWS, Rendered, Resource, render
from tests.infra.aws_policies import Resources, of, policy, violations

STACKS = [(AWS, "dev"), (AWS, "staging"), (AWS, "prod"), (ACCOUNT, "shared")]


@cache
def rendered(project: Any, stack: str) -> Rendered:
    return render(stack, {"github.repository": "acme/ml"} if project == ACCOUNT else {}, project=project)


@pytest.mark.parametrize(("project", "stack"), STACKS, ids=[stack for _, stack in STACKS])
def test_every_stack_is_within_policy(project: Any, stack: str) -> None:
    assert violations(rendered(project, stack).of_aws, stack) == []


def one(resources: Resources, kind: str, name: str = "") -> Resource:
    return next(each for each in of(resources, kind) if not name or each.name == name)


def put(kind: str, name: str = "", **inputs: Any) -> Callable[[Resources], None]:
    return lambda resources: one(resources, kind, name).inputs.update(inputs)


def without(kind: str, name: str = "") -> Callable[[Resources], None]:
    return lambda resources: resources.remove(one(resources, kind, name))


def unprotected(kind: str) -> Callable[[Resources], None]:
    def change(resources: Resources) -> None:
        found = one(resources, kind)
        resources[resources.index(found)] = replace(found, protect=False)

    return change


def statements(
    kind: str, name: str, change: Callable[[list[dict[str, Any]]], Any], key: str = "policy"
) -> Callable[[Resources], None]:
    def changed(resources: Resources) -> None:
        found = one(resources, kind, name)
        change(document := policy(found, key))
        found.inputs[key] = json.dumps({"Version": "2012-10-17", "Statement": document})

    return changed


def allow(*actions: str, **more: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda found: found.append({"Effect": "Allow", "Action": list(actions), "Resource": "*", **more})


def added(like: str, kind: str, name: str = "new", **inputs: Any) -> Callable[[Resources], None]:
    def change(resources: Resources) -> None:
        base = copy.deepcopy(one(resources, like))
        resources.append(replace(base, type=kind, name=name, inputs=base.inputs | inputs))

    return change


def rule(prefix: str) -> Callable[[Resources], None]:
    made = {"id": "new", "filter": {"prefix": prefix}, "noncurrentVersionExpiration": {"noncurrentDays": 1}}
    return lambda resources: one(resources, "s3/BucketLifecycleConfiguration").inputs["rules"].append(made)


def nested(kind: str, group: str, **inputs: Any) -> Callable[[Resources], None]:
    return lambda resources: one(resources, kind).inputs[group].update(inputs)


_RULE = "vpc/SecurityGroupIngressRule"
_GITHUB = "mlops-prod-deploy"
# Of prod.
MUTANTS: dict[str, tuple[str, Callable[[Resources], Any]]] = {
    "a public bucket": ("buckets_are_private_encrypted_and_versioned", put("s3/BucketPublicAccessBlock", blockPublicPolicy=False)),
    "no block of public access": ("buckets_are_private_encrypted_and_versioned", without("s3/BucketPublicAccessBlock")),
    "a bucket without encryption": ("buckets_are_private_encrypted_and_versioned", without("s3/BucketServerSideEncryptionConfiguration")),
    "a bucket with AWS' own key": ("buckets_are_private_encrypted_and_versioned", put("s3/BucketServerSideEncryptionConfiguration", rules=[{"applyServerSideEncryptionByDefault": {"sseAlgorithm": "AES256"}}])),
    "a bucket without versions": ("buckets_are_private_encrypted_and_versioned", nested("s3/BucketVersioning", "versioningConfiguration", status="Suspended")),
    "a bucket without TLS": ("buckets_are_private_encrypted_and_versioned", statements("s3/BucketPolicy", "bucket", lambda found: found.pop(0))),
    "no policy of the bucket": ("what_must_stay_cannot_be_deleted", without("s3/BucketPolicy")),
    "models can be deleted": ("what_must_stay_cannot_be_deleted", statements("s3/BucketPolicy", "bucket", lambda found: found.pop(1))),
    "old versions of models can be deleted": ("what_must_stay_cannot_be_deleted", statements("s3/BucketPolicy", "bucket", lambda found: found[1].update(Action="s3:DeleteObject"))),
    "a release can be overwritten": ("what_must_stay_cannot_be_deleted", statements("s3/BucketPolicy", "bucket", lambda found: found.pop(2))),
    "models expire": ("what_must_stay_cannot_be_deleted", rule("models/")),
    "everything expires": ("what_must_stay_cannot_be_deleted", rule("")),
    "a log in the clear": ("everything_is_encrypted", lambda r: one(r, "cloudwatch/LogGroup").inputs.pop("kmsKeyId")),
    "a topic in the clear": ("everything_is_encrypted", lambda r: one(r, "sns/Topic").inputs.pop("kmsMasterKeyId")),
    "a database in the clear": ("everything_is_encrypted", put("rds/Instance", storageEncrypted=False)),
    "Secrets in the clear": ("everything_is_encrypted", lambda r: one(r, "eks/Cluster").inputs.pop("encryptionConfig")),
    "a security group open to everybody": ("nothing_is_open_to_everybody", put(_RULE, "database", cidrIpv4="0.0.0.0/0")),
    "a security group open to everybody by IPv6": ("nothing_is_open_to_everybody", put(_RULE, "database", cidrIpv6="::/0")),
    "rules of the default group": ("nothing_is_open_to_everybody", put("ec2/DefaultSecurityGroup", ingress=[{"protocol": "-1"}])),
    "public addresses for nodes": ("nothing_is_open_to_everybody", put("ec2/Subnet", mapPublicIpOnLaunch=True)),
    "an API open to everybody": ("nothing_is_open_to_everybody", nested("eks/Cluster", "vpcConfig", publicAccessCidrs=["0.0.0.0/0"])),
    "an API open to nobody in particular": ("nothing_is_open_to_everybody", nested("eks/Cluster", "vpcConfig", publicAccessCidrs=None)),
    "a public database": ("the_database_answers_the_cluster_alone", put("rds/Instance", publiclyAccessible=True)),
    "a password in the state": ("the_database_answers_the_cluster_alone", put("rds/Instance", password="hunter2", manageMasterUserPassword=None)),
    "a database for the whole network": ("the_database_answers_the_cluster_alone", lambda r: one(r, _RULE, "database").inputs.pop("referencedSecurityGroupId")),
    "all ports of the database": ("the_database_answers_the_cluster_alone", put(_RULE, "database", fromPort=0, toPort=65535)),
    "a database without TLS": ("the_database_answers_the_cluster_alone", put("rds/ParameterGroup", parameters=[])),
    "whoever made the cluster": ("the_cluster_is_set_up_for_years", nested("eks/Cluster", "accessConfig", bootstrapClusterCreatorAdminPermissions=True)),
    "extended support": ("the_cluster_is_set_up_for_years", nested("eks/Cluster", "upgradePolicy", supportType="EXTENDED")),
    "no audit log": ("the_cluster_is_set_up_for_years", put("eks/Cluster", enabledClusterLogTypes=["api"])),
    "half of Auto Mode": ("the_cluster_is_set_up_for_years", nested("eks/Cluster", "computeConfig", enabled=False)),
    "a log kept for ever": ("the_cluster_is_set_up_for_years", put("cloudwatch/LogGroup", retentionInDays=0)),
    "a role without boundary": ("roles_are_bounded", lambda r: one(r, "iam/Role", "serving").inputs.pop("permissionsBoundary")),
    "a role for anybody": ("roles_are_bounded", statements("iam/Role", "serving", lambda found: found[0].update(Principal="*"), "assumeRolePolicy")),
    "a long-lived key": ("roles_are_bounded", added("iam/Role", "aws:iam/accessKey:AccessKey")),
    "a user": ("roles_are_bounded", added("iam/Role", "aws:iam/user:User")),
    "a wildcard action": ("rights_are_named", statements("iam/RolePolicy", "serving", allow("s3:*"))),
    "everything": ("rights_are_named", statements("iam/RolePolicy", "serving", allow("*"))),
    "roles passed to any service": ("rights_are_named", statements("iam/RolePolicy", "serving", allow("iam:PassRole"))),
    "training approves": ("who_trains_cannot_approve", statements("iam/RolePolicy", "training", allow("kms:Sign"))),
    "the data's key never rotates": ("who_trains_cannot_approve", put("kms/Key", "data", enableKeyRotation=False)),
    "a role that no pod has": ("identities_are_the_pods_own", without("eks/PodIdentityAssociation", "serving")),
    "the role of another workload": ("identities_are_the_pods_own", put("eks/PodIdentityAssociation", "training", serviceAccount="serving")),
    "an unprotected bucket": ("data_is_protected", unprotected("s3/Bucket")),
    "an unprotected database": ("data_is_protected", unprotected("rds/Instance")),
    "a database that AWS may delete": ("data_is_protected", put("rds/Instance", deletionProtection=False)),
    "no last snapshot": ("data_is_protected", put("rds/Instance", skipFinalSnapshot=True)),
    "backups of a day": ("data_is_protected", put("rds/Instance", backupRetentionPeriod=1)),
    "no standby": ("data_is_protected", put("rds/Instance", multiAz=False)),
    "a bucket that is emptied": ("data_is_protected", put("s3/Bucket", forceDestroy=True)),
    "one way out of three zones": ("data_is_protected", without("ec2/NatGateway")),
    "nobody watches the disk": ("somebody_is_told", without("cloudwatch/MetricAlarm", "database-storage")),
    "nobody watches a gateway": ("somebody_is_told", without("cloudwatch/MetricAlarm", "nat-1-ports")),
    "an alarm that tells nobody": ("somebody_is_told", put("cloudwatch/MetricAlarm", alarmActions=[])),
    "a budget that tells nobody": ("somebody_is_told", put("budgets/Budget", notifications=[])),
    "another account's provider": ("programs_stay_in_their_account", lambda r: r.append(replace(r[0], provider=""))),
}  # fmt: skip
# Of the account.
SHARED: dict[str, tuple[str, Callable[[Resources], Any]]] = {
    "state in a public bucket": ("buckets_are_private_encrypted_and_versioned", put("s3/BucketPublicAccessBlock", restrictPublicBuckets=False)),
    "images that move": ("images_stay_what_they_are", put("ecr/Repository", imageTagMutability="MUTABLE")),
    "images that nobody scans": ("images_stay_what_they_are", put("ecr/Repository", imageScanningConfiguration={"scanOnPush": False})),
    "images that an environment names are removed": (
        "images_stay_what_they_are",
        put("ecr/LifecyclePolicy", policy=json.dumps({"rules": [{"selection": {"tagStatus": "any"}}]})),
    ),
    "images in the clear": ("everything_is_encrypted", put("ecr/Repository", encryptionConfigurations=[])),
    "any branch may deploy": (
        "roles_are_bounded",
        statements("iam/Role", _GITHUB, lambda found: found[0]["Condition"]["StringEquals"].update({"token.actions.githubusercontent.com:sub": "repo:acme/ml:*"}), "assumeRolePolicy"),
    ),
    "any repository may deploy": ("roles_are_bounded", statements("iam/Role", _GITHUB, lambda found: found[0].pop("Condition"), "assumeRolePolicy")),
    "a pipeline approves": ("who_trains_cannot_approve", statements("iam/RolePolicy", "mlops-prod-train", allow("kms:Sign"))),
    "whoever may sign": ("who_trains_cannot_approve", statements("kms/Key", "prod", lambda found: found.pop())),
    "another's controller may sign": (
        "who_trains_cannot_approve",
        statements("kms/Key", "prod", lambda found: found[-1]["Condition"]["ArnNotEquals"].update({"aws:PrincipalArn": "arn:aws:iam::000000000000:role/mlops/mlops-dev-controller"})),
    ),
    "the state's key never rotates": ("who_trains_cannot_approve", put("kms/Key", "state", enableKeyRotation=False)),
}  # fmt: skip


@pytest.mark.parametrize("mutant", [*MUTANTS, *SHARED])
def test_a_mutant_is_caught_by_the_policy_that_is_for_it(mutant: str) -> None:
    project, stack = (AWS, "prod") if mutant in MUTANTS else (ACCOUNT, "shared")
    wanted, change = (MUTANTS | SHARED)[mutant]
    resources = copy.deepcopy(rendered(project, stack).of_aws)
    change(resources)
    assert wanted in {found.partition(":")[0] for found in violations(resources, stack)}
