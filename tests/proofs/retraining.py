"""A training that the platform starts by itself harms nothing: triggered a hundred times at once, failing, refused by the gate,
on five kinds of poisoned rows, killed at twenty moments, the champion serves on, the run is recorded and the alert's metric set.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from threading import Event as Flag
from typing import Any

import httpx
import polars as pl
import yaml
from prometheus_client import CollectorRegistry

from environments.local.platform import Platform
from mlops import promotion
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.retraining import Event, RetrainingLog
from monitoring.approver import Approver
from monitoring.loop import Loop
from tests import live_log, synthetic
from tests.live_log import Traffic
from tests.mlops.test_retraining import triggered
from tests.proofs.crashes import Place
from tests.synthetic import MODEL

KILLS, DAYS = 20, 200
_FIRST_DAYS = 45  # of the log
_COMMANDS = 4
# Nothing is due by itself, so that this file says what runs; a day of the log is pause enough.
_RULES = {"every_days": 0, "max_gap": 0.5, "cooldown_days": 1, "max_a_year": 1000}
_METRIC = "mlops_retraining_result"
_WHY = ("--why", "proof")


class Live:
    """A champion that serves a world which is not that of its training any more, and the log of it, day by day."""

    def __init__(self, place: Place, days: int = DAYS, served: str = ""):
        """`served`: the app's address, if there is one."""
        self.place, self.days, self.served = place, _FIRST_DAYS, served
        contract = live_log.contract_yaml(retraining=_RULES)
        rows = live_log.rows(days=days)
        self.rows = live_log.shifted(live_log.live(rows))
        known = rows.filter(pl.col("at") < self.rows["at"].min())
        self.folder = synthetic.write_model(place.models, known, contract).folder
        self.parameters(max_iter=20)
        champion = synthetic.build(Contract.model_validate(contract), known)
        promotion.release(place.model, synthetic.publish(place.environment, champion), "first")
        self.champion, self.before = champion.digest, place.model.releases.read()
        self.load = (self.folder / "data.py").read_text()

    def parameters(self, **found: Any) -> None:
        (self.folder / "parameters.yaml").write_text(yaml.safe_dump(found))

    def between(self, first: int, last: int) -> Traffic:
        start = synthetic.START + timedelta(live_log.KNOWN)
        days = (start + timedelta(first), start + timedelta(last))
        return Traffic(self.rows.filter(pl.col("at").is_between(*days, closed="left")))

    def begin(self) -> Traffic:
        """The log is empty; what is to be in it, of a day more than before: that is pause enough."""
        store = self.place.environment.store
        for key in [*store.keys(f"predictions/{MODEL}"), *store.keys(f"outcomes/{MODEL}")]:
            store.delete(key)
        self.days += 1
        return self.between(0, self.days)

    def next_day(self) -> None:
        self.between(self.days, self.days + 1).log(self.place.model)
        self.days += 1

    @property
    def events(self) -> list[Event]:
        return RetrainingLog(self.place.model).read()

    def look(self) -> str:
        """A controller's: the result that its metric shows; what passed the gate is released."""
        registry = CollectorRegistry()
        loop = Loop(self.place.model, registry, Flag())
        loop.retrain()
        Approver(self.place.model).release()
        shown = [
            each for each in ("failed", "refused", "passed") if registry.get_sample_value(_METRIC, {"result": each})
        ]
        return " ".join(shown)

    def retrain(self) -> tuple[int, str]:
        child = self.place.start("retrain", *_WHY)
        said = child.communicate()[0]
        return child.returncode, said

    def faults(self, result: str, digest: bool = False) -> Iterator[str]:
        """After a run that brought no model."""
        if (shown := self.look()) != result:
            yield f"the metric shows {shown}, not {result}"
        last = self.events[-1]
        if (last.event, last.digest is not None) != (result, digest):
            yield f"recorded as {last.event} {last.digest} ({last.why[:80]})"
        yield from self.harm()

    def harm(self) -> Iterator[str]:
        if self.place.model.releases.read() != self.before:
            yield "the release log has changed"
        if not (found := promotion.check(self.place.model, self.champion))["valid"]:
            yield f"the champion does not verify: {found['checks']}"
        if self.served and (reason := httpx.get(f"{self.served}/readyz", timeout=30).json()["reason"]):
            yield f"the app does not serve: {reason}"

    def withdraw(self) -> Iterator[str]:
        """After a run that passed: its model is the challenger until a person aborts that."""
        self.look()
        deadline = time.monotonic() + 60
        while not (newest := self.place.model.releases.read()[-1]).challenger and time.monotonic() < deadline:
            time.sleep(0.5)  # a controller may be at it
        if (newest.challenger, newest.champion) != (self.events[-1].digest, self.champion):
            yield f"after a run that passed the release log ends with the challenger {newest.challenger}"
        else:
            promotion.rollback(self.place.model, "the next one")
        self.before = self.place.model.releases.read()
        self.next_day()

    def succeeds(self) -> Iterator[str]:
        """A day later."""
        self.next_day()
        code, said = self.retrain()
        if code:
            yield f"the run after it ended with {code}: {said[-300:]}"
        else:
            yield from self.withdraw()


