"""A Pulumi program under mocks: what it would make, without the CLI, a provider or an account.

`python -m infra.render [aws/|account/]STACK` prints it as YAML: of the platform its Kubernetes objects.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import runpy
import sys
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from pulumi.runtime import config, mocks, rpc, settings, stack

from infra import images
from mlops.environment import ROOT

UNKNOWN = "<unknown>"
_UNRELEASED = {f"images.{target}": f"example.com/mlops-{target}@sha256:{'0' * 64}" for target in images.TARGETS}
Changes = dict[str, Any]


@dataclass(frozen=True)
class Project:
    """A folder with a `Pulumi.yaml`, relative to the repository's root."""

    folder: str

    @cached_property
    def declared(self) -> dict[str, Any]:
        return yaml.safe_load((ROOT / self.folder / "Pulumi.yaml").read_text("utf-8"))

    @property
    def name(self) -> str:
        return self.declared["name"]

    @property
    def main(self) -> Path:
        return ROOT / self.folder / self.declared.get("main", "")

    @property
    def stacks(self) -> Path:
        return Path(os.path.normpath(ROOT / self.folder / self.declared["stackConfigDir"]))

    def file(self, stack: str) -> Path:
        return self.stacks / f"Pulumi.{stack}.yaml"

    def configuration(self, stack: str, changes: Changes | None = None) -> dict[str, str]:
        """As the CLI gives it: the stack's values, `changes` (by path), and the defaults of Pulumi.yaml for the rest;
        groups as JSON, everything a string."""
        file = self.file(stack)
        found: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))["config"] if file.exists() else {}
        for path, value in (changes or {}).items():
            self._put(found, path, value)
        for path, entry in self.declared["config"].items():
            if "default" in entry:
                self._put(found, path, entry["default"], keep=True)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}

    def settings(self, stack: str) -> dict[str, Any]:
        """The same by name, groups as they are."""
        found = {key.removeprefix(f"{self.name}:"): value for key, value in self.configuration(stack).items()}
        return {key: json.loads(value) if value.startswith("{") else value for key, value in found.items()}

    def _put(self, values: dict[str, Any], path: str, value: Any, keep: bool = False) -> None:
        group, _, key = path.partition(".")
        where = values.setdefault(f"{self.name}:{group}", {}) if key else values
        name = key or f"{self.name}:{group}"
        if not (keep and name in where):
            where[name] = value


PLATFORM, AWS, ACCOUNT = (Project(folder) for folder in (".", "infra/aws", "infra/account"))


@dataclass(frozen=True)
class Resource:
    type: str
    name: str
    urn: str
    id: str
    parent: str
    provider: str
    protect: bool
    depends_on: list[str]
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

    @property
    def of_aws(self) -> list[Resource]:
        return [resource for resource in self.resources if resource.type.startswith("aws:")]


def render(stack: str, changes: Changes | None = None, preview: bool = False, project: Project = PLATFORM) -> Rendered:
    """`preview`: outputs of resources are unknown, as before the first `up`."""
    return contextvars.copy_context().run(_render, project, stack, changes, preview)


def _render(project: Project, name: str, changes: Changes | None, preview: bool) -> Rendered:
    nothing_released = _UNRELEASED if project == PLATFORM and not images.running(name) else {}
    values = project.configuration(name, nothing_released | (changes or {}))
    monitor = _Monitor(values, _referenced(project, name, values))
    settings.set_root_resource(None)  # ty: ignore[invalid-argument-type]
    settings.configure(
        mocks.MockSettings(
            monitor=monitor, engine=mocks.MockEngine(None), project=project.name, stack=name,
            monitor_features=set(monitor.GetDeploymentInfo(None).supportedFeatures), dry_run=preview, organization="organization",
            root_directory=str(ROOT), callbacks=None, outputs=set(), package_refs={}, base_providers_by_ref={},
        )
    )  # fmt: skip
    config.set_all_config(values)
    before, loop = os.getcwd(), asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    os.chdir(project.main)
    try:
        loop.run_until_complete(stack.run_in_stack(lambda: _program(project.main)))
    finally:
        os.chdir(before)
        loop.close()
        asyncio.set_event_loop(None)
    monitor.rendered.resources.sort(key=lambda resource: resource.urn)  # they register in any order
    return monitor.rendered


def _program(main: Path) -> None:
    runpy.run_path(str(main), run_name="__main__")


def _referenced(project: Project, stack: str, values: dict[str, str]) -> dict[str, Any]:
    """What the stacks of other programs that this one reads would export."""
    if project == AWS:
        return _exported(ACCOUNT, values["mlops-aws:accountStack"])
    return _exported(AWS, stack) if "eks" in values.get("mlops:cluster", "") else {}


