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
# All that is done with what the account shares: images are pulled, and a key signs for whom its own policy lets.
_OF_ACCOUNT = [
    "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "kms:GetPublicKey", "kms:Sign",
]  # fmt: skip


class Boundaries(Component):
    """The most that any role of an environment can be allowed, and nothing of the other ones: it grants nothing by
    itself."""

    program: Account

    def create(self) -> None:
        settings = self.program.settings
        self.arns: dict[str, pulumi.Input[str]] = {
            each: settings.iam.boundary or self._boundary(each) for each in settings.stages
        }

    def _boundary(self, environment: str) -> pulumi.Output[str]:
        arn, path, own = self.program.arn, self.program.settings.iam.path, f"mlops-{environment}"
        stages = [each for each in self.program.settings.stages if each != environment]
        others = [f"mlops-{each}" for each in stages]
        named = [arn("s3", f"{each}-*", region="", account="") for each in (*others, "mlops-state")]
        parts = (("eks", "*/{}"), ("eks", "*/{}/*"), ("rds", "*:{}"), ("rds", "*:{}-*"))
        named += [arn(service, part.format(each)) for each in others for service, part in parts]
        # The tags: our own, and those by which EKS and RDS say of which cluster a node, of which database a secret is.
        tagged = {"environment": stages, "eks:eks-cluster-name": others}
        tagged["aws:rds:primaryDBInstanceArn"] = [arn("rds", f"db:{each}") for each in others]
        policy = document(
            {"Effect": "Allow", "NotAction": _ABOVE, "Resource": "*"},
            allow(_OF_NODES, "*"),
            allow("iam:PassRole", *(arn("iam", f"role{each}", region="") for each in (f"{path}{own}-*", f"/{own}-nodes"))),
            {"Effect": "Deny", "Action": "*", "Resource": named},
            *({"Effect": "Deny", "Action": "*", "Resource": "*", **_where(tag, values)} for tag, values in tagged.items() if values),
            {"Effect": "Deny", "NotAction": _OF_ACCOUNT, "Resource": "*", **_where("environment", ["account"])},
        )  # fmt: skip
        name = f"{own}-boundary"
        return aws.iam.Policy(name, name=name, path=path, policy=policy, opts=self.child).arn


def _where(tag: str, values: list[str]) -> dict[str, dict[str, dict[str, list[str]]]]:
    return {"Condition": {"StringEquals": {f"aws:ResourceTag/{tag}": values}}}
