"""Rendered resources of AWS as a plan of Terraform, which checkov reads. In other forms it reads no policy's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from infra.render import Resource

_MODULES = {"ec2": "", "rds": "db_"}  # where Terraform's name is not the module's
_NAMES = {
    "client_id_lists": "client_id_list", "cost_filters": "cost_filter", "notifications": "notification",
    "encryption_configurations": "encryption_configuration", "parameters": "parameter", "rules": "rule",
    "open_id_connect_provider": "openid_connect_provider",
}  # fmt: skip
_FREE = ("tags", "dimensions")  # keys of these are anybody's


def plan(resources: list[Resource]) -> dict[str, Any]:
    made = {resource.urn: resource for resource in resources}
    values, expressions = [], []
    for resource in resources:
        about = {"address": address(resource), "mode": "managed", "type": _kind(resource), "name": resource.name}
        before = [made[urn] for urn in resource.depends_on if urn in made]
        values.append(about | {"values": _block(resource.inputs)})
        expressions.append(about | {"expressions": _references(resource.inputs, before)})
    found = {"planned_values": values, "configuration": expressions}
    versions = {"format_version": "1.2", "terraform_version": "1.9.0"}
    return versions | {part: {"root_module": {"resources": each}} for part, each in found.items()}


def address(resource: Resource) -> str:
    return f"{_kind(resource)}.{resource.name}"


def _kind(resource: Resource) -> str:
    module, _, name = resource.type.removeprefix("aws:").partition("/")
    return f"aws_{_MODULES.get(module, f'{module}_')}{_snake(name.partition(':')[0])}"


def _snake(name: str) -> str:
    name = re.sub(r"(?=[A-Z])", "_", name).lower()
    return _NAMES.get(name, name)


def _block(values: dict[str, Any]) -> dict[str, Any]:
    return {_snake(key): value if key in _FREE else _value(value) for key, value in values.items()}


def _value(value: Any) -> Any:
    """A block is a list of one."""
    if isinstance(value, dict):
        return [_block(value)]
    return [_block(each) if isinstance(each, dict) else each for each in value] if isinstance(value, list) else value


def _references(values: dict[str, Any], before: list[Resource]) -> dict[str, Any]:
    """By argument, which of the resources made `before` it names: some checks look at what stands together."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            if inner := _references(value, before):
                found[_snake(key)] = [inner]
            continue
        values_here = value if isinstance(value, list) else [value]
        if names := [name for each in values_here for name in _named(each, key, before)]:
            found[_snake(key)] = {"references": names}
    return found


def _named(value: Any, key: str, before: list[Resource]) -> Iterator[str]:
    """Ids of mocks are not unique: what `key` is named for comes first."""
    for resource in sorted(before, key=lambda each: each.type.rpartition(":")[2].lower() not in key.lower()):
        called = resource.inputs.get("name") or resource.name
        arn = re.fullmatch(rf"arn:.*[:/]{re.escape(called)}", str(value))
        if attribute := "id" if value == resource.id else "name" if value == called else "arn" if arn else "":
            yield from (f"{address(resource)}.{attribute}", address(resource))
            return
