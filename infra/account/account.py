from infra.account.settings import Settings
from infra.aws.program import AwsProgram


class Account(AwsProgram):
    settings: Settings

    def __init__(self) -> None:
        super().__init__(Settings.load(), "account")

    def made_role(self, environment: str, name: str) -> str:
        """The ARN of a role that infra/aws makes."""
        return self.arn("iam", f"role{self.settings.iam.path}mlops-{environment}-{name}", region="")
