import pulumi

from infra.account.settings import Settings
from infra.aws.program import AwsProgram


class Account(AwsProgram):
    settings: Settings

    def __init__(self) -> None:
        super().__init__(Settings.load(), "account")

    def made_role(self, environment: str, name: str) -> str:
        """The ARN of a role that infra/aws makes."""
        return self.arn("iam", f"role{self.settings.iam.path}mlops-{environment}-{name}", region="")

    def pipeline_role(self, environment: str, purpose: str) -> str:
        return self.arn("iam", f"role{self.settings.iam.path}github-mlops-{environment}-{purpose}", region="")

    def signing_key(
        self, environment: str, use: str, signers: list[str], parent: pulumi.Resource
    ) -> pulumi.Output[str]:
        """An asymmetric key with which nobody but `signers` signs."""
        opts = pulumi.ResourceOptions(parent=parent, protect=True)
        others = {"Effect": "Deny", "Principal": "*", "Action": "kms:Sign", "Resource": "*"}
        others["Condition"] = {"ArnNotEquals": {"aws:PrincipalArn": signers if len(signers) > 1 else signers[0]}}
        about = {"customer_master_key_spec": "ECC_NIST_P256", "key_usage": "SIGN_VERIFY"}
        name = environment if use == "approval" else f"{environment}-{use}"
        return self.key(name, f"mlops-{environment}-{use}", opts, others, **about).arn
