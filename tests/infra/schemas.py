"""Kubernetes' own schemas, strict and offline."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

VERSION = "1.34"
_FOLDER = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"


@cache
def _definitions() -> Registry:
    return Resource.from_contents(json.loads((_FOLDER / "_definitions.json").read_text())) @ Registry()


@cache
def _validator(kind: str, api_version: str) -> Any:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = json.loads((_FOLDER / f"{kind.lower()}-{group}.json").read_text())
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions())


def faults(thing: dict[str, Any]) -> list[str]:
    found = _validator(thing["kind"], thing["apiVersion"]).iter_errors(thing)
    return [f"{thing['kind']}/{thing['metadata']['name']} {'.'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in found]
