import pulumi
import pulumi_aws as aws

from infra.account.account import Account
from infra.aws.program import allow, document
from infra.component import Component

# AssumeRole would lead to a role without this boundary; Pod Identity needs none.
_ABOVE = ["account:*", "aws-portal:*", "billing:*", "iam:*", "organizations:*", "sts:AssumeRole"]
# EKS makes instance profiles for its nodes, and passes them their role; nothing else here touches IAM.
_OF_NODES = [
    "iam:AddRoleToInstanceProfile", "iam:CreateInstanceProfile", "iam:CreateServiceLinkedRole",
    "iam:DeleteInstanceProfile", "iam:GetInstanceProfile", "iam:GetRole", "iam:ListInstanceProfiles",
    "iam:RemoveRoleFromInstanceProfile", "iam:TagInstanceProfile",
]  # fmt: skip
# Who could do this to the account's keys could let anybody approve.
_OF_KEYS = [
    "kms:CreateGrant", "kms:DisableKey", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:TagResource",
    "kms:UntagResource",
]  # fmt: skip


class Boundary(Component):
    """The most that any role of an environment can be allowed: it grants nothing by itself."""

    program: Account

    def create(self) -> None:
        self.arn: pulumi.Input[str] = self.program.settings.iam.boundary
        if self.arn:
            return
        arn, path = self.program.arn, self.program.settings.iam.path
        ours = {"StringEquals": {"aws:ResourceTag/environment": "account"}}
        policy = document(
            {"Effect": "Allow", "NotAction": _ABOVE, "Resource": "*"},
            allow(_OF_NODES, "*"),
            allow(
                "iam:PassRole", arn("iam", f"role{path}mlops-*", region=""), arn("iam", "role/mlops-*-nodes", region="")
            ),
            {"Effect": "Deny", "Action": _OF_KEYS, "Resource": arn("kms", "key/*"), "Condition": ours},
        )
        name = "mlops-boundary"
        self.arn = aws.iam.Policy(name, name=name, path=path, policy=policy, opts=self.child).arn
