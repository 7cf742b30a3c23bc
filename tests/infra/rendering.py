"""The programs rendered for a model of the tests, since a fork may have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from infra.render import PLATFORM, Rendered
from infra.render import render as render_program

Objects = list[dict[str, Any]]


def render(environment: str, changes: dict[str, Any] | None = None, preview: bool = False) -> Rendered:
    """The platform."""
    return render_program(environment, {"model": "churn"} | (changes or {}), preview, PLATFORM)


def write(environment: str, folder: Path, changes: dict[str, Any] | None = None) -> list[Path]:
    return write_objects(render(environment, changes).objects, folder)


def write_objects(objects: Objects, folder: Path) -> list[Path]:
    """One file an object."""
    files = []
    for thing in objects:
        files.append(folder / f"{thing['kind']}-{thing['metadata']['name']}.yaml".lower().replace(":", "-"))
        files[-1].write_text(yaml.safe_dump(thing, sort_keys=False))
    return files


def setting_paths(model: type[BaseModel]) -> set[str]:
    """`group.key` of every setting, as Pulumi.yaml declares them."""
    found = set()
    for name, field in model.model_fields.items():
        kind, key = field.annotation, field.alias or name
        group = isinstance(kind, type) and issubclass(kind, BaseModel)
        found |= {f"{key}.{path}" for path in setting_paths(kind)} if group else {key}
    return found
