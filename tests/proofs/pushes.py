"""Ten pushes at once are delivered in order and the last one is live; a run killed at any step of `up` is recovered from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.delivery.forge import Forge
from tests.delivery.fork import STAGES, Fork
from tests.delivery.test_locks import edit, killed_at, locks, next_one

PUSHES, STEPS = 10, 20


def prove(folder: Path) -> dict[str, Any]:
    with Forge(folder / "forge") as forge:
        fork = Fork(folder / "fork", forge).on_clusters()
        forge.variables["MLOPS_ENVIRONMENTS"] = json.dumps(STAGES)
        fork.commit("made from the template")
        forge.push(fork.work)
        at_once, killed = pushes(fork), kills(fork)
        problems = len(forge.problems)
    holds = (
        at_once["succeeded"] == at_once["deployed_in_order"] == PUSHES and at_once["last_is_live"]
        and at_once["open_pull_requests"] == 1 and at_once["it_proposes_the_last"] and problems == 0
        and killed["recovered"] == killed["locked"] == STEPS and killed["complete"] == STEPS
    )  # fmt: skip
    return {"at_once": at_once, "killed": killed, "refused_requests": problems, "holds": holds}


def pushes(fork: Fork) -> dict[str, Any]:
    commits = []
    for number in range(PUSHES):
        edit(fork, f"push {number}")
        commits.append(fork.head)
        fork.forge.push(fork.work, wait=False)
    fork.forge.wait(1200)
    runs = fork.forge.runs[-PUSHES:]
    deployed = [each["build"]["commit"] for each in fork.deployments("staging")][-PUSHES:]
    opened = [pull for pull in fork.forge.pulls.values() if pull["state"] == "open"]
    return {
        "pushes": PUSHES, "succeeded": sum(run.conclusion == "success" for run in runs),
        "deployed_in_order": sum(a == b for a, b in zip(deployed, commits, strict=True)),
        "last_is_live": fork.deployments("dev")[-1]["build"]["commit"] == commits[-1],
        "open_pull_requests": len(opened), "it_proposes_the_last": commits[-1][:12] in opened[0]["title"],
        "seconds": round(sum(run.seconds for run in runs)),
    }  # fmt: skip


def kills(fork: Fork) -> dict[str, Any]:
    locked = recovered = complete = 0
    state = fork.folder / "pulumi" / ".pulumi" / "stacks" / "mlops" / "dev.json"
    for step in range(STEPS):
        killed_at(fork, step)
        locked += len(locks(fork)) == 1
        run = next_one(fork, f"after step {step}")
        recovered += run.conclusion == "success" and locks(fork) == []
        complete += len(json.loads(state.read_text())) == 20
    return {"steps": STEPS, "locked": locked, "recovered": recovered, "complete": complete}
