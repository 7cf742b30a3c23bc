from typing import Any

import pulumi
import pulumi_aws as aws

from infra.aws.cloud import Cloud
from infra.aws.program import allow, document, trust
from infra.aws.settings import Settings
from infra.component import Component
from infra.identities import grants

# Service account → identity in the bucket.
_BUCKET = {name: name for name in ("serving", "training", "tracking", "controller", "approver")}
_BUCKET |= {"setup-bucket": "setup"}


class Identities(Component):
    """A role for each workload that asks AWS for something, by Pod Identity: the rights of a bundled bucket, and what
    this workload alone needs of KMS and Secrets Manager."""

    program: Cloud
    settings: Settings

    def __init__(self, name: str, cloud: Cloud, cluster: pulumi.Input[str], secret: pulumi.Input[str]):
        self.cluster, self.secret = cluster, secret
        super().__init__(name, cloud)

    def create(self) -> None:
        data, approval = self.program.data_key, self.program.approval_key
        more = {"approver": [allow("kms:Sign", approval)], "setup-keys": [allow("kms:GetPublicKey", approval)]}
        if self.secret:
            read = allow("secretsmanager:GetSecretValue", self.secret)
            more["setup-database"] = [read, allow("kms:Decrypt", data)]
        for workload in sorted({*_BUCKET, *more}):
            self._identity(workload, [*self._in_bucket(workload), *more.get(workload, [])])

    def _in_bucket(self, workload: str) -> list[dict[str, Any]]:
        if workload not in _BUCKET:
            return []
        arn = self.program.arn("s3", self.program.bucket_name, region="", account="")
        allowed = [allow(action, *(f"{arn}{key}" for key in keys)) for action, keys in grants(_BUCKET[workload])]
        return [*allowed, allow(["kms:Decrypt", "kms:GenerateDataKey"], self.program.data_key)]

    def _identity(self, workload: str, statements: list[dict[str, Any]]) -> None:
        role = self.program.role(workload, trust("pods.eks.amazonaws.com", "sts:TagSession"), self.child)
        policy = aws.iam.RolePolicy(workload, role=role.name, policy=document(*statements), opts=self.child)
        aws.eks.PodIdentityAssociation(
            workload,
            cluster_name=self.cluster,
            namespace=self.settings.namespace,
            service_account=workload,
            role_arn=role.arn,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[policy]),
        )
