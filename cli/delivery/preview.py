"""What a change does to every environment: its programs rendered from before and after it, and compared."""

import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from cli.delivery.pulumi import pulumi
from infra.render import ACCOUNT, AWS, PLATFORM
from mlops.environment import ROOT

Dollars = Annotated[float, Field(ge=0, le=10**9)]  # a month
Action = Literal["replace", "delete", "create", "update"]
ACTIONS: tuple[Action, ...] = ("replace", "delete", "create", "update")  # the first ones first
_MAX_DIFF = 20_000
# Changing these is not possible in place: https://kubernetes.io/docs/concepts/workloads and the providers' documentation.
_FIXED = {
    "Deployment": ("spec.selector",), "StatefulSet": ("spec.selector", "spec.serviceName", "spec.volumeClaimTemplates"),
    "Job": ("spec.template", "spec.selector"), "PersistentVolumeClaim": ("spec.storageClassName", "spec.accessModes"),
    "RoleBinding": ("roleRef",), "ClusterRoleBinding": ("roleRef",), "Service": ("spec.clusterIP",),
    "aws:ec2/vpc:Vpc": ("cidrBlock",), "aws:ec2/subnet:Subnet": ("cidrBlock", "availabilityZone"),
    "aws:rds/instance:Instance": ("identifier", "engine", "username", "kmsKeyId", "dbSubnetGroupName"),
    "aws:eks/cluster:Cluster": ("name", "roleArn"), "aws:s3/bucket:Bucket": ("bucket",), "aws:kms/key:Key": ("keyUsage",),
}  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Change(_Model):
    action: Action
    object: Annotated[str, Field(max_length=300)]
    diff: Annotated[str, Field(max_length=_MAX_DIFF + 100)] = ""


class Stack(_Model):
    name: Annotated[str, Field(max_length=100)]
    changes: Annotated[list[Change], Field(max_length=2000)] = []
    dollars: Dollars | None = None
    dollars_before: Dollars | None = None
    problem: Annotated[str, Field(max_length=2000)] = ""


class Live(_Model):
    """What `pulumi preview` found: action → how many."""

    name: Annotated[str, Field(max_length=100)]
    counts: Annotated[
        dict[Annotated[str, Field(max_length=30)], Annotated[int, Field(ge=0, le=10**6)]], Field(max_length=50)
    ] = {}
    problem: Annotated[str, Field(max_length=2000)] = ""


class Gate(_Model):
    model: Annotated[str, Field(max_length=100)]
    decision: Annotated[str, Field(max_length=30)]
    reasons: Annotated[list[Annotated[str, Field(max_length=2000)]], Field(max_length=100)] = []
    metrics: Annotated[
        dict[Annotated[str, Field(max_length=100)], tuple[float | None, float | None]], Field(max_length=100)
    ] = {}  # before, after


class Preview(_Model):
    """Everything that a comment says of a change. It is written where the change's own code runs, so nothing in it is
    trusted."""

    stacks: Annotated[list[Stack], Field(max_length=100)] = []
    live: Annotated[list[Live], Field(max_length=100)] = []
    gates: Annotated[list[Gate], Field(max_length=20)] = []


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stay lines."""


_Dumper.add_representer(
    str, lambda to, value: to.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)
)


def stacks(root: Path = ROOT) -> Iterator[str]:
    """As `environments/pulumi` takes them."""
    for project, folder in ((PLATFORM, ""), (AWS, "aws/"), (ACCOUNT, "account/")):
        for file in sorted((root / project.stacks.relative_to(ROOT)).glob("Pulumi.*.yaml")):
            yield folder + file.name.removeprefix("Pulumi.").removesuffix(".yaml")


def compare(before: Path, say: Callable[[str], None]) -> list[Stack]:
    """`before`: a folder with the commit that the change starts from."""
    return [_stack(name, before, say) for name in dict.fromkeys([*stacks(), *stacks(before)])]


def _stack(name: str, before: Path, say: Callable[[str], None]) -> Stack:
    say(f"render {name}")
    try:
        now, then = _rendered(ROOT, name), _rendered(before, name)
    except ValueError as error:
        return Stack(name=name, problem=str(error))
    stack = Stack(name=name, changes=sorted(changes(then, now), key=lambda each: ACTIONS.index(each.action)))
    if name.startswith("aws/"):
        stack.dollars, stack.dollars_before = (_dollars(folder, name.removeprefix("aws/")) for folder in (ROOT, before))
    return stack


def changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Iterator[Change]:
    then, now = ({_key(each): each for each in objects} for objects in (before, after))
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if old == new:
            continue
        action: Action = "create" if old is None else "delete" if new is None else "update"
        # With another name it is another object, made beside the old one.
        if old and new and _at(old, "metadata.name") == _at(new, "metadata.name"):
            fixed = any(_at(old, path) != _at(new, path) for path in _FIXED.get(key[0], ()))
            action = "replace" if fixed else action
        yield Change(action=action, object="/".join(filter(None, key))[:300], diff=_diff(old, new))


def _key(each: dict[str, Any]) -> tuple[str, ...]:
    """Kind, namespace, name. Names that end in a hash of the content (`hashed`) are one object that changed."""
    if "kind" not in each:
        return each["type"], each["name"]
    about = each["metadata"]
    return each["kind"], about.get("namespace", ""), re.sub(r"-[0-9a-f]{10}$", "", about["name"])


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _diff(old: Any, new: Any) -> str:
    before, after = [
        yaml.dump(each, Dumper=_Dumper, allow_unicode=True, width=1000).splitlines() if each else []
        for each in (old, new)
    ]
    lines = "\n".join(list(difflib.unified_diff(before, after, lineterm="", n=1))[2:])
    return lines if len(lines) <= _MAX_DIFF else f"{lines[:_MAX_DIFF]}\n… and more"


def _rendered(folder: Path, stack: str) -> list[dict[str, Any]]:
    kind, _, name = stack.rpartition("/")
    if not (folder / "environments" / kind / f"Pulumi.{name}.yaml").exists():
        return []
    done = _python(folder, "infra.render", stack)
    if done.returncode:
        raise ValueError(
            f"{'this branch' if folder == ROOT else 'main'} cannot be rendered: {done.stderr.strip()[-1500:]}"
        )
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def _dollars(folder: Path, environment: str) -> float | None:
    done = _python(folder, "cli", "--env", environment, "--json", "cost")
    return json.loads(done.stdout)["total"] if done.returncode == 0 else None


def _python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=env, capture_output=True, text=True)


def live(stack: str) -> Live:
    """Against what is there, by `pulumi preview`; it changes nothing."""
    done = pulumi(stack, "preview", "--json", "--non-interactive")
    try:
        steps = {} if done.returncode else json.loads(done.stdout)["changeSummary"]
    except (ValueError, KeyError, TypeError):
        steps = {}
    if not steps:
        return Live(name=stack, problem=(done.stderr or done.stdout).strip()[-1500:] or f"exit code {done.returncode}")
    return Live(name=stack, counts={action: count for action, count in steps.items() if action != "same"})
