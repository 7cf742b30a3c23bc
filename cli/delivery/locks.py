"""The lock of Pulumi's state, which a killed `up` leaves behind. It is removed only where its owner is known to be dead."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from cli.delivery.github import GitHub
from cli.delivery.pulumi import pulumi
from cli.delivery.road import Road
from mlops.errors import UserError
from mlops.processes import exists
from mlops.store import Store


class HeldError(UserError):
    """Somebody else changes that stack."""


class Lease:
    """Which run deploys to an environment: written before `up`; deleted after it, unless Pulumi was killed."""

    def __init__(self, road: Road, environment: str):
        self._bucket, self._key = road.bucket, f"running/{environment}.json"

    def begin(self) -> None:
        run = {"run": os.environ.get("GITHUB_RUN_ID"), "attempt": os.environ.get("GITHUB_RUN_ATTEMPT", "1")}
        about = run | {"host": socket.gethostname(), "at": datetime.now(UTC).isoformat()}
        self._bucket.put(self._key, json.dumps(about).encode())

    def end(self) -> None:
        self._bucket.delete(self._key)

    def owner(self) -> dict[str, Any]:
        return json.loads(self._bucket.get(self._key, 4096) or b"{}")


def recover(road: Road, stack: str, folder: Path, say: Callable[[str], None]) -> None:
    """`stack`: as `environments/pulumi` takes it. Raises UserError if somebody else holds the lock."""
    for lock, dead in held(road, stack, folder):
        if not dead:
            who = f"{lock.get('username')}@{lock.get('hostname')} since {lock.get('timestamp')}"
            hint = f"holds the lock and may be alive; if it is not: environments/pulumi {stack} cancel --yes"
            raise HeldError("state", stack, f"{who} {hint}")
        say(f"the run that locked the state of {stack} is over: removing its lock")
        pulumi(stack, "cancel", "--yes", folder=folder).check_returncode()


def held(road: Road, stack: str, folder: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """The locks of a stack's state, and whether their owners are known to be dead."""
    environment, where = stack.rpartition("/")[2], pulumi(stack, "backend", folder=folder).stdout.strip()
    if not where.startswith(("s3://", "file://")):
        return  # Pulumi's own service knows who is alive
    program = "infra/aws" if stack.startswith("aws/") else "."
    name = yaml.safe_load((folder / program / "Pulumi.yaml").read_text("utf-8"))["name"]
    store = Store(where.partition("?")[0])
    for key in store.keys(f".pulumi/locks/organization/{name}/{environment}"):
        lock = json.loads(store.get(key, 64 * 1024) or b"{}")
        if lock:
            yield lock, _is_dead(lock, Lease(road, environment).owner())


def _is_dead(lock: dict[str, Any], owner: dict[str, Any]) -> bool:
    if not os.environ.get("GITHUB_ACTIONS"):  # there another machine can have the same name
        return lock.get("hostname") == socket.gethostname() and not exists(int(lock["pid"]))
    if not owner.get("run") or lock.get("hostname") != owner["host"]:
        return False
    began, locked = (datetime.fromisoformat(each) for each in (owner["at"], lock["timestamp"]))
    return locked >= began and GitHub().run(owner["run"], owner["attempt"])["status"] == "completed"