@cache
def _exported(project: Project, stack: str) -> dict[str, Any]:
    missing = {} if project.file(stack).exists() else {"account": "0" * 12}
    if missing and project == AWS:
        missing["cluster.admins"] = f"arn:aws:iam::{'0' * 12}:role/admin"
        missing["iam.boundary"] = f"arn:aws:iam::{'0' * 12}:policy/mlops/mlops-boundary"
        missing["keys.approval"] = f"arn:aws:kms:us-east-1:{'0' * 12}:key/approval"
    if project == ACCOUNT:
        missing["github.repository"] = "acme/ml"
    return {f"organization/{project.name}/{stack}": render(stack, missing, project=project).outputs}


class _Mocks(mocks.Mocks):
    def __init__(self, values: dict[str, str], referenced: dict[str, Any]):
        self._referenced = referenced
        found = {key.rpartition(":")[2]: value for key, value in values.items()}
        self._account, self._region = found.get("account", ""), found.get("region", "")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        made = dict(args.inputs)
        if args.typ == "pulumi:pulumi:StackReference":
            return made["name"], made | {"outputs": self._referenced[made["name"]], "secretOutputNames": []}
        if args.typ.startswith("aws:"):
            return self._of_aws(args.typ, args.name, made)
        return f"{args.name}-id", made

    def _of_aws(self, kind: str, name: str, made: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """With the outputs that others ask for, in the form that AWS gives them."""
        module, short = kind.split(":")[1].partition("/")[0], kind.rpartition(":")[2]
        called = made.get("name") or made.get("bucket") or made.get("identifier") or name
        path = f"{short.lower()}{made.get('path', '/')}{called}"
        region = "" if module in ("iam", "s3") else self._region
        account = "" if module == "s3" else self._account
        arn = f"arn:aws{'-cn' if self._region.startswith('cn-') else ''}"
        made.setdefault("arn", f"{arn}:{module}:{region}:{account}:{called if module in ('s3', 'sns') else path}")
        if short == "Key":
            made["keyId"], made["arn"] = name, f"{arn}:kms:{region}:{account}:key/{name}"
        if short == "LogGroup":
            made["arn"] = f"{arn}:logs:{region}:{account}:log-group:{called}"
        return f"{name}-id" if module != "s3" else str(made.get("bucket", called)), made | _MADE.get(short, {})

    def call(self, args: mocks.MockCallArgs) -> Any:
        if args.token.endswith(":getAvailabilityZones"):
            return {"names": [f"{self._region}{zone}" for zone in "abc"]}
        if args.token.endswith(":getCluster"):
            arn = f"arn:aws:eks:{self._region}:{self._account}:cluster/{args.args['name']}"
            return _CLUSTER | {"arn": arn, "certificateAuthorities": [_CLUSTER["certificateAuthority"]]}
        return {}


_CLUSTER: dict[str, Any] = {
    "endpoint": "https://0123456789ABCDEF.gr7.us-east-1.eks.amazonaws.com",
    "certificateAuthority": {"data": "Q0E="},
    "vpcConfig": {"clusterSecurityGroupId": "sg-0123456789abcdef0"},
}
_MADE: dict[str, dict[str, Any]] = {
    "Cluster": _CLUSTER,
    "Instance": {
        "address": "mlops.abcdefghijkl.us-east-1.rds.amazonaws.com",
        "masterUserSecrets": [{"secretArn": "arn:aws:secretsmanager:us-east-1:000000000000:secret:rds!db-1-abcdef"}],
    },
    "Repository": {"repositoryUrl": "000000000000.dkr.ecr.us-east-1.amazonaws.com/mlops"},
}


class _Monitor(mocks.MockMonitor):
    def __init__(self, values: dict[str, str], referenced: dict[str, Any]) -> None:
        super().__init__(_Mocks(values, referenced))
        self.rendered = Rendered()

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 (gRPC's name)
        made = super().RegisterResource(request)
        inputs = _plain(rpc.deserialize_properties(request.object, keep_unknowns=True))
        about = (request.type, request.name, made.urn, made.id, request.parent, request.provider, request.protect)
        self.rendered.resources.append(Resource(*about, sorted(request.dependencies), inputs))
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


def main(stack: str, *changes: str) -> None:
    folder, _, name = stack.rpartition("/")
    project = {"": PLATFORM, "aws": AWS, "account": ACCOUNT}[folder]
    rendered = render(name, dict(change.split("=", 1) for change in changes), project=project)
    found = rendered.objects or [{"type": r.type, "name": r.name, **r.inputs} for r in rendered.of_aws]
    print(yaml.safe_dump_all(found, sort_keys=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
