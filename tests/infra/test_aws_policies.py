from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from infra.render import ACCOUNT, AWS, Project, Resource, render
from tests.infra.aws_policies import EVERYWHERE, Resources, Statements, of, policy, violations

Change = Callable[[Resources], Any]
PROJECTS = {AWS: {"cluster.github": True}, ACCOUNT: {"github.repository": "acme/ml"}}
STACKS = [
    (project, file.stem.partition(".")[2]) for project in PROJECTS for file in sorted(project.stacks.glob("*.yaml"))
]


@cache
def rendered(project: Project, stack: str) -> Resources:
    return render(stack, PROJECTS[project], project=project).resources


@pytest.mark.parametrize(("project", "stack"), STACKS, ids=str)
def test_every_stack_is_within_policy(project: Project, stack: str) -> None:
    assert violations(rendered(project, stack), stack) == []


def one(resources: Resources, kind: str, name: str = "") -> Resource:
    return next(each for each in of(resources, kind) if name in ("", each.name))


def put(kind: str, name: str = "", /, **inputs: Any) -> Change:
    """None: without it."""

    def change(resources: Resources) -> None:
        found = one(resources, kind, name).inputs
        found.update(inputs)
        for key in [key for key, value in inputs.items() if value is None]:
            del found[key]

    return change


def inside(kind: str, group: str, **inputs: Any) -> Change:
    return lambda resources: one(resources, kind).inputs[group].update(inputs)


def without(kind: str, name: str = "") -> Change:
    return lambda resources: resources.remove(one(resources, kind, name))


def unlike(kind: str, name: str = "", /, **changes: Any) -> Change:
    """Changes what is no input: protect, depends_on, provider."""

    def change(resources: Resources) -> None:
        found = one(resources, kind, name)
        resources[resources.index(found)] = replace(found, **changes)

    return change


def another(kind: str, type_: str = "", **inputs: Any) -> Change:
    """One more, like one that is there."""

    def change(resources: Resources) -> None:
        found = copy.deepcopy(one(resources, kind))
        resources.append(replace(found, name="new", type=type_ or found.type, inputs=found.inputs | inputs))

    return change


def says(kind: str, name: str, change: Callable[[Statements], Any], key: str = "policy") -> Change:
    """Another policy document."""

    def changed(resources: Resources) -> None:
        found = one(resources, kind, name)
        change(statements := policy(found, key))
        found.inputs[key] = json.dumps({"Version": "2012-10-17", "Statement": statements})

    return changed


def allows(name: str, *actions: str, **more: Any) -> Change:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*", **more}
    return says("iam/RolePolicy", name, lambda found: found.append(statement))


def trusts(name: str, **changes: Any) -> Change:
    return says("iam/Role", name, lambda found: found[0].update(changes), "assumeRolePolicy")


def claims(role: str = "mlops-prod-deploy", /, **changes: Any) -> Change:
    def change(found: Statements) -> None:
        for claim, value in changes.items():
            found[0]["Condition"]["StringEquals"][f"token.actions.githubusercontent.com:{claim}"] = value

    return says("iam/Role", role, change, "assumeRolePolicy")


def signed_by(key: str, *roles: str) -> Change:
    """Roles besides which nobody signs with a key."""
    who = {"aws:PrincipalArn": [f"arn:aws:iam::000000000000:role/{each}" for each in roles]}
    return says("kms/Key", key, lambda found: found[-1].update(Condition={"ArnNotEquals": who}))


def like(role: str, name: str, **trusted: Any) -> Change:
    """One more pipeline's role, with the rights of one that is there."""

    def change(resources: Resources) -> None:
        for kind in ("iam/Role", "iam/RolePolicy"):
            found = copy.deepcopy(one(resources, kind, role))
            called = found.inputs | ({"name": f"github-{name}"} if kind == "iam/Role" else {"role": f"github-{name}"})
            resources.append(replace(found, name=name, inputs=called))
        claims(name, **trusted)(resources)

    return change


def expires(prefix: str, **action: Any) -> Change:
    rule = {"id": "new", "status": "Enabled", "filter": {"prefix": prefix}, **action}
    return lambda resources: one(resources, "s3/BucketLifecycleConfiguration").inputs["rules"].append(rule)


