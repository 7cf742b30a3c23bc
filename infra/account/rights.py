"""What the pipelines' roles may do, by purpose: statements of IAM policies.

A wildcard stands with its reason: names that AWS makes up (an id, a suffix), or actions that take no resource.
"""

from typing import Any

from infra.account.account import Account
from infra.aws.program import allow

Statements = list[dict[str, Any]]
_EVERY, _TAG = "*", "aws:ResourceTag/environment"
# Reading these tells how something is set up, not what is in it; most take no resource.
_LOOK = [
    "autoscaling:DescribeAutoScalingGroups", "budgets:ListTagsForResource", "budgets:ViewBudget",
    "cloudwatch:DescribeAlarms", "cloudwatch:ListTagsForResource", "ec2:Describe*", "ecr:BatchGetImage",
    "ecr:DescribeImages", "ecr:DescribeRepositories", "ecr:GetLifecyclePolicy", "ecr:ListTagsForResource",
    "eks:Describe*", "eks:List*", "iam:GetOpenIDConnectProvider", "iam:GetPolicy", "iam:GetPolicyVersion",
    "iam:GetRole", "iam:GetRolePolicy", "iam:ListAttachedRolePolicies", "iam:ListInstanceProfilesForRole",
    "iam:ListPolicyVersions", "iam:ListRolePolicies", "kms:DescribeKey", "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus", "kms:ListAliases", "kms:ListResourceTags", "logs:DescribeLogGroups",
    "logs:ListTagsForResource", "rds:DescribeDBInstances", "rds:DescribeDBParameterGroups",
    "rds:DescribeDBParameters", "rds:DescribeDBSubnetGroups", "rds:ListTagsForResource",
    "servicequotas:GetServiceQuota", "sns:GetSubscriptionAttributes", "sns:GetTopicAttributes",
    "sns:ListTagsForResource",
]  # fmt: skip
# The provider reads all that a bucket can have, whether it sets it or not.
_LOOK_AT_BUCKET = [
    "s3:GetAccelerateConfiguration", "s3:GetBucketAcl", "s3:GetBucketCORS", "s3:GetBucketLocation",
    "s3:GetBucketLogging", "s3:GetBucketObjectLockConfiguration", "s3:GetBucketOwnershipControls",
    "s3:GetBucketPolicy", "s3:GetBucketPublicAccessBlock", "s3:GetBucketRequestPayment", "s3:GetBucketTagging",
    "s3:GetBucketVersioning", "s3:GetBucketWebsite", "s3:GetEncryptionConfiguration", "s3:GetLifecycleConfiguration",
    "s3:GetReplicationConfiguration", "s3:ListBucket",
]  # fmt: skip
# Of the network: what is created has no name, so the region bounds it, and it joins nothing that is tagged for another
# environment; what exists is changed where this environment's tag is.
_CREATE_NETWORK = [
    "ec2:AllocateAddress", "ec2:CreateFlowLogs", "ec2:CreateInternetGateway", "ec2:CreateNatGateway",
    "ec2:CreateRouteTable", "ec2:CreateSecurityGroup", "ec2:CreateSubnet", "ec2:CreateTags", "ec2:CreateVpc",
    "ec2:CreateVpcEndpoint",
]  # fmt: skip
_CHANGE_NETWORK = [
    "ec2:AssociateRouteTable", "ec2:AttachInternetGateway", "ec2:AuthorizeSecurityGroupIngress", "ec2:CreateRoute",
    "ec2:DeleteFlowLogs", "ec2:DeleteInternetGateway", "ec2:DeleteNatGateway", "ec2:DeleteRoute",
    "ec2:DeleteRouteTable", "ec2:DeleteSecurityGroup", "ec2:DeleteSubnet", "ec2:DeleteTags", "ec2:DeleteVpc",
    "ec2:DeleteVpcEndpoints", "ec2:DetachInternetGateway", "ec2:DisassociateRouteTable",
    "ec2:ModifySecurityGroupRules", "ec2:ModifySubnetAttribute", "ec2:ModifyVpcAttribute", "ec2:ModifyVpcEndpoint",
    "ec2:ReleaseAddress", "ec2:ReplaceRoute", "ec2:RevokeSecurityGroupEgress", "ec2:RevokeSecurityGroupIngress",
]  # fmt: skip
_CLUSTER = [
    "eks:AssociateAccessPolicy", "eks:CreateAccessEntry", "eks:CreateAddon",
    "eks:CreatePodIdentityAssociation", "eks:DeleteAccessEntry", "eks:DeleteAddon", "eks:DeleteCluster",
    "eks:DeletePodIdentityAssociation", "eks:DisassociateAccessPolicy", "eks:TagResource", "eks:UntagResource",
    "eks:UpdateAccessEntry", "eks:UpdateAddon", "eks:UpdateClusterConfig", "eks:UpdateClusterVersion",
    "eks:UpdatePodIdentityAssociation",
]  # fmt: skip
_DATABASE = [
    "rds:AddTagsToResource", "rds:CreateDBInstance", "rds:CreateDBParameterGroup", "rds:CreateDBSnapshot",
    "rds:CreateDBSubnetGroup", "rds:DeleteDBInstance", "rds:DeleteDBParameterGroup", "rds:DeleteDBSubnetGroup",
    "rds:ModifyDBInstance", "rds:ModifyDBParameterGroup", "rds:ModifyDBSubnetGroup", "rds:RemoveTagsFromResource",
    "rds:ResetDBParameterGroup",
]  # fmt: skip
_BUCKET = [
    "s3:CreateBucket", "s3:DeleteBucket", "s3:DeleteBucketPolicy", "s3:PutBucketOwnershipControls",
    "s3:PutBucketPolicy", "s3:PutBucketPublicAccessBlock", "s3:PutBucketTagging", "s3:PutBucketVersioning",
    "s3:PutEncryptionConfiguration", "s3:PutLifecycleConfiguration",
]  # fmt: skip
_ROLES = [
    "iam:AttachRolePolicy", "iam:DeleteRole", "iam:DeleteRolePolicy", "iam:DetachRolePolicy", "iam:PutRolePolicy",
    "iam:TagRole", "iam:UntagRole", "iam:UpdateAssumeRolePolicy", "iam:UpdateRole",
]  # fmt: skip
_BOUND = ["iam:CreateRole", "iam:PutRolePermissionsBoundary"]
_KEYS = [
    "kms:CreateGrant", "kms:Decrypt", "kms:EnableKeyRotation", "kms:GenerateDataKey", "kms:PutKeyPolicy",
    "kms:ScheduleKeyDeletion", "kms:TagResource", "kms:UntagResource", "kms:UpdateKeyDescription",
]  # fmt: skip
_LOGS = [
    "logs:AssociateKmsKey", "logs:CreateLogGroup", "logs:DeleteLogGroup", "logs:DeleteRetentionPolicy",
    "logs:PutRetentionPolicy", "logs:TagResource", "logs:UntagResource",
]  # fmt: skip
_ALARMS = [
    "budgets:ModifyBudget", "budgets:TagResource", "cloudwatch:DeleteAlarms", "cloudwatch:PutMetricAlarm",
    "cloudwatch:TagResource", "sns:CreateTopic", "sns:DeleteTopic", "sns:SetTopicAttributes", "sns:Subscribe",
    "sns:TagResource",
]  # fmt: skip
_PULL = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:DescribeImages", "ecr:GetDownloadUrlForLayer"]
_PUSH = ["ecr:CompleteLayerUpload", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart"]
# EKS, RDS, load balancers and spot instances each bring a role of their own, at their first use in an account.
_LINKED = ("eks", "eks-nodegroup", "elasticloadbalancing", "rds", "spot", "vpc-lattice")


def preview(account: Account, state: "StateAccess", environment: str) -> Statements:
    return [*state.read(environment), allow(_LOOK, _EVERY), allow(_LOOK_AT_BUCKET, _bucket(account, environment))]


def watch(account: Account, state: "StateAccess", environment: str) -> Statements:
    """It looks, and copies the environment's models elsewhere, to see whether they could be restored."""
    by_s3: Any = {"kms:ViaService": [f"s3.{account.region}.amazonaws.com{end}" for end in ("", ".cn")]}
    return [
        *preview(account, state, environment),
        allow("s3:GetObject", f"{_bucket(account, environment)}/models/*"),
        allow("kms:Decrypt", account.arn("kms", "key/*"), StringEquals={_TAG: environment} | by_s3),
    ]


def build(account: Account, state: "StateAccess", key: Any) -> Statements:
    """In the first environment alone; the others run what was proven there."""
    return [
        allow("ecr:GetAuthorizationToken", _EVERY),
        allow([*_PULL, *_PUSH], account.arn("ecr", "repository/mlops-*")),
        *state.deliver(["attestations", "wheels", "sboms"], key),
    ]


def infrastructure(account: Account, state: "StateAccess", environment: str, boundary: Any) -> Statements:
    name, path = f"mlops-{environment}", account.settings.iam.path
    mine, requested = {_TAG: environment}, {"aws:RequestTag/environment": environment}
    roles = [account.arn("iam", f"role{each}", region="") for each in (f"{path}{name}-*", f"/{name}-nodes")]
    secrets = account.arn("secretsmanager", "secret:rds!db-*")
    aliases, keys = account.arn("kms", f"alias/{name}-*"), account.arn("kms", "key/*")
    parts = ("access-entry", "addon", "podidentityassociation")
    eks = [account.arn("eks", f"cluster/{name}"), *(account.arn("eks", f"{part}/{name}/*") for part in parts)]
    databases = (f"db:{name}", f"pg:{name}", f"subgrp:{name}", f"snapshot:{name}-final", "og:default:*")
    rds = [account.arn("rds", each) for each in databases]
    logs = [account.arn("logs", f"log-group:{group}{name}/*") for group in ("/aws/eks/", "/aws/rds/instance/", "/")]
    alarms = [
        account.arn("cloudwatch", f"alarm:{name}-*"),
        account.arn("sns", name),
        account.arn("budgets", f"budget/{name}", region=""),
    ]
    services = ["eks.amazonaws.com", "pods.eks.amazonaws.com", "ec2.amazonaws.com", "vpc-flow-logs.amazonaws.com"]
    linked = [f"{service}.amazonaws.com" for service in _LINKED]
    return [
        *preview(account, state, environment),
        *state.write(environment, "mlops-aws"),
        state.lease(environment),
        allow(_CREATE_NETWORK, _EVERY, StringEquals={"aws:RequestedRegion": account.region}, StringEqualsIfExists=mine),
        allow(_CHANGE_NETWORK, _EVERY, StringEquals=mine),
        allow("ec2:AuthorizeSecurityGroupIngress", account.arn("ec2", "security-group-rule/*")),  # of a group above
        allow("eks:CreateCluster", _EVERY, StringEquals=requested),
        allow(_CLUSTER, *eks),
        allow(_DATABASE, *rds),
        allow(_BUCKET, _bucket(account, environment)),
        # No role without the boundary, so nobody becomes more than what it allows.
        allow(_BOUND, *roles, ArnEquals={"iam:PermissionsBoundary": boundary}),
        allow(_ROLES, *roles),
        allow("iam:PassRole", *roles, StringEquals={"iam:PassedToService": services}),
        allow("iam:CreateServiceLinkedRole", _EVERY, StringEquals={"iam:AWSServiceName": linked}),
        # With tags it is made, and no key of another environment gets them.
        allow(["kms:CreateKey", "kms:TagResource"], _EVERY, StringEquals=requested, StringEqualsIfExists=mine),
        allow(_KEYS, keys, StringEquals=mine),
        allow(["kms:CreateAlias", "kms:DeleteAlias"], aliases, keys, StringEqualsIfExists=mine),
        allow(_LOGS, *logs),
        allow(_ALARMS, *alarms),
        allow("sns:Unsubscribe", _EVERY),
        allow(["secretsmanager:CreateSecret", "secretsmanager:TagResource"], secrets),
    ]


def deploy(account: Account, state: "StateAccess", environment: str, key: Any) -> Statements:
    return [
        _cluster(account, environment),
        *state.read(environment),
        *state.write(environment, "mlops"),
        *state.deliver(["attestations", f"deployments/{environment}"], key),
        state.lease(environment),
    ]


def train(account: Account, environment: str) -> Statements:
    """It starts Jobs in the cluster: what a training may do, the training's own role says."""
    return [_cluster(account, environment)]


def promote(account: Account, environment: str) -> Statements:
    """It imports and releases through the approver, which verifies; from another environment it gets an archive."""
    return [_cluster(account, environment)]


def _bucket(account: Account, environment: str) -> str:
    return account.arn("s3", f"mlops-{environment}-{account.account_id}", region="", account="")


def _cluster(account: Account, environment: str) -> dict[str, Any]:
    return allow("eks:DescribeCluster", account.arn("eks", f"cluster/mlops-{environment}"))


class StateAccess:
    """Of Pulumi's state, an environment's own stacks; and, to read, what the account's stack exports."""

    def __init__(self, account: Account, bucket: str, key: Any):
        self._bucket, self._key = account.arn("s3", bucket, region="", account=""), key

    def read(self, environment: str) -> Statements:
        stacks = [f".pulumi/stacks/*/{environment}.json*", ".pulumi/stacks/mlops-account/*", ".pulumi/meta.yaml"]
        own = [f"{self._bucket}/{stack}" for stack in stacks]
        own += [self.delivery(f"{each}/*") for each in ("attestations", f"deployments/{environment}")]
        own += [self.delivery(f"running/{environment}.json"), f"{self._bucket}/.pulumi/locks/*/{environment}/*"]
        return [allow("s3:GetObject", *own), allow("s3:ListBucket", self._bucket), allow("kms:Decrypt", self._key)]

    def write(self, environment: str, project: str) -> Statements:
        own = f"{self._bucket}/.pulumi"
        lock = f"{own}/locks/organization/{project}/{environment}/*"
        files = [f"{own}/stacks/{project}/{environment}.json*"]
        files += [f"{own}/{kind}/{project}/{environment}/*" for kind in ("history", "backups")]
        return [
            allow(["s3:GetObject", "s3:PutObject"], *files, lock),
            allow("s3:DeleteObject", lock),
            allow(["kms:Encrypt", "kms:GenerateDataKey"], self._key),
        ]

    def delivery(self, path: str) -> str:
        """Where the road keeps what it attests and deploys: `store` of environments/delivery.yaml."""
        return f"{self._bucket}/delivery/{path}"

    def lease(self, environment: str) -> dict[str, Any]:
        """Which run deploys there: written before `pulumi up`, deleted after it."""
        return allow(["s3:PutObject", "s3:DeleteObject"], self.delivery(f"running/{environment}.json"))

    def deliver(self, folders: list[str], key: Any) -> Statements:
        """What is written stays: nobody writes it twice. `key`: that signs for it."""
        paths = [self.delivery(f"{each}/*") for each in folders]
        of_bucket = {"kms:EncryptionContext:aws:s3:arn": self._bucket}  # not Pulumi's secrets, which have the same key
        return [
            allow("s3:ListBucket", self._bucket),
            allow("s3:GetObject", *paths),
            allow("s3:PutObject", *paths, Null={"s3:if-none-match": "false"}),
            allow(["kms:Decrypt", "kms:GenerateDataKey"], self._key, StringEquals=of_bucket),
            allow(["kms:GetPublicKey", "kms:Sign"], key),
        ]
