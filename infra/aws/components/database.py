from typing import Any

import pulumi
import pulumi_aws as aws

from infra.aws.cloud import Cloud
from infra.aws.components.cluster import Cluster
from infra.aws.components.network import Network
from infra.aws.settings import Settings
from infra.component import Component
from infra.configuration import PROTECTED

PORT = 5432
_LOGS = ("postgresql", "upgrade")


class Database(Component):
    """PostgreSQL for MLflow. RDS keeps and rotates the administrator's password; the platform's setup Job reads it, and
    makes a user whose password changes only by `mlops rotate`."""

    program: Cloud
    settings: Settings

    def __init__(self, name: str, cloud: Cloud, network: Network, cluster: Cluster):
        self.network, self.cluster = network, cluster
        super().__init__(name, cloud, network, cluster)

    def create(self) -> None:
        settings, name, locked = self.settings.database, self.program.name, self.program.locked
        lasting = self.program.environment in PROTECTED
        logs = [self.program.logs(kind, f"/aws/rds/instance/{name}/{kind}", self.child) for kind in _LOGS]
        subnets = aws.rds.SubnetGroup("database", name=name, subnet_ids=self.network.private, opts=self.child)
        parameters: Any = [
            {"name": "rds.force_ssl", "value": "1"},
            {"name": "log_min_duration_statement", "value": "1000"},  # milliseconds
            {"name": "log_statement", "value": "ddl"},
        ]
        group = aws.rds.ParameterGroup(
            "database", name=name, family="postgres17", parameters=parameters, opts=self.child
        )
        instance = aws.rds.Instance(
            "database",
            identifier=name,
            engine="postgres",
            engine_version="17",
            auto_minor_version_upgrade=True,
            instance_class=settings.instance_class,
            storage_type="gp3",
            allocated_storage=settings.gigabytes,
            max_allocated_storage=settings.max_gigabytes,
            storage_encrypted=True,
            kms_key_id=self.program.data_key,
            username="mlops_admin",
            manage_master_user_password=True,
            master_user_secret_kms_key_id=self.program.data_key,
            db_subnet_group_name=subnets.name,
            parameter_group_name=group.name,
            vpc_security_group_ids=[self._security_group().id],
            publicly_accessible=False,
            multi_az=settings.multi_az,
            backup_retention_period=settings.backup_days,
            copy_tags_to_snapshot=True,
            deletion_protection=locked,
            skip_final_snapshot=not lasting,
            final_snapshot_identifier=f"{name}-final" if lasting else None,
            performance_insights_enabled=True,
            performance_insights_kms_key_id=self.program.data_key,
            enabled_cloudwatch_logs_exports=list(_LOGS),
            opts=pulumi.ResourceOptions(parent=self, depends_on=logs, protect=locked),
        )
        self.instance, self.host = instance, instance.address
        self.secret = instance.master_user_secrets[0].secret_arn

    def _security_group(self) -> aws.ec2.SecurityGroup:
        text = "PostgreSQL, from the cluster alone"
        group = aws.ec2.SecurityGroup("database", vpc_id=self.network.vpc, description=text, opts=self.child)
        rule: Any = {"security_group_id": group.id, "referenced_security_group_id": self.cluster.security_group}
        rule |= {"description": "The cluster's nodes", "ip_protocol": "tcp", "from_port": PORT, "to_port": PORT}
        aws.vpc.SecurityGroupIngressRule("database", **rule, opts=self.child)
        return group
