"""Kubernetes' own schemas, strict and offline."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

VERSION = "1.34"
_FOLDER = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"

_KINDS = (
    "clusterrole-rbac-v1", "clusterrolebinding-rbac-v1", "configmap-v1", "cronjob-batch-v1",
    "deployment-apps-v1", "horizontalpodautoscaler-autoscaling-v2", "ingress-networking-v1", "ingressclass-networking-v1",
    "job-batch-v1", "namespace-v1", "networkpolicy-networking-v1", "poddisruptionbudget-policy-v1", "role-rbac-v1",
    "rolebinding-rbac-v1", "service-v1", "serviceaccount-v1", "statefulset-apps-v1", "storageclass-storage-v1",
    "validatingadmissionpolicy-admissionregistration-v1", "validatingadmissionpolicybinding-admissionregistration-v1",
)  # fmt: skip


@cache
def _definitions() -> Registry:
    return Resource.from_contents(json.loads((_FOLDER / "_definitions.json").read_text())) @ Registry()


@cache
def _validator(kind: str, api_version: str) -> Any:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = json.loads((_FOLDER / f"{kind.lower()}-{group}.json").read_text())
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions())


def standalone(folder: Path) -> str:
    """The schemas as files that refer to no other; returns where kubeconform finds them."""
    folder.mkdir()
    definitions = (_FOLDER / "_definitions.json").read_text().replace("/api/_definitions.json#", "#")
    for kind in _KINDS:
        schema = json.loads((_FOLDER / f"{kind}.json").read_text().replace("/api/_definitions.json#", "#"))
        schema.pop("$id")
        (folder / f"{kind}.json").write_text(json.dumps(schema | {"$defs": json.loads(definitions)["$defs"]}))
    return f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


def faults(thing: dict[str, Any]) -> list[str]:
    found = _validator(thing["kind"], thing["apiVersion"]).iter_errors(thing)
    return [
        f"{thing['kind']}/{thing['metadata']['name']} {'.'.join(map(str, e.absolute_path))}: {e.message[:200]}"
        for e in found
    ]
