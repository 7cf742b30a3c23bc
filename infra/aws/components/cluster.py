from typing import Any

import pulumi
import pulumi_aws as aws

from infra.aws.cloud import Cloud
from infra.aws.components.network import Network
from infra.aws.program import trust
from infra.aws.settings import Settings, listed
from infra.component import Component

_CLUSTER_POLICIES = (
    "AmazonEKSClusterPolicy",
    "AmazonEKSComputePolicy",
    "AmazonEKSBlockStoragePolicy",
    "AmazonEKSLoadBalancingPolicy",
    "AmazonEKSNetworkingPolicy",
)
_NODE_POLICIES = ("AmazonEKSWorkerNodeMinimalPolicy", "AmazonEC2ContainerRegistryPullOnly")
_LOGS = ("api", "audit", "authenticator", "controllerManager", "scheduler")


class Cluster(Component):
    """EKS in Auto Mode: AWS runs the nodes, their upgrades, volumes, load balancers and Pod Identity."""

    program: Cloud
    settings: Settings

    def __init__(self, name: str, cloud: Cloud, network: Network):
        self.network = network
        super().__init__(name, cloud, network)

    def create(self) -> None:
        settings = self.settings.cluster
        if settings.kind == "existing":
            invoke = pulumi.InvokeOptions(provider=self.program.provider)
            found = aws.eks.get_cluster_output(name=settings.name, opts=invoke)
            self.cluster_name: pulumi.Output[str] = pulumi.Output.from_input(settings.name)
            authority = found.certificate_authorities[0].data
            security = found.vpc_config.cluster_security_group_id
        else:
            found = self._auto_mode()
            self.cluster_name, authority = found.name, found.certificate_authority.data
            security = found.vpc_config.cluster_security_group_id
        self.arn, self.endpoint, self.certificate, self.security_group = found.arn, found.endpoint, authority, security
        self._access()

    def _auto_mode(self) -> aws.eks.Cluster:
        settings, name = self.settings.cluster, self.program.name
        manages = [self._role("cluster", trust("eks.amazonaws.com", "sts:TagSession"), _CLUSTER_POLICIES)]
        # Without a path: with one, NodePools of Auto Mode never got ready (aws/containers-roadmap 2486).
        nodes = self._role("nodes", trust("ec2.amazonaws.com"), _NODE_POLICIES, "/")
        logs = self.program.logs("cluster", f"/aws/eks/{name}/cluster", self.child)
        outside = listed(settings.public_cidrs)
        return aws.eks.Cluster(
            "cluster",
            name=name,
            version=settings.version,
            role_arn=manages[0].arn,
            bootstrap_self_managed_addons=False,
            deletion_protection=self.program.locked,
            access_config={"authentication_mode": "API", "bootstrap_cluster_creator_admin_permissions": False},
            compute_config={
                "enabled": True, "node_pools": ["general-purpose", "system"], "node_role_arn": nodes.arn,
            },
            kubernetes_network_config={"elastic_load_balancing": {"enabled": True}},
            storage_config={"block_storage": {"enabled": True}},
            encryption_config={"provider": {"key_arn": self.program.data_key}, "resources": ["secrets"]},
            vpc_config={
                "subnet_ids": self.network.private,
                "endpoint_private_access": True,
                "endpoint_public_access": bool(outside),
                "public_access_cidrs": outside or None,
            },
            enabled_cluster_log_types=list(_LOGS),
            upgrade_policy={"support_type": "STANDARD"},  # extended support costs six times as much
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=[logs, *self.attached], protect=self.program.locked
            ),
        )  # fmt: skip

    def _role(self, name: str, trusted: Any, policies: tuple[str, ...], path: str = "") -> aws.iam.Role:
        role = self.program.role(name, trusted, self.child, path)
        for policy in policies:
            about = {"role": role.name, "policy_arn": self.program.arn("iam", f"policy/{policy}", "", "aws")}
            self.attached.append(aws.iam.RolePolicyAttachment(policy, **about, opts=self.child))
        return role

    def prepare(self) -> None:
        self.attached: list[pulumi.Resource] = []

    def _access(self) -> None:
        """People and pipelines; nobody is administrator for having made the cluster."""
        admins = {f"admin-{index}": arn for index, arn in enumerate(listed(self.settings.cluster.admins))}
        for name, arn in admins.items():
            self._entry(name, arn, "AmazonEKSClusterAdminPolicy")
        if self.settings.cluster.github:
            roles = self.program.of_account(self.program.account.roles, "github.repository")
            self._entry("deploy", roles["deploy"], "AmazonEKSClusterAdminPolicy")
            for purpose in ("preview", "watch"):  # what the platform makes, infra/components/eks.py adds
                self._entry(purpose, roles[purpose], "AmazonEKSViewPolicy", ["mlops:preview"])
            for purpose in ("train", "promote"):
                self._entry(purpose, roles[purpose], groups=[f"mlops:{purpose}"])
        if self.settings.cluster.kind == "create":  # HPA needs it, and Auto Mode does not have it
            name = "metrics-server"
            aws.eks.Addon(name, cluster_name=self.cluster_name, addon_name=name, opts=self.child)

    def _entry(self, name: str, arn: pulumi.Input[str], policy: str = "", groups: list[str] | None = None) -> None:
        who: Any = {"cluster_name": self.cluster_name, "principal_arn": arn}
        entry = aws.eks.AccessEntry(name, **who, kubernetes_groups=groups, type="STANDARD", opts=self.child)
        if policy:
            policy_arn = self.program.arn("eks", f"cluster-access-policy/{policy}", "", "aws")
            opts = pulumi.ResourceOptions(parent=self, depends_on=[entry])
            scope: Any = {"type": "cluster"}
            aws.eks.AccessPolicyAssociation(name, **who, policy_arn=policy_arn, access_scope=scope, opts=opts)
