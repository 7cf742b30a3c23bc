from typing import Any

import pulumi
import pulumi_aws as aws

from infra.aws.cloud import Cloud
from infra.aws.components.database import Database
from infra.aws.components.network import Network
from infra.aws.program import document
from infra.aws.settings import Settings
from infra.component import Component

_GB = 1e9
_CONNECTIONS = 60  # MLflow's two pools hold 20; db.t4g.micro allows about 80


class Alarms(Component):
    """What Prometheus cannot see, and the bill."""

    program: Cloud
    settings: Settings

    def __init__(self, name: str, cloud: Cloud, network: Network, database: Database | None):
        self.network, self.database = network, database
        super().__init__(name, cloud)

    def create(self) -> None:
        topic = aws.sns.Topic(
            "alarms", name=self.program.name, kms_master_key_id=self.program.data_key, opts=self.child
        )
        services = {"Service": ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"]}
        publish = {"Effect": "Allow", "Principal": services, "Action": "sns:Publish", "Resource": topic.arn}
        plain = {"Bool": {"aws:SecureTransport": "false"}}
        refuse = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "sns:Publish",
            "Resource": topic.arn,
            "Condition": plain,
        }
        policy = document(publish | {"Condition": self.program.from_here}, refuse)
        allowed = aws.sns.TopicPolicy("alarms", arn=topic.arn, policy=policy, opts=self.child)
        self.topic = topic
        if email := self.settings.alarms.email:
            aws.sns.TopicSubscription("email", topic=topic.arn, protocol="email", endpoint=email, opts=self.child)
        if self.database:
            rds: Any = {
                "namespace": "AWS/RDS",
                "dimensions": {"DBInstanceIdentifier": self.database.instance.identifier},
            }
            self._alarm("database-storage", "FreeStorageSpace", "LessThanThreshold", 2 * _GB, "Average", **rds)
            self._alarm("database-cpu", "CPUUtilization", "GreaterThanThreshold", 90, "Average", **rds)
            self._alarm(
                "database-connections", "DatabaseConnections", "GreaterThanThreshold", _CONNECTIONS, "Maximum", **rds
            )
        for zone, gateway in enumerate(self.network.nat):
            nat: Any = {"namespace": "AWS/NATGateway", "dimensions": {"NatGatewayId": gateway.id}}
            self._alarm(f"nat-{zone}-ports", "ErrorPortAllocation", "GreaterThanThreshold", 0, "Sum", **nat)
            self._alarm(f"nat-{zone}-drops", "PacketsDropCount", "GreaterThanThreshold", 100, "Sum", **nat)
        if self.settings.budget.dollars:
            self._budget(allowed)

    def _alarm(self, name: str, metric: str, compares: str, threshold: float, statistic: str, **about: Any) -> None:
        aws.cloudwatch.MetricAlarm(
            name,
            name=f"{self.program.name}-{name}",
            alarm_description="docs/aws.md, Alarms",
            metric_name=metric,
            comparison_operator=compares,
            threshold=threshold,
            statistic=statistic,
            period=300,
            evaluation_periods=3,
            alarm_actions=[self.topic.arn],
            ok_actions=[self.topic.arn],
            treat_missing_data="missing",
            opts=self.child,
            **about,
        )

    def _budget(self, allowed: pulumi.Resource) -> None:
        """Told when the month will cost more, before it has. Of the whole account: what EKS makes has no tags of ours."""
        about: Any = {"comparison_operator": "GREATER_THAN", "threshold": 100, "threshold_type": "PERCENTAGE"}
        about["subscriber_sns_topic_arns"] = [self.topic.arn]
        told: Any = [about | {"notification_type": kind} for kind in ("FORECASTED", "ACTUAL")]
        aws.budgets.Budget(
            "month",
            name=self.program.name,
            budget_type="COST",
            limit_amount=str(self.settings.budget.dollars),
            limit_unit="USD",
            time_unit="MONTHLY",
            notifications=told,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[allowed]),
        )
