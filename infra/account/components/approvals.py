import pulumi

from infra.account.account import Account
from infra.component import Component


class Approvals(Component):
    """The key that approves models for an environment; only its controller signs with it, whatever IAM says elsewhere."""

    program: Account

    def create(self) -> None:
        self.keys = {environment: self._key(environment).arn for environment in self.program.settings.stages}

    def _key(self, environment: str):
        opts = pulumi.ResourceOptions(parent=self, protect=True)
        signer = self.program.made_role(environment, "controller")
        others = {"Effect": "Deny", "Principal": "*", "Action": "kms:Sign", "Resource": "*"}
        others["Condition"] = {"ArnNotEquals": {"aws:PrincipalArn": signer}}
        about = {"customer_master_key_spec": "ECC_NIST_P256", "key_usage": "SIGN_VERIFY"}
        return self.program.key(environment, f"mlops-{environment}-approval", opts, others, **about)
