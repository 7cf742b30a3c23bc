import pulumi

from infra.account.account import Account
from infra.component import Component


class State(Component):
    """Pulumi's state of all programs, and the key of its secrets."""

    program: Account

    def create(self) -> None:
        account, where = self.program, f"?region={self.program.region}&awssdk=v2"
        opts = pulumi.ResourceOptions(parent=self, protect=True)
        self.key = account.key("state", "mlops-state", opts, enable_key_rotation=True)
        self.bucket = f"mlops-state-{account.account_id}"
        account.bucket("state", self.bucket, self.key.arn, True, parent=self)
        self.url, self.secrets_provider = f"s3://{self.bucket}{where}", f"awskms://alias/mlops-state{where}"
