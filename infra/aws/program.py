"""What the two AWS programs share."""

from typing import Any

import pulumi
import pulumi_aws as aws

from infra.configuration import pairs


class AwsProgram:
    """Settings, and a provider that refuses every other account."""

    def __init__(self, settings: Any, environment: str):
        self.settings, self.account_id, self.region = settings, settings.account, settings.region
        kinds = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
        self.partition = next((name for prefix, name in kinds.items() if self.region.startswith(prefix)), "aws")
        tags = pairs(settings.tags) | {"project": "mlops", "environment": environment}
        self.provider = aws.Provider(
            "aws", region=self.region, allowed_account_ids=[self.account_id], default_tags={"tags": tags}
        )

    def options(self, *after: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(provider=self.provider, depends_on=list(after))

    def arn(self, service: str, resource: str, region: str | None = None, account: str | None = None) -> str:
        """Of this account and region, where they are None; empty for a service whose ARNs have none."""
        places = [self.region if region is None else region, self.account_id if account is None else account]
        return ":".join(["arn", self.partition, service, *places, resource])

    @property
    def from_here(self) -> dict[str, Any]:
        """The condition that a service acts for this account."""
        return {"StringEquals": {"aws:SourceAccount": self.account_id}}

    def owner(self) -> dict[str, Any]:
        """The account's administrators: without them, a key that its policy locks out is lost."""
        principal = {"AWS": self.arn("iam", "root", region="")}
        return {"Effect": "Allow", "Principal": principal, "Action": "kms:*", "Resource": "*"}

    def key(self, name: str, alias: str, opts: pulumi.ResourceOptions, *statements: Any, **about: Any) -> aws.kms.Key:
        policy, days = document(self.owner(), *statements), 30
        key = aws.kms.Key(name, description=alias, deletion_window_in_days=days, policy=policy, opts=opts, **about)
        aws.kms.Alias(name, name=f"alias/{alias}", target_key_id=key.key_id, opts=opts)
        return key

    def bucket(
        self, name: str, bucket: str, key: Any, locked: bool, *statements: Any, rules: Any = (), parent: Any
    ) -> aws.s3.Bucket:
        """Encrypted, versioned, private, by TLS alone; `statements` of its policy may leave out who is denied; `rules`: of
        its lifecycle, besides that uploads which never ended go."""
        child = pulumi.ResourceOptions(parent=parent)
        made = aws.s3.Bucket(
            name, bucket=bucket, force_destroy=not locked, opts=pulumi.ResourceOptions(parent=parent, protect=locked)
        )
        about: Any = {"bucket": made.id, "opts": child}
        aws.s3.BucketVersioning(name, versioning_configuration={"status": "Enabled"}, **about)
        by_key = {"sse_algorithm": "aws:kms", "kms_master_key_id": key}
        encrypted: Any = {"bucket_key_enabled": True, "apply_server_side_encryption_by_default": by_key}
        aws.s3.BucketServerSideEncryptionConfiguration(name, rules=[encrypted], **about)
        uploads: Any = {"id": "uploads", "status": "Enabled", "filter": {"prefix": ""}}
        uploads["abort_incomplete_multipart_upload"] = {"days_after_initiation": 7}
        aws.s3.BucketLifecycleConfiguration(name, rules=[uploads, *rules], **about)
        aws.s3.BucketOwnershipControls(name, rule={"object_ownership": "BucketOwnerEnforced"}, **about)
        flags = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
        about |= dict.fromkeys(flags, True)
        private = aws.s3.BucketPublicAccessBlock(name, **about)
        arn = self.arn("s3", bucket, region="", account="")
        plain = {
            "Action": "s3:*",
            "Resource": [arn, f"{arn}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
        denied = [{"Effect": "Deny", "Principal": "*", **statement} for statement in (plain, *statements)]
        opts = pulumi.ResourceOptions(parent=parent, depends_on=[private])
        aws.s3.BucketPolicy(name, bucket=made.id, policy=document(*denied), opts=opts)
        return made


def allow(actions: str | list[str], *resources: Any, **conditions: Any) -> dict[str, Any]:
    """A statement; `conditions`: operator → key → value."""
    found = {"Effect": "Allow", "Action": actions, "Resource": list(resources)}
    return found | ({"Condition": conditions} if conditions else {})


def trust(service: str, *actions: str, **condition: Any) -> dict[str, Any]:
    """That an AWS service may act as a role."""
    return {"Effect": "Allow", "Principal": {"Service": service}, "Action": ["sts:AssumeRole", *actions], **condition}


def document(*statements: dict[str, Any]) -> pulumi.Output[str]:
    """A policy."""
    return pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": list(statements)})
