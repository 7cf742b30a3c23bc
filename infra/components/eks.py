from typing import Any

import pulumi_kubernetes as k8s

from infra.workload import KubernetesComponent

_RBAC = "rbac.authorization.k8s.io"
SPOT_TAINT = {"key": "mlops/spot", "value": "true", "effect": "NoSchedule"}
INGRESS_CLASS = "mlops-alb"
# What the roles of infra/account may do in the namespace: who may run a command in the controller may release.
_GROUPS: dict[str, Any] = {
    "train": [
        {"api_groups": ["batch"], "resources": ["cronjobs"], "resource_names": ["training"], "verbs": ["get"]},
        {"api_groups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list"]},
        {"api_groups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
        {"api_groups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch"]},
    ],
    "promote": [
        {"api_groups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch"]},
        {"api_groups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"api_groups": [""], "resources": ["pods/exec"], "verbs": ["create", "get"]},
    ],
}


class Eks(KubernetesComponent):
    """What EKS Auto Mode leaves to its user: NetworkPolicies enforced, encrypted volumes, spot nodes, a load balancer."""

    def create(self) -> None:
        if self.settings.cluster_scope:
            self._policies_are_enforced()
            self._storage_class()
            if self.settings.nodes.spot != "none":
                self._spot_nodes()
            if self.settings.ingress.enabled and self.settings.ingress.class_ in ("", INGRESS_CLASS):
                self._ingress_class()
        if self.settings.database.kind == "rds":
            self._database()
        for group, rules in _GROUPS.items():
            self._group(group, rules)

    def _in_cluster(self, name: str, **more: Any) -> Any:
        """Metadata of what belongs to no namespace of ours."""
        return {"name": name, "labels": self.metadata()["labels"], **more}

    def _policies_are_enforced(self) -> None:
        metadata = self._in_cluster("amazon-vpc-cni", namespace="kube-system")
        data = {"enable-network-policy-controller": "true"}
        k8s.core.v1.ConfigMap("amazon-vpc-cni", metadata=metadata, data=data, opts=self.child)

    def _storage_class(self) -> None:
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        k8s.storage.v1.StorageClass(
            "gp3",
            metadata=self._in_cluster("gp3", annotations=default),
            provisioner="ebs.csi.eks.amazonaws.com",
            parameters={"type": "gp3", "encrypted": "true"},
            volume_binding_mode="WaitForFirstConsumer",
            allow_volume_expansion=True,
            opts=self.child,
        )

    def _spot_nodes(self) -> None:
        """Preferred by what may run on them; pools of one's own have no guard-rails, hence the limit."""
        nodes = self.settings.nodes
        requirements = [
            {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]},
            {"key": "kubernetes.io/arch", "operator": "In", "values": [nodes.architecture]},
            {"key": "eks.amazonaws.com/instance-category", "operator": "In", "values": ["c", "m", "r"]},
            {"key": "eks.amazonaws.com/instance-generation", "operator": "Gt", "values": ["4"]},
            {"key": "eks.amazonaws.com/instance-cpu", "operator": "In", "values": ["2", "4", "8"]},
        ]
        node_class = {"group": "eks.amazonaws.com", "kind": "NodeClass", "name": "default"}
        taints = {"taints": [SPOT_TAINT]} if nodes.spot == "training" else {}
        spec = {
            "weight": 10,
            "template": {"spec": {"nodeClassRef": node_class, "requirements": requirements, **taints}},
            "limits": {"cpu": nodes.cpu},
            "disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "5m"},
        }
        about: Any = {"metadata": self._in_cluster("mlops-spot"), "spec": spec, "opts": self.child}
        k8s.apiextensions.CustomResource("spot", "karpenter.sh/v1", "NodePool", **about)

    def _ingress_class(self) -> None:
        settings, metadata = self.settings.ingress, self._in_cluster(INGRESS_CLASS)
        spec: Any = {"scheme": settings.scheme}
        spec |= {"certificateARNs": [settings.certificate]} if settings.certificate else {}
        about: Any = {"metadata": metadata, "spec": spec, "opts": self.child}
        k8s.apiextensions.CustomResource("alb", "eks.amazonaws.com/v1", "IngressClassParams", **about)
        parameters = {"api_group": "eks.amazonaws.com", "kind": "IngressClassParams", "name": INGRESS_CLASS}
        about |= {"spec": {"controller": "eks.amazonaws.com/alb", "parameters": parameters}}
        k8s.networking.v1.IngressClass("alb", **about)

    def _database(self) -> None:
        """The instance under the name that a bundled one has."""
        assert self.platform.aws
        metadata = self.metadata("database") | {"annotations": {"pulumi.com/skipAwait": "true"}}
        spec: Any = {"type": "ExternalName", "external_name": self.platform.aws.database_host}
        k8s.core.v1.Service("database", metadata=metadata, spec=spec, opts=self.child)

    def _group(self, purpose: str, rules: Any) -> None:
        metadata, name = self.metadata(f"github-{purpose}"), f"github-{purpose}"
        k8s.rbac.v1.Role(name, metadata=metadata, rules=rules, opts=self.child)
        subject: Any = {"kind": "Group", "api_group": _RBAC, "name": f"mlops:{purpose}"}
        reference: Any = {"kind": "Role", "api_group": _RBAC, "name": name}
        about: Any = {"metadata": metadata, "role_ref": reference, "subjects": [subject], "opts": self.child}
        k8s.rbac.v1.RoleBinding(name, **about)
