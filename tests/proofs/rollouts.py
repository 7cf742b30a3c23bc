"""Bad challengers in front of callers, each of a kind and at each weight: refused or aborted, and nobody noticed."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mlops import promotion
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.errors import VerificationError
from mlops.releases import Release
from tests import planted, synthetic
from tests.control import Control
from tests.load import Answer, Load
from tests.service import Service, environment

WEIGHTS = (0.01, 0.05, 0.25, 0.5)
BACK_SECONDS, EXPOSED, DAYS = 30, 0.01, 28  # within so many event-days where outcomes alone can tell
_REFUSED = ("slow", "memory hog")  # by the sandbox: their operators are on no list
_BY_OUTCOMES = ("bad on one slice", "slowly degrading")
_A_DAY, _PER_SECOND, _MOST_SECONDS = 400, 120, 60
_BUDGET = 0.020
_START = datetime(2024, 6, 1, tzinfo=UTC)
_CONTRACT = Contract.model_validate(synthetic.contract_yaml(judge={"budget_ms": 1000 * _BUDGET}))


def prove(folder: Path, kinds: tuple[str, ...] = planted.KINDS, weights: tuple[float, ...] = WEIGHTS) -> dict[str, Any]:
    champion = synthetic.build(_CONTRACT, seed=3)
    shown = [kind for kind in kinds if kind not in _REFUSED]
    runs = [
        canary(folder / f"{kind} {weight}", champion, planted.plant(champion, kind), kind, weight)
        for kind in shown
        for weight in weights
    ]
    refused = [kind for kind in _REFUSED if kind in kinds and is_refused(folder / kind, champion, kind)]
    exposed = {}
    for weight in weights:
        same = [run for run in runs if run["weight"] == weight]
        exposed[f"{weight:g}"] = round(sum(run["exposed"] for run in same) / sum(run["rows"] for run in same), 4)
    # The middle one of each kind: on a busy machine a percentile of one canary says more of the machine.
    extra = {kind: float(np.median([run["extra_ms"] for run in runs if run["kind"] == kind])) for kind in shown}
    fast = [run["seconds"] for run in runs if run["kind"] not in _BY_OUTCOMES]
    bars = {
        "refused before any caller": set(refused) == set(kinds) & set(_REFUSED),
        "all aborted": all(run["aborted"] for run in runs),
        "no error": sum(run["errors"] for run in runs) == 0,
        f"exposure ≤ weight + {EXPOSED:.0%}": all(
            share <= float(weight) + EXPOSED for weight, share in exposed.items()
        ),
        "at most the budget": max(extra.values()) <= 1000 * _BUDGET,
        f"champion alone ≤ {BACK_SECONDS} s": max(fast, default=0) <= BACK_SECONDS,
        f"≤ {DAYS} event-days by outcomes": all(
            run["event_days"] <= DAYS for run in runs if run["kind"] in _BY_OUTCOMES
        ),
    }
    missed = [bar for bar, holds in bars.items() if not holds]
    tabled = {kind: {f"{run['weight']:g}": run["rows"] for run in runs if run["kind"] == kind} for kind in shown}
    return {
        "canaries": len(runs), "refused": refused, "aborted": sum(run["aborted"] for run in runs), "exposed": exposed, "rows_to_abort": tabled, "extra_ms": extra, "runs": runs,
        "slowest_seconds": max(fast, default=0), "holds": not missed, "reason": "; ".join(missed),
    }  # fmt: skip


def canary(folder: Path, champion: Bundle, bad: Bundle, kind: str, weight: float) -> dict[str, Any]:
    """The real app at its usual pace and the real controller; traffic until the champion answers alone again."""
    folder.mkdir(parents=True)
    here = environment(folder)
    model, digests = here.model(synthetic.MODEL), [synthetic.publish(here, bundle) for bundle in (champion, bad)]
    promotion.release(model, digests[0], "first")
    with Service(here, synthetic.MODEL, poll_seconds=2.0, segment_seconds=10.0) as service, controller(here):
        service.serves(1)
        release = promotion.release(model, digests[1], kind, mode="canary", weight=weight, breaking=True)
        service.serves(release.revision)
        traffic = by_days(service) if kind in _BY_OUTCOMES else at_a_rate(service)
        started = time.time()
        answers = list(_until_aborted(traffic, here))
        last = model.releases.read()[-1]
        uploaded = _first_upload(here, release)
    during = [answer for answer in answers if answer.revision == release.revision]
    mine = [answer for answer in during if answer.model_version == digests[1]]
    seconds = max((answer.at for answer in during), default=started) - uploaded
    return {
        "kind": kind, "weight": weight, "aborted": last.mode == "full" and last.champion == digests[0], "why": last.why[:200],
        "rows": _rows(during), "exposed": _rows(mine), "errors": sum(answer.status != 200 for answer in answers),
        "event_days": max((int(answer.row["day"]) for answer in during if "day" in answer.row), default=0) + 1,
        "seconds": round(seconds, 1), "extra_ms": _extra(answers, release),
    }  # fmt: skip


def is_refused(folder: Path, champion: Bundle, kind: str) -> bool:
    """Whether nobody can release it."""
    folder.mkdir(parents=True)
    here = environment(folder)
    first, bad = (synthetic.publish(here, bundle) for bundle in (champion, planted.plant(champion, kind)))
    promotion.release(here.model(synthetic.MODEL), first, "first")
    try:
        promotion.release(here.model(synthetic.MODEL), bad, kind, mode="canary", weight=0.5, breaking=True)
    except VerificationError:
        return True
    return False


def _rows(answers: list[Answer]) -> int:
    return sum(int(answer.row.get("rows", 1)) for answer in answers)


def _extra(answers: list[Answer], release: Release) -> float:
    """What the rollout adds to the 99th percentile of a caller's wait, in milliseconds."""
    during, after = (
        [a.at - a.sent for a in answers if (a.revision == release.revision) == in_rollout and "day" not in a.row]
        for in_rollout in (True, False)
    )
    if len(after) < 50:
        return 0.0
    return round(1000 * float(np.quantile(during, 0.99) - np.quantile(after, 0.99)), 1)


