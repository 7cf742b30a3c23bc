"""What infra/aws makes for an environment, and the platform on it reads."""

from dataclasses import dataclass

import pulumi

from infra import outputs


@dataclass(frozen=True)
class Outputs(outputs.Outputs):
    PROJECT = "mlops-aws"

    region: pulumi.Input[str]
    cluster_name: pulumi.Input[str]
    cluster_arn: pulumi.Input[str]
    cluster_endpoint: pulumi.Input[str]
    cluster_certificate: pulumi.Input[str]
    bucket: pulumi.Input[str]
    database_host: pulumi.Input[str]
    database_secret: pulumi.Input[str]  # ARN of the administrator's, which RDS rotates
    approval_key: pulumi.Input[str]

    @property
    def bucket_url(self) -> pulumi.Output[str]:
        return pulumi.Output.concat("s3://", self.bucket)

    @property
    def kubeconfig(self) -> pulumi.Output[str]:
        """Logs in as whoever runs `pulumi`, by the AWS CLI: no token is in the state."""
        command = ["eks", "get-token", "--region", self.region, "--cluster-name", self.cluster_name]
        login = {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws", "args": command}
        cluster = {"server": self.cluster_endpoint, "certificate-authority-data": self.cluster_certificate}
        return pulumi.Output.json_dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "eks", "cluster": cluster}],
                "users": [{"name": "aws", "user": {"exec": login | {"interactiveMode": "Never"}}}],
                "contexts": [{"name": "eks", "context": {"cluster": "eks", "user": "aws"}}],
                "current-context": "eks",
            }
        )
