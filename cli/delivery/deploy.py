"""Bring a build to an environment, prove it there, and go back if it fails; or go back by hand."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import CalledProcessError

from obstore.exceptions import BaseError

from cli.delivery import locks
from cli.delivery.builds import SBOM, Build, attest, require
from cli.delivery.deployments import Deployment, DeploymentLog
from cli.delivery.git import is_ancestor
from cli.delivery.road import Road
from cli.delivery.targets import Target, target
from mlops.errors import UserError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    build: Build
    before: Build | None
    seconds: float
    proven: str


def deploy(road: Road, environment: str, build: Build, why: str, say: Say) -> Outcome:
    """Raises UserError if it is refused, or fails here; then what ran before runs again."""
    require(road, build, environment)
    log = DeploymentLog(road, environment)
    current = next(reversed(log.read()), None)
    _require_newer(road, environment, build, current)
    return _deploy(road, environment, build, current, log, why, say)


def rollback(road: Road, environment: str, to: str, why: str, say: Say) -> Outcome:
    """What differs from the build that it goes back to is withdrawn from everywhere: no later push brings it back."""
    found, log = previous(road, environment, to), DeploymentLog(road, environment)
    current = log.read()[-1]
    outcome = _deploy(road, environment, found.build, current, log, f"back: {why}", say)
    code = {name: each for name, each in current.build.artifacts.items() if not name.endswith(SBOM)}
    if differs := [name for name, each in code.items() if found.build.artifacts.get(name) != each]:
        attest(road, "withdrawn", current.build, environment, why, differs)
    return outcome


def previous(road: Road, environment: str, to: str) -> Deployment:
    """The newest deployment of another build that ran here and may run again, or that whose digest begins with `to`."""
    deployments, refused = DeploymentLog(road, environment).read(), ""
    if not deployments:
        raise UserError("rollback", environment, "nothing was deployed here yet")
    current = deployments[-1].build
    for each in reversed(deployments):
        if each.build.digest == current.digest or not each.build.digest.startswith(to):
            continue
        try:
            require(road, each.build, environment, back=True)
            return each
        except UserError as error:
            refused = refused or f"; {each.build.short}: {error}"
    raise UserError(
        "rollback", current.digest[:12], f"no other build that ran in {environment} can be deployed{refused}"
    )


def _deploy(
    road: Road, environment: str, build: Build, current: Deployment | None, log: DeploymentLog, why: str, say: Say
) -> Outcome:
    began, there = time.monotonic(), target(road, environment)
    try:
        there.up(build, say)
        proven = _prove(road, environment, there, say)
    except locks.HeldError:
        raise  # nothing was changed
    except (UserError, BaseError, CalledProcessError) as error:
        if current is None or current.build.digest == build.digest:
            raise
        say(f"failed: {error}; going back to {current.build.short}")
        there.up(current.build, say)
        raise UserError("deployment", build.short, f"failed: {error}; {current.build.short} runs again") from None
    log.append(build, why)
    attest(road, "passed", build, environment, proven)
    return Outcome(build, current.build if current else None, time.monotonic() - began, proven)


def _prove(road: Road, environment: str, there: Target, say: Say) -> str:
    """The golden rows of what serves, and where the road says so a replay."""
    say("smoke test")
    found = there.mlops("smoke")
    proven = (
        f"{found['rows']} golden rows, answered as expected by {found['digest'][:12]}"
        if found["rows"]
        else "ready, no model"
    )
    if (window := road.replay.get(environment)) and found["rows"]:
        say(f"replay {window}")
        replayed = there.mlops("replay", "--window", window, "--limit", "500")
        there.mlops("smoke")
        if (rollout := there.mlops("status")["release"]) and rollout["mode"] in ("shadow", "canary", "ab"):
            judged = there.mlops("rollout", "status")["verdict"]
            if judged["decision"] == "abort":
                raise UserError("judge", rollout["revision"], f"aborts the rollout: {'; '.join(judged['reasons'])}")
        proven += f"; {replayed['requests']} replayed requests, none failed"
    return proven


def _require_newer(road: Road, environment: str, build: Build, current: Deployment | None) -> None:
    """A run that was started again must not undo later ones; production follows environments/released instead."""
    if environment == road.last or current is None or build.commit == current.build.commit:
        return
    if is_ancestor(build.commit, current.build.commit):
        hint = f"is older than what runs in {environment}, {current.build.commit[:12]}; to go back: rollback.yml"
        raise UserError("commit", build.commit[:12], hint)
