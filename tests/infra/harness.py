"""The real program under mocks: what it would make, without the CLI, a provider or a cluster.

`python -m tests.infra.harness ENVIRONMENT` prints the Kubernetes objects as YAML.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pulumi.runtime import config, mocks, rpc, settings, stack

from mlops.environment import ROOT

PROJECT = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
UNKNOWN = "<unknown>"


@dataclass(frozen=True)
class Resource:
    type: str
    name: str
    urn: str
    parent: str
    provider: str
    protect: bool
    inputs: dict[str, Any]


@dataclass
class Rendered:
    resources: list[Resource] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Kubernetes objects, as they would be applied."""
        kinds = [r for r in self.resources if r.type.startswith("kubernetes:") and "apiVersion" in r.inputs]
        return [{key: value for key, value in r.inputs.items() if value is not None} for r in kinds]


class _Mocks(mocks.Mocks):
    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        return f"{args.name}-id", dict(args.inputs)

    def call(self, args: mocks.MockCallArgs) -> Any:
        return {}


class _Monitor(mocks.MockMonitor):
    def __init__(self) -> None:
        super().__init__(_Mocks())
        self.rendered = Rendered()

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 (gRPC's name)
        made = super().RegisterResource(request)
        inputs = _plain(rpc.deserialize_properties(request.object, keep_unknowns=True))
        self.rendered.resources.append(
            Resource(request.type, request.name, made.urn, request.parent, request.provider, request.protect, inputs)
        )
        return made

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802
        if "::pulumi:pulumi:Stack::" in request.urn:
            self.rendered.outputs = _plain(rpc.deserialize_properties(request.outputs, keep_unknowns=True))
        return super().RegisterResourceOutputs(request)


def _plain(value: Any) -> Any:
    if rpc.is_rpc_secret(value):
        return _plain(value["value"])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value).__name__ == "Unknown":
        return UNKNOWN
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def configuration(environment: str, changes: dict[str, Any] | None = None) -> dict[str, str]:
    """As the CLI gives it: the environment's values, `changes` (by path), and the defaults of Pulumi.yaml for the rest;
    groups as JSON, everything a string."""
    file = ROOT / PROJECT["stackConfigDir"] / f"Pulumi.{environment}.yaml"
    found: dict[str, Any] = yaml.safe_load(file.read_text())["config"] if file.exists() else {}
    for path, value in ({"model": "churn"} | (changes or {})).items():
        _put(found, path, value)
    for path, entry in PROJECT["config"].items():
        _put(found, path, entry["default"], keep=True)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def _put(values: dict[str, Any], path: str, value: Any, keep: bool = False) -> None:
    group, _, key = path.partition(".")
    where = values.setdefault(f"mlops:{group}", {}) if key else values
    name = key or f"mlops:{group}"
    if not (keep and name in where):
        where[name] = value


def render(environment: str, changes: dict[str, Any] | None = None, preview: bool = False) -> Rendered:
    """`preview`: outputs of resources are unknown, as before the first `up`."""

    def run() -> Rendered:
        monitor = _Monitor()
        settings.set_root_resource(None)  # ty: ignore[invalid-argument-type]
        settings.configure(
            mocks.MockSettings(
                monitor=monitor, engine=mocks.MockEngine(None), project=PROJECT["name"], stack=environment,
                monitor_features=set(monitor.GetDeploymentInfo(None).supportedFeatures), dry_run=preview, organization="organization",
                root_directory=str(ROOT), callbacks=None, outputs=set(), package_refs={}, base_providers_by_ref={},
            )
        )  # fmt: skip
        config.set_all_config(configuration(environment, changes))
        main, before, loop = ROOT / PROJECT["main"], os.getcwd(), asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        os.chdir(main)
        try:
            loop.run_until_complete(stack.run_in_stack(lambda: _program(main)))
        finally:
            os.chdir(before)
            loop.close()
            asyncio.set_event_loop(None)
        monitor.rendered.resources.sort(key=lambda resource: resource.urn)  # they register in any order
        return monitor.rendered

    return contextvars.copy_context().run(run)


def _program(main: Path) -> None:
    runpy.run_path(str(main), run_name="__main__")


def write(environment: str, folder: Path, changes: dict[str, Any] | None = None) -> list[Path]:
    return write_objects(render(environment, changes).objects, folder)


def write_objects(objects: list[dict[str, Any]], folder: Path) -> list[Path]:
    """One file an object."""
    files = []
    for thing in objects:
        files.append(folder / f"{thing['kind']}-{thing['metadata']['name']}.yaml".lower().replace(":", "-"))
        files[-1].write_text(yaml.safe_dump(thing, sort_keys=False))
    return files


if __name__ == "__main__":
    print(
        yaml.safe_dump_all(
            render(sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])).objects, sort_keys=False
        )
    )
