"""Swaps of the model under load: no request fails, and each answer is by the release that the log had in force just then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil

from mlops import promotion
from mlops.environment import Environment
from mlops.releases import Release
from tests import synthetic
from tests.load import Answer, Load
from tests.service import Service
from tests.service import environment as make_environment

BEHIND_SECONDS = 5.0  # a release is fetched, loaded in a sandbox, loaded here and warmed before it answers
ROLLBACK_SECONDS = 5.0
MEMORY_GROWTH = 0.10


def against_the_log(answers: list[Answer], log: list[Release]) -> dict[str, Any]:
    """Answers of another model than the log has for their revision; before it was written; older than one the same
    connection had; and the longest that a release in force was not yet the one that answered."""
    by_revision = {release.revision: release for release in log}
    foreign = ahead = backwards = 0
    behind = 0.0
    newest: dict[int, int] = {}
    for answer in sorted(answers, key=lambda answer: answer.at):
        release = by_revision.get(answer.revision)
        if release is None or release.champion != answer.model_version:
            foreign += 1
            continue
        ahead += release.at.timestamp() > answer.at
        backwards += answer.revision < newest.get(answer.thread, 0)
        newest[answer.thread] = max(answer.revision, newest.get(answer.thread, 0))
        if following := by_revision.get(answer.revision + 1):  # by then it was in force, and this answer not of it
            behind = max(behind, answer.sent - following.at.timestamp())
    return {"foreign": foreign, "ahead": ahead, "backwards": backwards, "behind_seconds": round(behind, 2)}


def swaps(service: Service, digests: list[str], count: int, per_second: float) -> dict[str, Any]:
    """Release the digests in turn while requests flow; they must have been released before."""
    assert service.process
    process, releases = psutil.Process(service.process.pid), service.environment.model(synthetic.MODEL).releases
    memory: list[float] = []
    first = len(releases.read())
    with Load(service, per_second) as load:
        for number in range(count):
            release = releases.append(digests[number % len(digests)], f"swap {number}")
            service.serves(release.revision)
            memory.append(process.memory_info().rss / 2**20)
        time.sleep(0.5)
    log = releases.read()
    settled = memory[min(20, count // 4) :]
    return {
        "swaps": len(log) - first,
        "requests": len(load.answers),
        "failed": len(load.failed),
        "revisions_seen": len({answer.revision for answer in load.good}),
        **against_the_log(load.good, log),
        "memory_mb": round(settled[-1], 1),
        "memory_growth": round(max(settled[-len(settled) // 4 :]) / settled[0] - 1, 3),
    }


def rollback(service: Service, per_second: float) -> dict[str, Any]:
    """From the start of the command to the last answer of the model that it took away."""
    model = service.environment.model(synthetic.MODEL)

    def logged() -> set[str]:
        return {key.rsplit("/", 1)[-1][:8] for key in model.store.keys(f"predictions/{model.name}")}

    with Load(service, per_second) as load:
        # Rollback goes to what was observed serving, so the log of the answers must have arrived.
        service.until(lambda: len(logged()) > 1, 60)
        started = time.time()
        back = promotion.rollback(model, "proof")
        commanded = time.time()
        service.serves(back.revision)
        time.sleep(0.5)
    old = [answer for answer in load.good if answer.revision < back.revision]
    return {
        "requests": len(load.answers),
        "failed": len(load.failed),
        "command_seconds": round(commanded - started, 2),
        "seconds": round(max(answer.at for answer in old) - started, 2),
        "answers_after": len(load.good) - len(old),
        **against_the_log(load.good, model.releases.read()),
    }


def two_releases(environment: Environment, service: Service, digests: list[str]) -> None:
    """Both served, and each answered somebody."""
    for digest in digests:
        service.serves(promotion.release(environment.model(synthetic.MODEL), digest, "proof").revision)
        service.predict(synthetic.request())


def prove(folder: Path) -> dict[str, Any]:
    environment = make_environment(folder)
    bundles = [synthetic.build(seed=1), synthetic.build(seed=2, learning_rate=0.2)]
    digests = [synthetic.publish(environment, bundle) for bundle in bundles]
    with Service(environment, synthetic.MODEL) as service:
        two_releases(environment, service, digests)
        many = swaps(service, digests, 200, 50)
    backs = []
    for number in range(5):
        again = make_environment(folder / f"rollback-{number}")
        digests = [synthetic.publish(again, bundle) for bundle in bundles]
        with Service(again, synthetic.MODEL, poll_seconds=2.0) as service:
            two_releases(again, service, digests)
            backs.append(rollback(service, 50))
    back = {
        name: max(found[name] for found in backs)
        for name in ("failed", "command_seconds", "seconds", "foreign", "ahead", "backwards")
    }
    faults = [f"{name} is {many[name]}" for name in ("failed", "foreign", "ahead", "backwards") if many[name]]
    faults += [
        f"rollback: {name} is {back[name]}" for name in ("failed", "foreign", "ahead", "backwards") if back[name]
    ]
    if many["behind_seconds"] > BEHIND_SECONDS:
        faults.append(f"an answer was {many['behind_seconds']} s behind the log")
    if many["memory_growth"] > MEMORY_GROWTH:
        faults.append(f"memory grew by {many['memory_growth']:.0%}")
    if many["revisions_seen"] < many["swaps"]:
        faults.append(f"only {many['revisions_seen']} of {many['swaps']} releases were seen in answers")
    if back["seconds"] > ROLLBACK_SECONDS:
        faults.append(f"rollback: the old model answered for {back['seconds']} s")
    return {"swap": many, "rollback": {"times": len(backs), **back}, "holds": not faults, "reason": "; ".join(faults)}