def _first_upload(here: Environment, release: Release) -> float:
    """Before the row that decided: the bar is held to more than it asks."""
    files = Path(here.bucket, "predictions").rglob(f"{release.revision:08d}-*.log")
    return min(file.stat().st_mtime for file in files)


@contextmanager
def controller(here: Environment) -> Generator[Control]:
    stop, running = threading.Event(), Control(here, synthetic.MODEL)
    thread = threading.Thread(target=running.run, args=[stop])
    thread.start()
    yield running
    stop.set()
    thread.join()


def _until_aborted(traffic: Iterator[list[Answer]], here: Environment) -> Iterator[Answer]:
    """Until the record that ends the rollout has been followed, and some more."""
    deadline, following, releases = time.monotonic() + _MOST_SECONDS, None, here.model(synthetic.MODEL).releases
    for answers in traffic:
        yield from answers
        if following is None and not releases.read()[-1].in_rollout:
            following = time.monotonic() + 4
        if time.monotonic() > (following or deadline):
            return


def at_a_rate(service: Service) -> Iterator[list[Answer]]:
    random = np.random.default_rng(os.getpid())
    rows = [_row(random, i, 0) for i in range(20_000)]
    seen = 0
    with Load(service, _PER_SECOND, threads=4, row=lambda number: rows[number % len(rows)]) as load:
        while True:
            time.sleep(0.2)
            answers = load.answers[seen:]
            seen += len(answers)
            yield answers


def _row(random: np.random.Generator, number: int, day: int) -> dict[str, Any]:
    at = _START + timedelta(days=day, seconds=number)
    return synthetic.request(
        size=round(float(random.normal()), 3), heat=round(float(random.normal() + day / 8), 2), color=str(random.choice(["red", "green", "blue", "grey"])),
        customer=f"c{number}-{day}", at=at.isoformat(),
    )  # fmt: skip


def by_days(service: Service) -> Iterator[list[Answer]]:
    """A day's rows in one request, their outcomes after it: it warms up a little every day."""
    random = np.random.default_rng(7)
    for day in range(10_000):
        rows = [_row(random, number, day) for number in range(_A_DAY)]
        sent = time.time()
        body = service.predict(*rows)
        chance = 1 / (1 + np.exp(-np.array([_signal(row) for row in rows])))
        known = (random.random(_A_DAY) < chance).astype(float)
        told = [
            {"id": each["id"], "value": value} for each, value in zip(body["predictions"], known.tolist(), strict=True)
        ]
        assert service.http.post("/outcomes", json={"outcomes": told}).status_code == 200
        versions = Counter(each.get("model_version", body["model_version"]) for each in body["predictions"])
        at, revision = time.time(), body["revision"]
        yield [Answer(0, sent, at, 200, {"rows": n, "day": day}, revision, version) for version, n in versions.items()]
        time.sleep(1.0)


def _signal(row: dict[str, Any]) -> float:
    """As `synthetic.frame` has it, less what no request knows."""
    size, heat = row["size"], row["heat"]
    return 1.2 * size + 0.4 * heat + 0.8 * abs(heat) + 0.7 * (row["color"] == "red") - 0.5 * row["member"] * size - 1.1
