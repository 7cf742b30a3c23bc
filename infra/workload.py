"""What all workloads share: names, labels, and pods that hold "restricted", the strictest Pod Security Standard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
from pulumi_kubernetes.core.v1 import ContainerArgsDict, PodTemplateSpecArgsDict, ProbeArgsDict, VolumeArgsDict

NAME = "app.kubernetes.io/name"
OPTIONAL = {"pulumi.com/skipAwait": "true"}  # what serves no caller keeps no deployment waiting
USER = 65532  # of every image that is ours, and what others run as too


def labels(name: str, **more: str) -> dict[str, str]:
    return {NAME: name, "app.kubernetes.io/part-of": "mlops", **more}


def metadata(name: str, namespace: pulumi.Input[str], of: str | None = None, annotations: Mapping[str, str] | None = None) -> Any:
    return {
        "name": name,
        "namespace": namespace,
        "labels": labels(of or name),
        **({"annotations": dict(annotations)} if annotations else {}),
    }


def hashed(name: str, *content: Any) -> str:
    """A name that changes with the content: what uses it rolls, and what ran before keeps what it had."""
    return f"{name}-{hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]}"


def config_map(name: str, namespace: pulumi.Input[str], data: dict[str, str], opts: pulumi.ResourceOptions) -> str:
    """Returns the name under which a volume finds it."""
    full = hashed(name, data)
    k8s.core.v1.ConfigMap(full, metadata=metadata(full, namespace, name), data=data, immutable=True, opts=opts)
    return full


def service_account(name: str, namespace: pulumi.Input[str], opts: pulumi.ResourceOptions) -> k8s.core.v1.ServiceAccount:
    return k8s.core.v1.ServiceAccount(name, metadata=metadata(name, namespace), automount_service_account_token=False, opts=opts)


def service(
    name: str,
    namespace: pulumi.Input[str],
    ports: dict[str, int],
    opts: pulumi.ResourceOptions,
    headless: bool = False,
    node_port: int = 0,
    of: str | None = None,
) -> k8s.core.v1.Service:
    """`ports`: name → port. A headless one answers with the pods themselves."""
    listed = [{"name": port, "port": number, "target_port": number} for port, number in ports.items()]
    if node_port:
        listed[0]["node_port"] = node_port
    spec: Any = {"selector": {NAME: of or name}, "ports": listed, "type": "NodePort" if node_port else "ClusterIP"}
    return k8s.core.v1.Service(
        name, metadata=metadata(name, namespace, of), spec=spec | ({"cluster_ip": "None"} if headless else {}), opts=opts
    )


def env(values: Mapping[str, Any], secrets: Mapping[str, tuple[str, str]] | None = None) -> list[Any]:
    """Plain `values`, then `secrets`: name → (Secret, key)."""
    plain = [{"name": name, "value": value if isinstance(value, pulumi.Output) else str(value)} for name, value in values.items()]
    secret = [{"name": name, "value_from": {"secret_key_ref": {"name": of, "key": key}}} for name, (of, key) in (secrets or {}).items()]
    return [*plain, *secret]


def probe(path: str, port: int, **timing: int) -> ProbeArgsDict:
    return {"http_get": {"path": path, "port": port}, "timeout_seconds": 3, **timing}


def container(name: str, image: str, *, cpu: str, memory: str, mounts: Mapping[str, str] | None = None, **more: Any) -> ContainerArgsDict:
    """`cpu` is requested and may be exceeded, `memory` is requested and the limit; `mounts`: path → volume, writable if it
    is scratch, data or spool."""
    writable = ("scratch", "data", "spool")
    return {
        "name": name,
        "image": image,
        "image_pull_policy": "IfNotPresent",
        "resources": {
            "requests": {"cpu": cpu, "memory": memory, "ephemeral-storage": "64Mi"},
            "limits": {"memory": memory, "ephemeral-storage": "2Gi"},
        },
        "security_context": {
            "allow_privilege_escalation": False,
            "read_only_root_filesystem": True,
            "run_as_non_root": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volume_mounts": [
            {"name": v, "mount_path": path, **({} if v in writable else {"read_only": True})} for path, v in (mounts or {}).items()
        ],
        **more,
    }


def scratch(name: str = "scratch", size: str = "1Gi") -> VolumeArgsDict:
    return {"name": name, "empty_dir": {"size_limit": size}}


def files(name: str, config_map: str) -> VolumeArgsDict:
    return {"name": name, "config_map": {"name": config_map}}


def pod(
    name: str,
    containers: Sequence[ContainerArgsDict],
    volumes: Sequence[VolumeArgsDict] = (),
    pull_secret: str = "",
    user: int = USER,
    track: str = "stable",
    **more: Any,
) -> PodTemplateSpecArgsDict:
    """`track` tells a code canary from the rest; it is in selectors, which never change, so it is there from the first day."""
    return {
        "metadata": {"labels": labels(name, track=track)},
        "spec": {
            "service_account_name": name,
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
            "containers": list(containers),
            "volumes": list(volumes),
            **({"image_pull_secrets": [{"name": pull_secret}]} if pull_secret else {}),
            **more,
        },
    }


def selector(name: str, track: str = "stable") -> Any:
    return {"match_labels": {NAME: name, "track": track}}


def spread(name: str) -> list[Any]:
    """Over nodes and zones, as far as there are some."""
    return [
        {"max_skew": 1, "topology_key": key, "when_unsatisfiable": "ScheduleAnyway", "label_selector": {"match_labels": {NAME: name}}}
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def role(name: str, namespace: pulumi.Input[str], rules: Any, opts: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """What the workload `name` may do in its own namespace."""
    made = k8s.rbac.v1.Role(name, metadata=metadata(name, namespace), rules=rules, opts=opts)
    bound = k8s.rbac.v1.RoleBinding(
        name,
        metadata=metadata(name, namespace),
        role_ref={"api_group": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        subjects=[{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        opts=opts,
    )
    return [made, bound]


def stateful_set(
    name: str, namespace: pulumi.Input[str], template: PodTemplateSpecArgsDict, size: str, storage_class: str, opts: pulumi.ResourceOptions
) -> k8s.apps.v1.StatefulSet:
    """One replica, with the volume `data` of its own."""
    spec: Any = {
        "service_name": name,
        "replicas": 1,
        "selector": selector(name),
        "template": template,
        "volume_claim_templates": [_volume_claim("data", size, storage_class)],
    }
    return k8s.apps.v1.StatefulSet(name, metadata=metadata(name, namespace), spec=spec, opts=opts)


def _volume_claim(name: str, size: str, storage_class: str) -> Any:
    spec = {"access_modes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return {"metadata": {"name": name}, "spec": spec | ({"storage_class_name": storage_class} if storage_class else {})}


def job(template: Any, backoff: int = 6, seconds: int = 600) -> Any:
    """The spec of a Job whose pod is tried again as a whole."""
    template["spec"]["restart_policy"] = "Never"
    return {"backoff_limit": backoff, "active_deadline_seconds": seconds, "template": template}
