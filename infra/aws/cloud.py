from typing import Any

import pulumi
import pulumi_aws as aws

from infra.account import outputs as account
from infra.aws.program import AwsProgram, document
from infra.aws.settings import Settings
from infra.configuration import PROTECTED

_SERVICES = ("cloudwatch.amazonaws.com", "budgets.amazonaws.com")  # they publish to the topic of alarms


class Cloud(AwsProgram):
    """What every component needs, and what infra/account made."""

    settings: Settings

    def __init__(self) -> None:
        settings = Settings.load()
        super().__init__(settings, settings.environment)
        self.environment, self.name = settings.environment, f"mlops-{settings.environment}"
        self.account = account.Outputs.of(settings.account_stack)
        self.locked = self.environment in PROTECTED and not settings.unlock
        self.data_key: pulumi.Input[str] = settings.keys.data or self._data_key().arn

    @property
    def bucket_name(self) -> str:
        """With the account's number, since names of buckets are shared by all of AWS."""
        return self.settings.bucket.name or f"{self.name}-{self.account_id}"

    @property
    def approval_key(self) -> pulumi.Input[str]:
        return self.settings.keys.approval or self.of_account(self.account.approval_keys, "environments")

    def of_account(self, made: pulumi.Output[dict[str, Any]], setting: str) -> pulumi.Output[Any]:
        """What infra/account has made for this environment, by what that setting of it says."""

        def own(found: dict[str, Any]) -> Any:
            if self.environment not in found:
                where = f"environments/account/Pulumi.{self.settings.account_stack}.yaml"
                raise pulumi.RunError(
                    f"{setting} in {where} has nothing for {self.environment}; add it, then: make account"
                )
            return found[self.environment]

        return made.apply(own)

    def role(self, name: str, trusted: Any, opts: pulumi.ResourceOptions, path: str = "") -> aws.iam.Role:
        iam = self.settings.iam
        return aws.iam.Role(
            name,
            name=f"{self.name}-{name}",
            path=path or iam.path,
            permissions_boundary=iam.boundary or self.of_account(self.account.boundary, "environments"),
            assume_role_policy=document(trusted),
            opts=opts,
        )

    def logs(self, name: str, group: str, opts: pulumi.ResourceOptions) -> aws.cloudwatch.LogGroup:
        """Made before what writes into it, which would make one that never expires."""
        days = self.settings.cluster.log_days
        about: Any = {"retention_in_days": days, "kms_key_id": self.data_key}
        return aws.cloudwatch.LogGroup(name, name=group, **about, opts=opts)

    def _data_key(self) -> aws.kms.Key:
        use = {"Effect": "Allow", "Action": ["kms:Decrypt", "kms:GenerateDataKey*"], "Resource": "*"}
        services = use | {"Principal": {"Service": list(_SERVICES)}, "Condition": self.from_here}
        suffix = ".cn" if self.partition == "aws-cn" else ""
        groups = {"ArnLike": {"kms:EncryptionContext:aws:logs:arn": self.arn("logs", "*")}}
        logs = use | {"Principal": {"Service": f"logs.{self.region}.amazonaws.com{suffix}"}, "Condition": groups}
        logs["Action"] = [*use["Action"], "kms:Encrypt", "kms:ReEncrypt*", "kms:DescribeKey"]
        opts = pulumi.ResourceOptions(provider=self.provider, protect=self.locked)
        return self.key("data", f"{self.name}-data", opts, services, logs, enable_key_rotation=True)
