import json
from typing import Any

import pulumi_kubernetes as k8s

from infra.settings import LOAD_BALANCER
from infra.workload import KubernetesComponent

_RBAC = "rbac.authorization.k8s.io"
SPOT_TAINT = {"key": "mlops/spot", "value": "true", "effect": "NoSchedule"}
# Kinds of all that the platform may make, but Secrets: `pulumi refresh` reads them.
KINDS = {
    "": ["configmaps", "namespaces", "serviceaccounts", "services"],
    "admissionregistration.k8s.io": ["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
    "apps": ["deployments", "statefulsets"],
    "autoscaling": ["horizontalpodautoscalers"],
    "batch": ["cronjobs", "jobs"],
    "eks.amazonaws.com": ["ingressclassparams"],
    "karpenter.sh": ["nodepools"],
    "keda.sh": ["scaledobjects"],
    "monitoring.coreos.com": ["prometheusrules", "servicemonitors"],
    "networking.k8s.io": ["ingressclasses", "ingresses", "networkpolicies"],
    "policy": ["poddisruptionbudgets"],
    _RBAC: ["clusterrolebindings", "clusterroles", "rolebindings", "roles"],
    "storage.k8s.io": ["storageclasses"],
}
_READ: Any = [{"api_groups": [g], "resources": kinds, "verbs": ["get", "list", "watch"]} for g, kinds in KINDS.items()]
# What the other roles of infra/account may do in the namespace.
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


# What `train` may make, and what `promote` may run where. As RBAC has it, either could have a pod of the approver's: the
# keys that approve.
_JOBS = {"api_groups": ["batch"], "api_versions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]}
_EXEC = {"api_groups": [""], "api_versions": ["v1"], "resources": ["pods/exec"], "operations": ["CONNECT"]}
_TRAINING = {
    """variables.pod.serviceAccountName == 'training' && !has(variables.pod.initContainers)
&& variables.pod.containers.all(c, c.image == variables.image)""": "another identity or image",
    """variables.pod.?volumes.orValue([]).all(v, has(v.emptyDir) || has(v.projected)
  && v.projected.sources.all(s, !has(s.secret) || s.secret.name in variables.secrets))
&& variables.pod.containers.all(c,
  c.?env.orValue([]).all(e, !has(e.valueFrom) || e.valueFrom.?secretKeyRef.name.orValue('') in variables.secrets)
  && c.?envFrom.orValue([]).all(e, e.?secretRef.name.orValue('') in variables.secrets))""": "other volumes or Secrets",
}
_MLOPS = {
    """request.name.startsWith('controller-')
|| request.name.startsWith('approver-')""": "in another pod than the controller's or approver's",
    """object.command[0] == 'env' && object.command[1].startsWith('MLOPS_BY=')
&& object.command[2].startsWith('MLOPS_COMMAND=')
&& object.command[3] == 'python' && object.command[4] == '-m' && object.command[5] == 'cli'""": "another command than mlops",
}


class Eks(KubernetesComponent):
    """What EKS Auto Mode leaves to its user: NetworkPolicies enforced, encrypted volumes, spot nodes, a load balancer."""

    def create(self) -> None:
        if self.settings.cluster_scope:
            self._policies_are_enforced()
            self._storage_class()
            if self.settings.nodes.spot != "none":
                self._spot_nodes()
            if self.settings.load_balancer:
                self._ingress_class()
            self._admit("train", _JOBS, _TRAINING, self._of_training())
            self._admit("promote", _EXEC, _MLOPS, {})
        self._group("preview", _READ, self.settings.cluster_scope)
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
        settings, metadata = self.settings.ingress, self._in_cluster(LOAD_BALANCER)
        spec: Any = {"scheme": settings.scheme}
        spec |= {"certificateARNs": [settings.certificate]} if settings.certificate else {}
        about: Any = {"metadata": metadata, "spec": spec, "opts": self.child}
        k8s.apiextensions.CustomResource("alb", "eks.amazonaws.com/v1", "IngressClassParams", **about)
        parameters = {"api_group": "eks.amazonaws.com", "kind": "IngressClassParams", "name": LOAD_BALANCER}
        about |= {"spec": {"controller": "eks.amazonaws.com/alb", "parameters": parameters}}
        k8s.networking.v1.IngressClass("alb", **about)

    def _database(self) -> None:
        """The instance under the name that a bundled one has."""
        assert self.platform.aws
        metadata = self.metadata("database") | {"annotations": {"pulumi.com/skipAwait": "true"}}
        spec: Any = {"type": "ExternalName", "external_name": self.platform.aws.database_host}
        k8s.core.v1.Service("database", metadata=metadata, spec=spec, opts=self.child)

    def _group(self, purpose: str, rules: Any, everywhere: bool = False) -> None:
        name, rbac = f"github-{purpose}", k8s.rbac.v1
        role, binding = (rbac.ClusterRole, rbac.ClusterRoleBinding) if everywhere else (rbac.Role, rbac.RoleBinding)
        metadata = self._in_cluster(f"mlops-{purpose}") if everywhere else self.metadata(name)
        role(name, metadata=metadata, rules=rules, opts=self.child)
        subject: Any = {"kind": "Group", "api_group": _RBAC, "name": f"mlops:{purpose}"}
        reference: Any = {"kind": role.__name__, "api_group": _RBAC, "name": metadata["name"]}
        about: Any = {"metadata": metadata, "role_ref": reference, "subjects": [subject], "opts": self.child}
        binding(name, **about)

    def _of_training(self) -> dict[str, str]:
        """What the CronJob's pods have, as CEL says it."""
        secrets = {secret for secret, _ in self.platform.connections.secrets("training").values()}
        secrets |= {"signing-build", self.settings.training.secret} - {""}
        known = {"image": self.settings.images.training, "secrets": sorted(secrets)}
        return {"pod": "object.spec.template.spec"} | {name: json.dumps(value) for name, value in known.items()}

    def _admit(self, purpose: str, rule: Any, validations: dict[str, str], variables: dict[str, str]) -> None:
        """The one thing for which a group has a right in our namespace; nobody else is asked."""
        name, group = f"github-{purpose}", f"mlops:{purpose}"
        metadata, ours = self._in_cluster(f"mlops-{purpose}"), {"kubernetes.io/metadata.name": self.settings.namespace}
        spec: Any = {
            "failure_policy": "Fail",
            "match_constraints": {"namespace_selector": {"match_labels": ours}, "resource_rules": [rule]},
            "match_conditions": [{"name": "group", "expression": f"'{group}' in request.userInfo.groups"}],
            "variables": [{"name": name, "expression": value} for name, value in variables.items()],
            "validations": [
                {"expression": wanted, "message": f"not for {group}: {what}"} for wanted, what in validations.items()
            ],
        }
        bound: Any = {"policy_name": metadata["name"], "validation_actions": ["Deny"]}
        about: Any = {"metadata": metadata, "opts": self.child}
        policies = k8s.admissionregistration.v1
        policies.ValidatingAdmissionPolicy(name, spec=spec, **about)
        policies.ValidatingAdmissionPolicyBinding(name, spec=bound, **about)