def by(provider: str, **inputs: Any) -> Change:
    return lambda found: next(each for each in found if each.type == provider).inputs.update(inputs)


_POLICY, _RULE, _DEPLOY = "s3/BucketPolicy", "vpc/SecurityGroupIngressRule", "mlops-prod-deploy"
_PROVIDER, _FILES, _KEY = "pulumi:providers:aws", "acme/ml/.github/workflows", "arn:aws:kms:us-east-1:000000000000:key"
_OTHER = "arn:aws:iam::000000000000:role/mlops/mlops-dev-approver"
_OF_AWS = {"sseAlgorithm": "AES256"}
# Name → the policy that is for it, and what is changed in prod.
MUTANTS: dict[str, tuple[str, Change]] = {
    "a public bucket": ("buckets_are_private", put("s3/BucketPublicAccessBlock", blockPublicPolicy=False)),
    "nothing says that a bucket is private": ("buckets_are_private", without("s3/BucketPublicAccessBlock")),
    "objects of others": ("buckets_are_private", inside("s3/BucketOwnershipControls", "rule", objectOwnership="ObjectWriter")),
    "a bucket for everybody": ("buckets_are_private", says(_POLICY, "bucket", lambda found: found.append({"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": ["*"]}))),
    "no TLS policy": ("buckets_speak_tls", says(_POLICY, "bucket", lambda found: found.pop(0))),
    "no policy of the bucket": ("buckets_speak_tls", without(_POLICY)),
    "TLS for one": ("buckets_speak_tls", says(_POLICY, "bucket", lambda found: found[0].update(Principal={"AWS": _OTHER}))),
    "TLS for the bucket without its objects": ("buckets_speak_tls", says(_POLICY, "bucket", lambda found: found[0]["Resource"].pop())),
    "a bucket without versions": ("buckets_are_versioned", inside("s3/BucketVersioning", "versioningConfiguration", status="Suspended")),
    "models can be deleted": ("models_stay", says(_POLICY, "bucket", lambda found: found.pop(1))),
    "versions of models can be deleted": ("models_stay", says(_POLICY, "bucket", lambda found: found[1].update(Action="s3:DeleteObject"))),
    "models of one folder stay": ("models_stay", says(_POLICY, "bucket", lambda found: found[1].update(Resource=["arn:aws:s3:::mlops-prod-000000000000/models/a/*"]))),
    "a release can be written twice": ("models_stay", says(_POLICY, "bucket", lambda found: found.pop(2))),
    "models expire": ("models_stay", expires("models/", expiration={"days": 30})),
    "old versions of everything expire": ("models_stay", expires("", noncurrentVersionExpiration={"noncurrentDays": 1})),
    "models move to where they are read in hours": ("models_stay", expires("m", transitions=[{"storageClass": "GLACIER"}])),
    "a bucket in the clear": ("everything_is_encrypted_with_our_key", without("s3/BucketServerSideEncryptionConfiguration")),
    "a bucket with AWS' own key": ("everything_is_encrypted_with_our_key", put("s3/BucketServerSideEncryptionConfiguration", rules=[{"applyServerSideEncryptionByDefault": _OF_AWS}])),
    "a log in the clear": ("everything_is_encrypted_with_our_key", put("cloudwatch/LogGroup", kmsKeyId=None)),
    "alarms in the clear": ("everything_is_encrypted_with_our_key", put("sns/Topic", kmsMasterKeyId=None)),
    "a database in the clear": ("everything_is_encrypted_with_our_key", put("rds/Instance", storageEncrypted=False)),
    "a password with AWS' own key": ("everything_is_encrypted_with_our_key", put("rds/Instance", masterUserSecretKmsKeyId=None)),
    "Secrets in the clear": ("everything_is_encrypted_with_our_key", put("eks/Cluster", encryptionConfig=None)),
    "an open security group": ("nothing_is_open_to_everybody", another(_RULE, cidrIpv4="0.0.0.0/0")),
    "half of the internet": ("nothing_is_open_to_everybody", another(_RULE, cidrIpv4="128.0.0.0/1")),
    "everybody with IPv6": ("nothing_is_open_to_everybody", another(_RULE, cidrIpv6="::/0")),
    "the default group is of use": ("nothing_is_open_to_everybody", put("ec2/DefaultSecurityGroup", ingress=[{"protocol": "-1"}])),
    "rules in the group itself": ("nothing_is_open_to_everybody", put("ec2/SecurityGroup", ingress=[{"protocol": "-1"}])),
    "rules of the old kind": ("nothing_is_open_to_everybody", another(_RULE, "aws:ec2/securityGroupRule:SecurityGroupRule")),
    "public addresses": ("nothing_is_open_to_everybody", put("ec2/Subnet", mapPublicIpOnLaunch=True)),
    "nodes in a public subnet": ("nodes_and_database_are_in_private_subnets", inside("eks/Cluster", "vpcConfig", subnetIds=["public-0-id"])),
    "the database in a public subnet": ("nodes_and_database_are_in_private_subnets", put("rds/SubnetGroup", subnetIds=["private-0-id", "public-1-id"])),
    "a way in to a private subnet": ("nodes_and_database_are_in_private_subnets", put("ec2/Route", "private-0", natGatewayId=None, gatewayId="igw-0")),
    "a cluster for everybody": ("the_cluster_answers_who_is_listed", inside("eks/Cluster", "vpcConfig", publicAccessCidrs=["192.0.2.0/24", "0.0.0.0/0"])),
    "a cluster for nobody in particular": ("the_cluster_answers_who_is_listed", inside("eks/Cluster", "vpcConfig", publicAccessCidrs=None)),
    "nodes go through the internet": ("the_cluster_answers_who_is_listed", inside("eks/Cluster", "vpcConfig", endpointPrivateAccess=False)),
    "a public database": ("the_database_answers_the_cluster", put("rds/Instance", publiclyAccessible=True)),
    "a password in the state": ("the_database_answers_the_cluster", put("rds/Instance", password="x", manageMasterUserPassword=None)),
    "a database for the whole network": ("the_database_answers_the_cluster", another(_RULE, referencedSecurityGroupId=None, cidrIpv4="10.0.0.0/16")),
    "a database for another group": ("the_database_answers_the_cluster", unlike(_RULE, depends_on=[])),
    "every port of the database": ("the_database_answers_the_cluster", put(_RULE, fromPort=0, toPort=65535)),
    "a database without TLS": ("the_database_answers_the_cluster", put("rds/ParameterGroup", parameters=[{"name": "rds.force_ssl", "value": "0"}])),
    "access by ConfigMap": ("the_cluster_is_what_we_run", inside("eks/Cluster", "accessConfig", authenticationMode="API_AND_CONFIG_MAP")),
    "its maker is administrator": ("the_cluster_is_what_we_run", inside("eks/Cluster", "accessConfig", bootstrapClusterCreatorAdminPermissions=True)),
    "extended support": ("the_cluster_is_what_we_run", put("eks/Cluster", upgradePolicy=None)),
    "half of Auto Mode": ("the_cluster_is_what_we_run", inside("eks/Cluster", "computeConfig", enabled=False)),
    "no audit log": ("logs_are_written_and_end", put("eks/Cluster", enabledClusterLogTypes=["api", "authenticator"])),
    "a log for ever": ("logs_are_written_and_end", put("cloudwatch/LogGroup", retentionInDays=0)),
    "a log that AWS makes": ("logs_are_written_and_end", without("cloudwatch/LogGroup", "cluster")),
    "a log that comes too late": ("logs_are_written_and_end", unlike("rds/Instance", depends_on=[])),
    "no boundary": ("roles_have_a_boundary", put("iam/Role", "serving", permissionsBoundary=None)),
    "a boundary of another environment": ("roles_have_a_boundary", put("iam/Role", "serving", permissionsBoundary="arn:aws:iam::000000000000:policy/mlops/mlops-dev-boundary")),
    "a role for everybody": ("roles_trust_one", trusts("serving", Principal="*")),
    "a role for another account": ("roles_trust_one", trusts("serving", Principal={"AWS": "arn:aws:iam::111111111111:root"})),
    "a role for any Lambda": ("roles_trust_one", trusts("serving", Principal={"Service": "lambda.amazonaws.com"})),
    "a role for two services": ("roles_trust_one", trusts("nodes", Principal={"Service": ["ec2.amazonaws.com", "pods.eks.amazonaws.com"]})),
    "a long-lived key": ("no_key_lives_long", another("iam/Role", "aws:iam/accessKey:AccessKey")),
    "a user": ("no_key_lives_long", another("iam/Role", "aws:iam/user:User")),
    "a wildcard action": ("rights_are_named", allows("serving", "s3:Get*")),
    "administrator": ("rights_are_named", allows("serving", "*")),
    "all but": ("rights_are_named", allows("serving", NotAction="iam:*")),
    "any role for any service": ("rights_are_named", allows("controller", "iam:passrole")),
    "a role for any service": ("rights_are_named", allows("controller", "iam:PassRole", Condition={"StringEquals": {"iam:PassedToService": "*"}})),
    "a policy of AWS": ("rights_are_named", put("iam/RolePolicyAttachment", policyArn="arn:aws:iam::aws:policy/AdministratorAccess")),
    "a policy inside a role": ("rights_are_named", put("iam/Role", managedPolicyArns=["arn:aws:iam::aws:policy/AdministratorAccess"])),
    "training approves": ("the_approver_alone_approves", allows("training", "kms:Sign")),
    "training approves, in lower case": ("the_approver_alone_approves", allows("training", "KMS:sign")),
    "the approver signs with any key": ("the_approver_alone_approves", allows("approver", "kms:Sign")),
    "a grant": ("the_approver_alone_approves", another("kms/Key", "aws:kms/grant:Grant")),
    "a key that never rotates": ("keys_are_the_accounts", put("kms/Key", enableKeyRotation=None)),
    "a key for others": ("keys_are_the_accounts", says("kms/Key", "data", lambda found: found[0].update(Principal="*"))),
    "a key for services of any account": ("keys_are_the_accounts", says("kms/Key", "data", lambda found: found[1].pop("Condition"))),
    "a role that no pod has": ("pods_have_their_own_role", without("eks/PodIdentityAssociation", "serving")),
    "a role of another workload": ("pods_have_their_own_role", put("eks/PodIdentityAssociation", "training", serviceAccount="serving")),
    "the nodes' role for a pod": ("pods_have_their_own_role", another("eks/PodIdentityAssociation", roleArn="arn:aws:iam::000000000000:role/mlops/mlops-prod-nodes", serviceAccount="nodes")),
    "an unprotected database": ("data_is_protected", unlike("rds/Instance", protect=False)),
    "an unprotected bucket": ("data_is_protected", unlike("s3/Bucket", protect=False)),
    "an unprotected key": ("data_is_protected", unlike("kms/Key", protect=False)),
    "a database that AWS may delete": ("data_is_protected", put("rds/Instance", deletionProtection=False)),
    "a cluster that AWS may delete": ("data_is_protected", put("eks/Cluster", deletionProtection=None)),
    "no last snapshot": ("data_is_protected", put("rds/Instance", skipFinalSnapshot=True)),
    "a bucket that is emptied": ("data_is_protected", put("s3/Bucket", forceDestroy=True)),
    "backups of a day": ("data_is_protected", put("rds/Instance", backupRetentionPeriod=1)),
    "no standby": ("prod_survives_the_loss_of_a_zone", put("rds/Instance", multiAz=False)),
    "two zones, one gateway": ("prod_survives_the_loss_of_a_zone", put("ec2/Route", "private-1", natGatewayId="nat-0-id")),
    "a zone without its gateway": ("prod_survives_the_loss_of_a_zone", without("ec2/NatGateway")),
    "nobody watches the disk": ("somebody_is_told", without("cloudwatch/MetricAlarm", "database-storage")),
    "nobody watches CPU": ("somebody_is_told", put("cloudwatch/MetricAlarm", "database-cpu", metricName="ReadIOPS")),
    "nobody watches connections": ("somebody_is_told", put("cloudwatch/MetricAlarm", "database-connections", dimensions={"DBInstanceIdentifier": "x"})),
    "nobody watches a gateway": ("somebody_is_told", without("cloudwatch/MetricAlarm", "nat-1-ports")),
    "an alarm that tells nobody": ("somebody_is_told", put("cloudwatch/MetricAlarm", alarmActions=[])),
    "no budget": ("somebody_is_told", without("budgets/Budget")),
    "a budget that tells nobody": ("somebody_is_told", put("budgets/Budget", notifications=[])),
    "CloudWatch may not publish": ("somebody_is_told", without("sns/TopicPolicy")),
    "no tags": ("programs_stay_in_their_account", by(_PROVIDER, defaultTags="{}")),
    "any account": ("programs_stay_in_their_account", by(_PROVIDER, allowedAccountIds="[]")),
    "another provider": ("programs_stay_in_their_account", unlike("s3/Bucket", provider="")),
}  # fmt: skip
# The same in the account that the environments share.
SHARED: dict[str, tuple[str, Change]] = {
    "state for everybody": ("buckets_are_private", put("s3/BucketPublicAccessBlock", restrictPublicBuckets=False)),
    "state in the clear": ("everything_is_encrypted_with_our_key", without("s3/BucketServerSideEncryptionConfiguration")),
    "unprotected state": ("data_is_protected", unlike("s3/Bucket", protect=False)),
    "images in the clear": ("everything_is_encrypted_with_our_key", put("ecr/Repository", encryptionConfigurations=[{"encryptionType": "AES256"}])),
    "images that move": ("images_stay_what_they_are", put("ecr/Repository", imageTagMutability="MUTABLE")),
    "images that nobody scans": ("images_stay_what_they_are", put("ecr/Repository", imageScanningConfiguration={"scanOnPush": False})),
    "old images go": ("images_stay_what_they_are", put("ecr/LifecyclePolicy", policy=json.dumps({"rules": [{"selection": {"tagStatus": "any"}}]}))),
    "unprotected images": ("data_is_protected", unlike("ecr/Repository", protect=False)),
    "infra/aws may change who deploys": ("roles_have_a_boundary", put("iam/Role", name="mlops-prod-deploy")),
    "no boundary for an environment": ("boundaries_keep_environments_apart", without("iam/Policy", "mlops-dev-boundary")),
    "a boundary without names": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found.pop(3))),
    "a boundary that forgets a name": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found[3]["Resource"].pop())),
    "a boundary that forgets the state": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found[3]["Resource"].remove("arn:aws:s3:::mlops-state-*"))),
    "a boundary without tags": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found.pop(4))),
    "a boundary that forgets a tag": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found[4]["Condition"]["StringEquals"]["aws:ResourceTag/environment"].pop())),
    "a boundary without nodes": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found.pop(5))),
    "a boundary that passes any role": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found[2].update(Resource=["arn:aws:iam::000000000000:role/mlops/mlops-*"]))),
    "a boundary that leaves images to anybody": ("boundaries_keep_environments_apart", says("iam/Policy", "mlops-dev-boundary", lambda found: found.pop())),
    "a watch waits for reviewers": ("roles_trust_one", claims("mlops-prod-watch", sub="repo:acme/ml:environment:prod")),
    "a watch of any branch": ("roles_trust_one", claims("mlops-prod-watch", sub="repo:acme/ml:ref:refs/heads/mine")),
    "a pull request watches": ("roles_trust_one", claims("mlops-dev-watch", sub=["repo:acme/ml:ref:refs/heads/main", "repo:acme/ml:pull_request"])),
    "a watch promotes": ("roles_trust_one", claims("mlops-prod-promote", job_workflow_ref=[f"{_FILES}/{each}.yml@refs/heads/main" for each in ("promote", "rollback", "watch")])),
    "any workflow watches": ("roles_trust_one", says("iam/Role", "mlops-prod-watch", lambda found: found[0]["Condition"]["StringEquals"].popitem(), "assumeRolePolicy")),
    "a watch writes models": ("pipelines_leave_data_alone", allows("mlops-dev-watch", "s3:PutObject", Resource=["arn:aws:s3:::mlops-dev-000000000000/models/*"])),
    "a watch reads predictions": ("pipelines_leave_data_alone", allows("mlops-dev-watch", "s3:GetObject", Resource=["arn:aws:s3:::mlops-dev-000000000000/predictions/*"])),
    "a watch reads another environment's models": ("pipelines_leave_data_alone", allows("mlops-dev-watch", "s3:GetObject", Resource=["arn:aws:s3:::mlops-prod-000000000000/models/*"])),
    "a preview reads models": ("pipelines_leave_data_alone", allows("mlops-dev-preview", "s3:GetObject", Resource=["arn:aws:s3:::mlops-dev-000000000000/models/*"])),
    "any branch deploys": ("roles_trust_one", claims(sub="repo:acme/ml:*")),
    "any workflow deploys": ("roles_trust_one", says("iam/Role", _DEPLOY, lambda found: found[0]["Condition"]["StringEquals"].popitem(), "assumeRolePolicy")),
    "any repository deploys": ("roles_trust_one", says("iam/Role", _DEPLOY, lambda found: found[0].pop("Condition"), "assumeRolePolicy")),
    "claims that are like": ("roles_trust_one", says("iam/Role", _DEPLOY, lambda found: found[0].update(Condition={"StringLike": found[0]["Condition"]["StringEquals"]}), "assumeRolePolicy")),
    "a role for a workflow that is not listed": ("roles_trust_one", claims(job_workflow_ref=[f"{_FILES}/deploy.yml@refs/heads/main", f"{_FILES}/train.yml@refs/heads/main"])),
    "a role for another workflow": ("roles_trust_one", claims("mlops-dev-build", job_workflow_ref=f"{_FILES}/deploy.yml@refs/heads/main")),
    "a workflow of another branch deploys": ("roles_trust_one", claims(job_workflow_ref=[f"{_FILES}/deploy.yml@refs/heads/mine"])),
    "a workflow of a tag deploys": ("roles_trust_one", claims(job_workflow_ref=[f"{_FILES}/deploy.yml@refs/tags/main"])),
    "no workflow in particular": ("roles_trust_one", claims(job_workflow_ref=[])),
    "a job of dev deploys to prod": ("roles_trust_one", claims(sub=["repo:acme/ml:environment:prod", "repo:acme/ml:environment:dev"])),
    "a job of no environment deploys": ("roles_trust_one", claims(sub="repo:acme/ml:ref:refs/heads/main")),
    "a pull request builds": ("roles_trust_one", claims("mlops-dev-build", sub=["repo:acme/ml:environment:dev", "repo:acme/ml:pull_request"])),
    "a pull request sees prod": ("roles_trust_one", claims("mlops-prod-preview", sub=["repo:acme/ml:environment:prod", "repo:acme/ml:pull_request"])),
    "whoever signs deliveries": ("pipelines_sign_their_own_deliveries", says("kms/Key", "prod-delivery", lambda found: found.pop())),
    "the controller signs deliveries": ("pipelines_sign_their_own_deliveries", signed_by("prod-delivery", "mlops/mlops-prod-controller")),
    "dev signs deliveries for prod, too": ("pipelines_sign_their_own_deliveries", signed_by("prod-delivery", "mlops/github-mlops-prod-deploy", "mlops/github-mlops-dev-deploy")),
    "the build signs what passed staging": ("pipelines_sign_their_own_deliveries", signed_by("staging-delivery", "mlops/github-mlops-staging-deploy", "mlops/github-mlops-dev-build")),
    "training signs deliveries of dev": ("pipelines_sign_their_own_deliveries", signed_by("dev-delivery", "mlops/github-mlops-dev-build", "mlops/github-mlops-dev-deploy", "mlops/github-mlops-dev-train")),
    "the build cannot sign": ("pipelines_sign_their_own_deliveries", signed_by("dev-delivery", "mlops/github-mlops-dev-deploy")),
    "a role of that name elsewhere signs": ("pipelines_sign_their_own_deliveries", signed_by("prod-delivery", "github-mlops-prod-deploy")),
    "whoever signs deliveries, outside of an organization": ("pipelines_sign_their_own_deliveries", says("kms/Key", "prod-delivery", lambda found: found[-1]["Condition"].update(StringNotEquals={"aws:PrincipalOrgID": "o-1"}))),
    "one alone may not sign deliveries": ("pipelines_sign_their_own_deliveries", says("kms/Key", "prod-delivery", lambda found: found[-1].update(Principal={"AWS": _OTHER}))),
    "staging's pipeline signs with prod's key": ("pipelines_sign_their_own_deliveries", allows("mlops-staging-deploy", "kms:Sign", Resource=[f"{_KEY}/prod-delivery"])),
    "a pipeline signs with any key": ("pipelines_sign_their_own_deliveries", allows(_DEPLOY, "kms:Sign")),
    "a training signs deliveries": ("pipelines_sign_their_own_deliveries", allows("mlops-prod-train", "kms:Sign", Resource=[f"{_KEY}/prod-delivery"])),
    "a preview signs deliveries": ("pipelines_sign_their_own_deliveries", allows("mlops-dev-preview", "kms:Sign", Resource=[f"{_KEY}/dev-delivery"])),
    "no key for deliveries": ("pipelines_sign_their_own_deliveries", without("kms/Key", "prod-delivery")),
    "no key for approvals": ("the_approver_alone_approves", without("kms/Key", "prod")),
    "a delivery key that we do not verify": ("the_approver_alone_approves", put("kms/Key", "prod-delivery", customerMasterKeySpec="RSA_2048")),
    "a delivery key for others": ("keys_are_the_accounts", says("kms/Key", "prod-delivery", lambda found: found[0].update(Principal={"AWS": _OTHER}))),
    "an unprotected delivery key": ("data_is_protected", unlike("kms/Key", "prod-delivery", protect=False)),
    "a build role for another environment": ("images_are_built_once", like("mlops-dev-build", "mlops-staging-build", sub="repo:acme/ml:environment:staging")),
    "a deployment pushes images": ("images_are_built_once", allows(_DEPLOY, "ecr:PutImage")),
    "a pull request pushes layers": ("images_are_built_once", allows("mlops-dev-preview", "ecr:UploadLayerPart")),
    "a promotion reads models": ("pipelines_leave_data_alone", allows("mlops-staging-promote", "s3:GetObject", Resource=["arn:aws:s3:::mlops-dev-000000000000/models/*"])),
    "a promotion decrypts": ("pipelines_leave_data_alone", allows("mlops-staging-promote", "kms:Decrypt")),
    "a training reads deliveries": ("pipelines_leave_data_alone", allows("mlops-dev-train", "s3:GetObject", Resource=["arn:aws:s3:::mlops-state-000000000000/delivery/*"])),
    "a deployment writes models": ("pipelines_leave_data_alone", allows(_DEPLOY, "s3:PutObject", Resource=["arn:aws:s3:::mlops-prod-000000000000/models/*"])),
    "the build reads any object": ("pipelines_leave_data_alone", allows("mlops-dev-build", "s3:GetObject")),
    "a pipeline approves": ("the_approver_alone_approves", allows("mlops-prod-train", "kms:Sign")),
    "a deployment approves": ("the_approver_alone_approves", allows(_DEPLOY, "kms:Sign", Resource=[f"{_KEY}/prod-delivery", f"{_KEY}/prod"])),
    "a pipeline approves, too": ("the_approver_alone_approves", signed_by("prod", "mlops/mlops-prod-approver", "mlops/github-mlops-prod-deploy")),
    "whoever approves": ("the_approver_alone_approves", says("kms/Key", "prod", lambda found: found.pop())),
    "the approver of dev approves for prod": ("the_approver_alone_approves", says("kms/Key", "prod", lambda found: found[-1]["Condition"]["ArnNotEquals"].update({"aws:PrincipalArn": _OTHER}))),
    "a key that encrypts": ("keys_are_the_accounts", put("kms/Key", "prod", keyUsage=None)),
    "a key that we do not verify": ("the_approver_alone_approves", put("kms/Key", "prod", customerMasterKeySpec="RSA_2048")),
    "a policy for identities with a wildcard": ("rights_are_named", another("iam/Policy")),
}  # fmt: skip


@pytest.mark.parametrize("mutant", [*MUTANTS, *SHARED])
def test_a_mutant_is_caught_by_the_policy_that_is_for_it(mutant: str) -> None:
    project, stack = (AWS, "prod") if mutant in MUTANTS else (ACCOUNT, "shared")
    wanted, change = (MUTANTS | SHARED)[mutant]
    resources = copy.deepcopy(rendered(project, stack))
    change(resources)
    assert wanted in {found.partition(":")[0] for found in violations(resources, stack)}


def test_every_policy_has_a_mutant() -> None:
    assert {check.__name__ for check in EVERYWHERE} == {wanted for wanted, _ in (MUTANTS | SHARED).values()}