def killed(live: Live, kills: int) -> dict[str, Any]:
    """At moments spread from before a run begins until it has ended, as a run to its end took it."""
    live.begin().log(live.place.model)
    begun, whole = measured(live)
    faults, spread = list(live.withdraw()), whole - begun
    points: list[dict[str, Any]] = []
    while len(points) < kills:
        after = spread * (len(points) - 0.5) / (kills - 1) if points else -begun / 2
        ended = kill(live, after)
        if ended == "passed":  # the machine was quicker than when it was measured
            faults += live.withdraw()
            spread *= 0.9
            continue
        wrong = [*live.faults("failed"), *live.succeeds()] if ended == "killed" else list(live.harm())
        points.append({"seconds": round(begun + after, 1), "ended": ended, "faults": wrong})
    faults += [f"killed after {point['seconds']} s: {each}" for point in points for each in point["faults"]]
    seconds = {"seconds_begun": round(begun, 1), "seconds_whole": round(whole, 1)}
    return seconds | {"points": points, "ended": dict(Counter(point["ended"] for point in points)), "faults": faults}


def measured(live: Live) -> tuple[float, float]:
    """Seconds until a run is recorded as begun, and until it has ended."""
    started, number = time.monotonic(), len(live.events)
    child = live.place.start("retrain", *_WHY)
    while len(live.events) == number and child.poll() is None:
        time.sleep(0.05)
    begun = time.monotonic() - started
    output = child.communicate()
    whole = time.monotonic() - started
    assert child.returncode == 0, output
    return begun, whole


def kill(live: Live, after: float) -> str:
    """So many seconds after the run has begun, or, if negative, before; what became of it."""
    number, child = len(live.events), live.place.start("retrain", *_WHY)
    if after < 0:
        time.sleep(-after)
    else:
        while len(live.events) == number and child.poll() is None:
            time.sleep(0.02)
        time.sleep(after)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    last = live.events[number:][-1:]
    if not last:
        return "not begun"
    return "killed" if last[0].event in ("started", "failed") else last[0].event  # a controller may have looked


def poisoned(live: Live) -> dict[str, str]:
    """By kind of poison: '' if it was refused for its reason and harmed nothing, otherwise what was wrong."""
    found = {}
    for kind, (poison, reason) in live_log.POISON.items():
        traffic = live.begin()
        poison(traffic)
        traffic.log(live.place.model)
        code, said = live.retrain()
        faults = list(live.faults("refused"))
        faults += [f"exit code {code}: {said[-200:]}"] if code != 3 or reason not in live.events[-1].why else []
        found[kind] = "; ".join(faults)
    return found


def failing(live: Live) -> str:
    live.begin().log(live.place.model)
    (live.folder / "data.py").write_text("def load():\n    raise OSError('the warehouse is gone')\n")
    code, said = live.retrain()
    (live.folder / "data.py").write_text(live.load)
    return "; ".join([*live.faults("failed"), *([f"exit code {code}: {said[-200:]}"] if code != 2 else [])])


def refused(live: Live) -> str:
    live.begin().log(live.place.model)
    live.parameters(max_iter=1, learning_rate=0.01)
    code, said = live.retrain()
    live.parameters(max_iter=20)
    return "; ".join(
        [*live.faults("refused", digest=True), *([f"exit code {code}: {said[-200:]}"] if code != 3 else [])]
    )


def at_once(live: Live) -> dict[str, Any]:
    """A hundred triggers, in four processes of 25 threads; and four commands, each of which would train."""
    other, number = live.place.environment.model("triggers"), len(live.events)
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        told = [each for found in pool.map(triggered, [other] * 4, [25] * 4) for each in found]
    live.begin().log(live.place.model)
    children = [live.place.start("retrain", *_WHY) for _ in range(_COMMANDS)]
    codes = [child.communicate() and child.returncode for child in children]
    faults = list(live.withdraw())
    begun = sum(event.event == "started" for event in live.events[number:])
    return {
        "triggers": len(told),
        "runs": len(RetrainingLog(other).read()),
        "commands": len(codes),
        "commands_passed": codes.count(0),
        "commands_begun": begun,
        "faults": faults,
    }


@contextmanager
def embedded(folder: Path) -> Generator[Place]:
    """The platform on this machine, with its app and its controller."""
    told = {"MLOPS_HOME": str(folder / "home"), "MLOPS_MODELS": str(folder / "models"), "MLOPS_ANALYSIS_SECONDS": "20"}
    os.environ.update(told)
    synthetic.write_model(folder / "models", live_log.rows(days=10), live_log.contract_yaml(retraining=_RULES))
    with Platform(Environment.load("local"), MODEL) as platform:
        platform.wait_for_tracking()
        environment = platform.environment
        yield Place(environment, folder / "models", environment.tracking)


def prove(folder: Path, kills: int = KILLS) -> dict[str, Any]:
    with embedded(folder) as place:
        live = Live(place, served=place.environment.endpoint)
        found: dict[str, Any] = {"at_once": at_once(live), "failing": failing(live), "refused": refused(live)}
        found |= {"poisoned": poisoned(live), "killed": killed(live, kills)}
    once = {"triggers": 100, "runs": 1, "commands": _COMMANDS, "commands_passed": 1, "commands_begun": 1, "faults": []}
    faults = [f"at once: {found['at_once']}"] if found["at_once"] != once else []
    faults += [f"{name}: {found[name]}" for name in ("failing", "refused") if found[name]]
    faults += [f"{kind}: {fault}" for kind, fault in found["poisoned"].items() if fault]
    faults += found["killed"]["faults"]
    ended = {"not begun": 1, "killed": kills - 1}
    faults += [f"ended: {found['killed']['ended']}"] if found["killed"]["ended"] != ended else []
    return found | {"kills": len(found["killed"]["points"]), "holds": not faults, "reason": "; ".join(faults)[:2000]}
