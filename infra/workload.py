"""What all workloads share: names, labels, and pods that meet "restricted", the strictest Pod Security Standard."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.component import Component
from infra.connections import CA
from infra.platform import Platform
from infra.ports import PORTS
from infra.settings import Settings

NAME = "app.kubernetes.io/name"
Mounts = Mapping[str, str]  # path → volume
_USER = 65532  # of every image that is ours, and what others run as too
_WRITABLE = ("scratch", "data", "spool")


class KubernetesComponent(Component):
    settings: Settings

    @property
    def platform(self) -> Platform:
        return self.program

    def metadata(self, name: str | None = None, **more: str) -> Any:
        labels = {NAME: self.name, "app.kubernetes.io/part-of": "mlops", **more}
        return {"name": name or self.name, "namespace": self.platform.namespace, "labels": labels}

    def config_map(self, name: str, data: dict[str, str], **labels: str) -> Any:
        """Named by its content: what uses it rolls, and what ran before keeps what it had. Returns the volume source."""
        full = hashed(name, data)
        metadata = self.metadata(full) | {"labels": self.metadata()["labels"] | {NAME: name, **labels}}
        k8s.core.v1.ConfigMap(full, metadata=metadata, data=data, immutable=True, opts=self.child)
        return {"config_map": {"name": full}}


class Workload(KubernetesComponent):
    """Pods with an identity of their own. `pulumi up` waits only for what is in the request path: nothing else may hold
    up a deployment."""

    in_request_path = False
    image_is_ours = False
    user = _USER

    def prepare(self) -> None:
        self.volumes: list[Any] = []
        metadata: Any = {"metadata": self.metadata(), "automount_service_account_token": False}
        self.account = k8s.core.v1.ServiceAccount(self.name, **metadata, opts=self.child)

    def awaited(self, name: str | None = None) -> Any:
        """Metadata of an object whose readiness `pulumi up` would wait for."""
        metadata = self.metadata(name)
        return metadata if self.in_request_path else metadata | {"annotations": {"pulumi.com/skipAwait": "true"}}

    def service(self, port: str, name: str | None = None, headless: bool = False, node_port: int = 0) -> None:
        """`port`: its name. A headless Service resolves to the pods themselves."""
        name = name or self.name
        listed: dict[str, Any] = {"name": port, "port": PORTS[name], "target_port": PORTS[name]}
        spec: Any = {"selector": {NAME: self.name}, "type": "NodePort" if node_port else "ClusterIP"}
        spec["ports"] = [listed | ({"node_port": node_port} if node_port else {})]
        spec |= {"cluster_ip": "None"} if headless else {}
        k8s.core.v1.Service(name, metadata=self.awaited(name), spec=spec, opts=self.child)

    def volume(self, name: str, source: Any = None, size: str = "1Gi") -> None:
        """Without a `source`: an empty folder of that size."""
        self.volumes.append({"name": name, **(source or {"empty_dir": {"size_limit": size}})})

    def database_ca(self) -> Mounts:
        """The authority that signed the database's certificate, where the settings name it."""
        if not (name := self.settings.database.ca):
            return {}
        self.volume("database-ca", {"config_map": {"name": name}})
        return {CA: "database-ca"}

    def pod(self, container: Any, track: str = "stable", **more: Any) -> Any:
        """`track` tells a code canary from the rest; it is in selectors, which never change."""
        pull_secret, user = self.settings.images.pull_secret if self.image_is_ours else "", self.user
        return {
            "metadata": {"labels": self.metadata(track=track)["labels"]},
            "spec": {
                "service_account_name": self.name,
                "automount_service_account_token": False,
                "enable_service_links": False,
                "security_context": {
                    "run_as_non_root": True,
                    "run_as_user": user,
                    "run_as_group": user,
                    "fs_group": user,
                    "fs_group_change_policy": "OnRootMismatch",
                    "seccomp_profile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                "volumes": list(self.volumes),
                **({"image_pull_secrets": [{"name": pull_secret}]} if pull_secret else {}),
                **more,
            },
        }

    def deployment(self, template: Any, name: str | None = None, track: str = "", **spec: Any) -> None:
        """One replica, unless `spec` says otherwise; None: an autoscaler sets the number."""
        metadata, selector = self.awaited(name), self.selector(track or "stable")
        metadata["labels"] |= {"track": track} if track else {}
        spec = without_none({"replicas": 1, "selector": selector, "template": template} | spec)
        k8s.apps.v1.Deployment(name or self.name, metadata=metadata, spec=spec, opts=self.child)

    def stateful_set(self, template: Any, size: str) -> None:
        """One replica, with the volume `data` of its own."""
        claim: Any = {"access_modes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
        claim |= {"storage_class_name": self.settings.storage_class} if self.settings.storage_class else {}
        spec: Any = {
            "service_name": self.name,
            "replicas": 1,
            "selector": self.selector(),
            "template": template,
            "volume_claim_templates": [{"metadata": {"name": "data"}, "spec": claim}],
        }
        k8s.apps.v1.StatefulSet(self.name, metadata=self.awaited(), spec=spec, opts=self.child)

    def selector(self, track: str = "stable") -> Any:
        return {"match_labels": {NAME: self.name, "track": track}}

    def role(self, rules: Any) -> list[pulumi.Resource]:
        """What the workload may do in its own namespace."""
        subject: Any = {"kind": "ServiceAccount", "name": self.name, "namespace": self.platform.namespace}
        reference: Any = {"api_group": "rbac.authorization.k8s.io", "kind": "Role", "name": self.name}
        role = k8s.rbac.v1.Role(self.name, metadata=self.metadata(), rules=rules, opts=self.child)
        about: Any = {"role_ref": reference, "subjects": [subject], "opts": self.child}
        binding = k8s.rbac.v1.RoleBinding(self.name, metadata=self.metadata(), **about)
        return [role, binding]

    def disruption_budget(self) -> None:
        spec: Any = {"max_unavailable": 1, "selector": {"match_labels": {NAME: self.name}}}
        k8s.policy.v1.PodDisruptionBudget(self.name, metadata=self.metadata(), spec=spec, opts=self.child)

    def spread(self) -> list[Any]:
        """Over nodes and zones, as far as there are several."""
        label_selector = {"match_labels": {NAME: self.name}}
        common = {"max_skew": 1, "when_unsatisfiable": "ScheduleAnyway", "label_selector": label_selector}
        keys = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        return [common | {"topology_key": key} for key in keys]


def without_none(spec: dict[str, Any]) -> Any:
    return {key: value for key, value in spec.items() if value is not None}


def hashed(name: str, *content: Any) -> str:
    """A name that changes with the content."""
    return f"{name}-{hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]}"


def env(values: Mapping[str, Any], secrets: Mapping[str, tuple[str, str]] | None = None) -> list[Any]:
    """Plain `values`, then `secrets`: name → (Secret, key)."""
    plain = [{"name": name, "value": v if isinstance(v, pulumi.Output) else str(v)} for name, v in values.items()]
    references = {name: {"name": secret, "key": key} for name, (secret, key) in (secrets or {}).items()}
    return [*plain, *({"name": name, "value_from": {"secret_key_ref": ref}} for name, ref in references.items())]


def probe(path: str, port: int, period: int, failures: int | None = None) -> Any:
    """HTTP; `period` in seconds, `failures` until it counts (Kubernetes' default: 3)."""
    timing = {"period_seconds": period, "failure_threshold": failures}
    return without_none({"http_get": {"path": path, "port": port}, "timeout_seconds": 3, **timing})


def container(name: str, image: str, cpu: str, memory: str, mounts: Mounts | None = None, **more: Any) -> Any:
    """`cpu` is requested and may be exceeded, `memory` is request and limit."""

    def memory_and_disk(disk: str) -> dict[str, str]:
        return {"memory": memory, "ephemeral-storage": disk}

    return {
        "name": name,
        "image": image,
        "image_pull_policy": "IfNotPresent",
        "resources": {"requests": {"cpu": cpu, **memory_and_disk("64Mi")}, "limits": memory_and_disk("2Gi")},
        "security_context": {
            "allow_privilege_escalation": False,
            "read_only_root_filesystem": True,
            "run_as_non_root": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volume_mounts": [
            {"name": volume, "mount_path": path, **({} if volume in _WRITABLE else {"read_only": True})}
            for path, volume in (mounts or {}).items()
        ],
        **more,
    }


def port(name: str, number: int) -> Any:
    return {"name": name, "container_port": number}


def job(template: Any, backoff: int = 6, seconds: int = 600) -> Any:
    """The spec of a Job whose pod is retried as a whole."""
    template["spec"]["restart_policy"] = "Never"
    return {"backoff_limit": backoff, "active_deadline_seconds": seconds, "template": template}
