"""Policies that the rendered resources of both AWS programs must meet, as plain functions from resources to violations.

What checkov checks as well is left to it: see tests/infra/test_aws_program.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from infra.configuration import PROTECTED
from infra.render import Resource

Resources = list[Resource]
EVERYBODY = ("0.0.0.0/0", "::/0")
# Actions of an Allow that end in a wildcard, with the reason. tests/infra/test_aws_rights.py has those of pipelines.
WILDCARDS = {"ec2:Describe*": "most take no resource", "eks:Describe*": "reads", "eks:List*": "reads"}
_POD_IDENTITY, _SIGN = "pods.eks.amazonaws.com", "kms:Sign"


def of(resources: Resources, kind: str) -> Resources:
    return [
        each
        for each in resources
        if each.type.removeprefix("aws:").partition("/")[0] + "/" + each.type.rpartition(":")[2] == kind
    ]


def policy(resource: Resource, key: str = "policy") -> list[dict[str, Any]]:
    found = resource.inputs.get(key)
    return json.loads(found)["Statement"] if found else []


def actions(statement: dict[str, Any]) -> list[str]:
    found = statement.get("Action", [])
    return [found] if isinstance(found, str) else found


def about(resources: Resources, kind: str, bucket: Resource) -> Resources:
    return [each for each in of(resources, kind) if each.inputs["bucket"] == bucket.id]


def buckets_are_private_encrypted_and_versioned(resources: Resources, _: str) -> Iterator[str]:
    for bucket in of(resources, "s3/Bucket"):
        blocks = about(resources, "s3/BucketPublicAccessBlock", bucket)
        flags = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
        if not any(all(block.inputs.get(flag) is True for flag in flags) for block in blocks):
            yield f"{bucket.name}: may be public"
        rules = [
            rule
            for each in about(resources, "s3/BucketServerSideEncryptionConfiguration", bucket)
            for rule in each.inputs["rules"]
        ]
        by_key = [rule["applyServerSideEncryptionByDefault"] for rule in rules]
        if not any(each.get("sseAlgorithm") == "aws:kms" and each.get("kmsMasterKeyId") for each in by_key):
            yield f"{bucket.name}: not encrypted with our key"
        states = [
            each.inputs["versioningConfiguration"]["status"] for each in about(resources, "s3/BucketVersioning", bucket)
        ]
        if states != ["Enabled"]:
            yield f"{bucket.name}: not versioned"
        denied = [
            each
            for found in about(resources, "s3/BucketPolicy", bucket)
            for each in policy(found)
            if each["Effect"] == "Deny"
        ]
        if not any(
            each.get("Condition") == {"Bool": {"aws:SecureTransport": "false"}} and each["Action"] == "s3:*"
            for each in denied
        ):
            yield f"{bucket.name}: answers without TLS"


def what_must_stay_cannot_be_deleted(resources: Resources, environment: str) -> Iterator[str]:
    for bucket in [each for each in of(resources, "s3/Bucket") if each.name == "bucket"]:
        denied = [
            each
            for found in about(resources, "s3/BucketPolicy", bucket)
            for each in policy(found)
            if each["Effect"] == "Deny"
        ]
        if not any(
            {"s3:DeleteObject", "s3:DeleteObjectVersion"} <= {*actions(each)}
            and any(key.endswith("/models/*") for key in each["Resource"])
            for each in denied
        ):
            yield f"{bucket.name}: models can be deleted"
        once = [each for each in denied if each.get("Condition") == {"Null": {"s3:if-none-match": "true"}}]
        if not any(
            "s3:PutObject" in actions(each) and any(key.endswith("/models/*/releases/*") for key in each["Resource"])
            for each in once
        ):
            yield f"{bucket.name}: a release can be overwritten"
        for lifecycle in about(resources, "s3/BucketLifecycleConfiguration", bucket):
            for rule in lifecycle.inputs["rules"]:
                prefix = rule.get("filter", {}).get("prefix", "")
                removes = {"expiration", "noncurrentVersionExpiration", "transitions"} & rule.keys()
                if removes and ("models/".startswith(prefix) or prefix.startswith("models/")):
                    yield f"{bucket.name}: rule {rule['id']} touches models/"


def everything_is_encrypted(resources: Resources, _: str) -> Iterator[str]:
    for kind, key in (
        ("cloudwatch/LogGroup", "kmsKeyId"),
        ("sns/Topic", "kmsMasterKeyId"),
        ("rds/Instance", "kmsKeyId"),
    ):
        yield from (f"{each.name}: no key of ours" for each in of(resources, kind) if not each.inputs.get(key))
    yield from (
        f"{each.name}: not encrypted"
        for each in of(resources, "rds/Instance")
        if each.inputs.get("storageEncrypted") is not True
    )
    for cluster in of(resources, "eks/Cluster"):
        if "secrets" not in cluster.inputs.get("encryptionConfig", {}).get("resources", []):
            yield f"{cluster.name}: Secrets in the clear"
    for repository in of(resources, "ecr/Repository"):
        if not any(
            each.get("encryptionType") == "KMS" for each in repository.inputs.get("encryptionConfigurations", [])
        ):
            yield f"{repository.name}: no key of ours"


def nothing_is_open_to_everybody(resources: Resources, environment: str) -> Iterator[str]:
    for rule in of(resources, "vpc/SecurityGroupIngressRule"):
        if rule.inputs.get("cidrIpv4") in EVERYBODY or rule.inputs.get("cidrIpv6") in EVERYBODY:
            yield f"{rule.name}: open to everybody"
    for group in [*of(resources, "ec2/SecurityGroup"), *of(resources, "ec2/DefaultSecurityGroup")]:
        if group.inputs.get("ingress"):
            yield f"{group.name}: has rules of its own"
    for subnet in of(resources, "ec2/Subnet"):
        if subnet.inputs.get("mapPublicIpOnLaunch"):
            yield f"{subnet.name}: gives public addresses"
    for cluster in of(resources, "eks/Cluster"):
        inside, network = cluster.inputs["vpcConfig"], cluster.inputs["vpcConfig"].get("publicAccessCidrs") or []
        if inside.get("endpointPublicAccess") and (not network or set(network) & set(EVERYBODY)):
            yield f"{cluster.name}: its API is open to everybody"
        if inside.get("endpointPrivateAccess") is not True:
            yield f"{cluster.name}: nodes reach the API from outside"


def the_database_answers_the_cluster_alone(resources: Resources, _: str) -> Iterator[str]:
    for instance in of(resources, "rds/Instance"):
        if instance.inputs.get("publiclyAccessible") is not False:
            yield f"{instance.name}: has a public address"
        if instance.inputs.get("password") or instance.inputs.get("manageMasterUserPassword") is not True:
            yield f"{instance.name}: its password is in the state"
        for rule in of(resources, "vpc/SecurityGroupIngressRule"):
            if rule.name == "database" and (rule.inputs.get("fromPort"), rule.inputs.get("toPort")) != (5432, 5432):
                yield f"{rule.name}: more ports than PostgreSQL's"
            if rule.name == "database" and not rule.inputs.get("referencedSecurityGroupId"):
                yield f"{rule.name}: for more than the cluster"
    for group in of(resources, "rds/ParameterGroup"):
        if {"name": "rds.force_ssl", "value": "1"} not in [
            {key: each[key] for key in ("name", "value")} for each in group.inputs["parameters"]
        ]:
            yield f"{group.name}: answers without TLS"


def the_cluster_is_set_up_for_years(resources: Resources, _: str) -> Iterator[str]:
    for cluster in of(resources, "eks/Cluster"):
        access = cluster.inputs["accessConfig"]
        if (
            access.get("authenticationMode") != "API"
            or access.get("bootstrapClusterCreatorAdminPermissions") is not False
        ):
            yield f"{cluster.name}: somebody is administrator for having made it"
        if cluster.inputs.get("upgradePolicy", {}).get("supportType") != "STANDARD":
            yield f"{cluster.name}: extended support, at six times the price"
        if not {"api", "audit", "authenticator"} <= {*cluster.inputs.get("enabledClusterLogTypes", [])}:
            yield f"{cluster.name}: no audit log"
        modes = (
            ("computeConfig", "enabled"),
            ("storageConfig", "blockStorage"),
            ("kubernetesNetworkConfig", "elasticLoadBalancing"),
        )
        found = [cluster.inputs.get(group, {}).get(key) for group, key in modes]
        if [each.get("enabled") if isinstance(each, dict) else each for each in found] != [True] * 3:
            yield f"{cluster.name}: the parts of Auto Mode disagree"
    for group in of(resources, "cloudwatch/LogGroup"):
        if not group.inputs.get("retentionInDays"):
            yield f"{group.name}: kept for ever"


def roles_are_bounded(resources: Resources, environment: str) -> Iterator[str]:
    for role in of(resources, "iam/Role"):
        github = role.name.startswith("mlops-")
        if not github and not role.inputs.get("permissionsBoundary"):
            yield f"{role.name}: no permissions boundary"
        for statement in policy(role, "assumeRolePolicy"):
            principal = statement["Principal"]
            if principal == "*" or "*" in principal.values() or "AWS" in principal:
                yield f"{role.name}: whoever may be it"
            if "Federated" in principal:
                claims = statement.get("Condition", {}).get("StringEquals", {})
                named = {key.rpartition(":")[2]: value for key, value in claims.items()}
                if named.get("aud") != "sts.amazonaws.com" or not named.get("sub") or "*" in json.dumps(claims):
                    yield f"{role.name}: whoever GitHub knows may be it"
    yield from (
        f"{each.name}: a key that does not expire"
        for kind in ("iam/User", "iam/AccessKey")
        for each in of(resources, kind)
    )


def rights_are_named(resources: Resources, _: str) -> Iterator[str]:
    for found in of(resources, "iam/RolePolicy"):
        for statement in policy(found):
            if statement["Effect"] != "Allow":
                continue
            yield from (
                f"{found.name}: {action}" for action in actions(statement) if "*" in action and action not in WILDCARDS
            )
            passed = statement.get("Condition", {}).get("StringEquals", {}).get("iam:PassedToService")
            if "iam:PassRole" in actions(statement) and not passed:
                yield f"{found.name}: passes roles to any service"


def who_trains_cannot_approve(resources: Resources, _: str) -> Iterator[str]:
    for found in of(resources, "iam/RolePolicy"):
        signs = any(
            _SIGN in actions(each) or "kms:*" in actions(each) for each in policy(found) if each["Effect"] == "Allow"
        )
        if signs and found.name != "controller":
            yield f"{found.name}: may sign approvals"
    for key in of(resources, "kms/Key"):
        if key.inputs.get("keyUsage") == "SIGN_VERIFY":
            denied = [each for each in policy(key) if each["Effect"] == "Deny" and _SIGN in actions(each)]
            signer = [each.get("Condition", {}).get("ArnNotEquals", {}).get("aws:PrincipalArn", "") for each in denied]
            if [each.endswith(f"mlops-{key.name}-controller") for each in signer] != [True]:
                yield f"{key.name}: more than its controller may sign"
            if key.inputs.get("customerMasterKeySpec") != "ECC_NIST_P256":
                yield f"{key.name}: not a key that we verify"
        elif key.inputs.get("enableKeyRotation") is not True:
            yield f"{key.name}: never rotates"


def identities_are_the_pods_own(resources: Resources, _: str) -> Iterator[str]:
    associated = {each.inputs["roleArn"]: each for each in of(resources, "eks/PodIdentityAssociation")}
    for role in of(resources, "iam/Role"):
        trusted = json.dumps([each["Principal"] for each in policy(role, "assumeRolePolicy")])
        if _POD_IDENTITY in trusted and not [arn for arn in associated if arn.endswith(f"/{role.inputs['name']}")]:
            yield f"{role.name}: no pod has it"
    for association in associated.values():
        if not association.inputs["roleArn"].endswith(f"-{association.inputs['serviceAccount']}"):
            yield f"{association.name}: a role of another workload"


def data_is_protected(resources: Resources, environment: str) -> Iterator[str]:
    if environment not in PROTECTED:
        return
    for kind in ("s3/Bucket", "rds/Instance", "eks/Cluster", "kms/Key"):
        yield from (f"{each.name}: not protected" for each in of(resources, kind) if not each.protect)
    yield from (
        f"{each.name}: emptied when it is destroyed"
        for each in of(resources, "s3/Bucket")
        if each.inputs.get("forceDestroy")
    )
    for kind in ("rds/Instance", "eks/Cluster"):
        yield from (
            f"{each.name}: AWS would delete it"
            for each in of(resources, kind)
            if each.inputs.get("deletionProtection") is not True
        )
    for instance in of(resources, "rds/Instance"):
        if instance.inputs.get("skipFinalSnapshot") or not instance.inputs.get("finalSnapshotIdentifier"):
            yield f"{instance.name}: no last snapshot"
        if instance.inputs.get("backupRetentionPeriod", 0) < 7:
            yield f"{instance.name}: backups of less than a week"
        if instance.inputs.get("multiAz") is not True:
            yield f"{instance.name}: no standby"
    zones = len([each for each in of(resources, "ec2/Subnet") if each.name.startswith("private")])
    if environment == "prod" and len(of(resources, "ec2/NatGateway")) < zones:
        yield "network: one zone lost, another loses the internet"


def images_stay_what_they_are(resources: Resources, _: str) -> Iterator[str]:
    for repository in of(resources, "ecr/Repository"):
        if repository.inputs.get("imageTagMutability") != "IMMUTABLE":
            yield f"{repository.name}: a tag can move"
        if repository.inputs.get("imageScanningConfiguration", {}).get("scanOnPush") is not True:
            yield f"{repository.name}: not scanned"
        if not repository.protect:
            yield f"{repository.name}: not protected"
    for lifecycle in of(resources, "ecr/LifecyclePolicy"):
        for rule in json.loads(lifecycle.inputs["policy"])["rules"]:
            if rule["selection"]["tagStatus"] != "untagged":
                yield f"{lifecycle.name}: removes what an environment may name"


def somebody_is_told(resources: Resources, _: str) -> Iterator[str]:
    topics = {each.inputs.get("name") for each in of(resources, "sns/Topic")}
    watched = {each.inputs["metricName"] for each in of(resources, "cloudwatch/MetricAlarm")}
    if of(resources, "rds/Instance"):
        wanted = {"FreeStorageSpace", "CPUUtilization", "DatabaseConnections"}
        yield from (f"database: nobody watches {metric}" for metric in sorted(wanted - watched))
    gateways = len(of(resources, "ec2/NatGateway"))
    if (
        len(
            [
                each
                for each in of(resources, "cloudwatch/MetricAlarm")
                if each.inputs["metricName"] == "ErrorPortAllocation"
            ]
        )
        != gateways
    ):
        yield "NAT: nobody watches its ports"
    for alarm in of(resources, "cloudwatch/MetricAlarm"):
        if not any(arn.rpartition(":")[2] in topics for arn in alarm.inputs.get("alarmActions") or []):
            yield f"{alarm.name}: tells nobody"
    for budget in of(resources, "budgets/Budget"):
        if not budget.inputs.get("notifications"):
            yield f"{budget.name}: tells nobody"


def programs_stay_in_their_account(resources: Resources, _: str) -> Iterator[str]:
    for each in resources:
        if each.type.startswith("aws:") and "pulumi:providers:aws::aws" not in each.provider:
            yield f"{each.name}: by a provider that takes any account"


EVERYWHERE = (
    buckets_are_private_encrypted_and_versioned, what_must_stay_cannot_be_deleted, everything_is_encrypted,
    nothing_is_open_to_everybody, the_database_answers_the_cluster_alone, the_cluster_is_set_up_for_years, roles_are_bounded,
    rights_are_named, who_trains_cannot_approve, identities_are_the_pods_own, data_is_protected, images_stay_what_they_are,
    somebody_is_told, programs_stay_in_their_account,
)  # fmt: skip


def violations(resources: Resources, environment: str) -> list[str]:
    return [f"{check.__name__}: {found}" for check in EVERYWHERE for found in check(resources, environment)]
