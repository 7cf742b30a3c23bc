"""The loop that keeps an environment in order: judges the challenger and takes it a step on, or back; compacts the log, mirrors
the release log into MLflow, watches what it depends on.

Two of them do no harm, and one that was killed goes on where it was: every step looks at what is there.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from mlops import door, releases, replicas, trials
from mlops.contract import Contract
from mlops.environment import Environment, only_model
from mlops.errors import Fault
from mlops.journal import Overtaken
from mlops.releases import Release
from mlops.statements import Statement, statements
from mlops.tracking import Tracking, reachable
from monitoring.compact import compact, waiting
from monitoring.evidence import Evidence
from monitoring.experiment import evidence_for
from monitoring.frames import KINDS
from monitoring.judge import Verdict, judge

log = logging.getLogger("controller")
_PORT = 9100
_TICK_SECONDS = 2.0
_URGENT = "judge"


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.up = Gauge("mlops_dependency_up", "Whether it answers: tracking, database, bucket", ["dependency"], registry=registry)
        self.seconds = Gauge("mlops_controller_step_seconds", "How long the step took last", ["step"], registry=registry)
        self.success = Gauge("mlops_controller_last_success_timestamp_seconds", "When the step last went well", ["step"], registry=registry)
        self.failures = Counter("mlops_controller_failures", "Steps that failed", ["step"], registry=registry)
        self.compacted = Counter("mlops_compacted_rows", "Rows of the log made Parquet", ["kind"], registry=registry)
        self.waiting = Gauge("mlops_segments_waiting", "Segments of closed hours that are not Parquet yet", ["kind"], registry=registry)
        self.trained = Gauge("mlops_last_training_timestamp_seconds", "When the gate last judged a model", ["model"], registry=registry)
        self.passed = Gauge("mlops_last_gate_passed", "Whether that model passed", ["model"], registry=registry)
        self.decision = Gauge("mlops_judge_decision", "What the judge says of the challenger now", ["decision"], registry=registry)
        self.estimate = Gauge("mlops_judge_estimate", "What it found", ["criterion"], registry=registry)
        self.low = Gauge("mlops_judge_low", "Lower bound of that", ["criterion"], registry=registry)
        self.high = Gauge("mlops_judge_high", "Upper bound of that", ["criterion"], registry=registry)
        self.bound = Gauge("mlops_judge_bound", "What it is held against", ["criterion"], registry=registry)
        self.evidence = Gauge("mlops_judge_rows", "Rows that both models scored", registry=registry)
        self.steps = Counter("mlops_release_steps", "Records that the controller wrote", ["step"], registry=registry)
        self.trial = Gauge("mlops_trial_step_timestamp_seconds", "Since when the trial is where it is; 0: there is none", registry=registry)
        for step in ("forward", "abort"):
            self.steps.labels(step)
        self.released = Gauge("mlops_released_timestamp_seconds", "When the newest release was written", ["model"], registry=registry)

    def shows(self, verdict: Verdict | None) -> None:
        for decision in ("abort", "forward", "wait"):
            self.decision.labels(decision).set(verdict is not None and verdict.decision == decision)
        for gauge in (self.estimate, self.low, self.high, self.bound):
            gauge.clear()
        if verdict is None:
            self.trial.set(0)
            self.evidence.set(0)
            return
        for criterion in verdict.criteria:
            for gauge, value in ((self.estimate, criterion.estimate), (self.low, criterion.low), (self.high, criterion.high)):
                if value is not None and "=" not in criterion.name:  # a series for each slice would be many
                    gauge.labels(criterion.name).set(value)
            if "=" not in criterion.name:
                self.bound.labels(criterion.name).set(criterion.bound)
        self.evidence.set(verdict.rows)


class Controller:
    def __init__(self, environment: Environment, model: str, database: str = ""):
        """`database`: HOST:PORT to be watched, if there is one."""
        self.metrics = Metrics()
        self._environment, self._store, self._model, self._database = environment, environment.store, model, database
        self._judged: dict[str, Statement | None] = {}  # by key of the bucket; None: not to be trusted
        self._log = releases.Follower(self._store, model)
        self._trial: tuple[str, Contract, Evidence] | None = None
        self._kept: tuple[int, Verdict] | None = None
        every: list[tuple[str, float, Callable[[], None]]] = [
            (_URGENT, 2, self.judge),
            ("dependencies", 10, self.look),
            ("mirror", 10, self.mirror),
            ("observe", 30, self.observe),
            ("compact", 60, self.compact),
        ]
        self._steps = {name: (seconds, step) for name, seconds, step in every}
        self._due = dict.fromkeys(self._steps, 0.0)
        for name in self._steps:  # so that a step which never goes well counts as stalled
            self.metrics.success.labels(name).set_to_current_time()
            self.metrics.failures.labels(name)

    def run(self, stop: threading.Event) -> None:
        """The judge has a thread of its own: whoever harms callers waits for no compaction."""
        rest = [name for name in self._steps if name != _URGENT]
        judging = threading.Thread(target=self._run, args=(stop, [_URGENT]), daemon=True)
        judging.start()
        self._run(stop, rest)
        judging.join(timeout=5)

    def _run(self, stop: threading.Event, names: list[str]) -> None:
        while not stop.is_set():
            self.tick(names)
            stop.wait(_TICK_SECONDS)

    def tick(self, names: list[str] | None = None) -> None:
        """What is due. A step that fails is tried again when it is due again, and keeps no other from its turn."""
        for name in names or self._steps:
            seconds, step = self._steps[name]
            started = time.monotonic()
            if started < self._due[name]:
                continue
            try:
                step()
                self.metrics.success.labels(name).set_to_current_time()
            except Exception as error:
                self.metrics.failures.labels(name).inc()
                log.warning("%s", json.dumps({"event": "step", "step": name, "error": str(error)[:300]}))
            self.metrics.seconds.labels(name).set(time.monotonic() - started)
            self._due[name] = time.monotonic() + seconds

    def judge(self) -> None:
        """One look at the challenger on trial, and the record that follows from it. Whoever wrote one meanwhile is right."""
        log_now = self._log.read()
        release = releases.serving(log_now, releases.now())
        if release is None or not release.tried:
            self._trial = self._kept = None
            self.metrics.shows(None)
            return
        contract, evidence = self._on_trial(release)
        first = trials.started(log_now, release)
        verdict = judge(contract, release, evidence.look(first.epoch, first.at, releases.now()))
        self.metrics.shows(verdict)
        self.metrics.trial.set(release.at.timestamp())
        why, by_itself = "; ".join(verdict.reasons), release.mode != "ab" and not release.segment and not release.hold
        with suppress(Overtaken):
            if verdict.decision == "abort":  # before the verdict is kept: no failure to tell leaves it in front of callers
                self._wrote(trials.back(self._store, self._model, release, f"taken back: {why}"[:500]), "abort")
            self._keep(release, verdict)
            if verdict.decision == "forward" and by_itself:
                self._wrote(trials.forward(self._store, self._model, release, contract.judge, f"a step on: {why}"[:500]), "forward")

    def _keep(self, release: Release, verdict: Verdict) -> None:
        if (release.epoch, verdict) != self._kept:
            trials.keep(self._store, self._model, release, verdict.as_dict())
            self._kept = release.epoch, verdict

    def _on_trial(self, release: Release) -> tuple[Contract, Evidence]:
        name = f"{release.champion}-{release.experiment}"
        if self._trial is None or self._trial[0] != name:
            self._trial = name, *evidence_for(self._store, self._model, release.champion)
        return self._trial[1:]

    def _wrote(self, release: Release, step: str) -> None:
        self.metrics.steps.labels(step).inc()
        said = {
            "event": "release",
            "step": step,
            "epoch": release.epoch,
            "mode": release.mode,
            "weight": release.weight,
            "why": release.why,
        }
        log.warning("%s", json.dumps(said))

    def look(self) -> None:
        self.metrics.up.labels("tracking").set(reachable(self._environment.tracking))
        self.metrics.up.labels("bucket").set(_works(lambda: self._store.get("is-it-there")))
        if self._database:
            host, _, port = self._database.rpartition(":")
            self.metrics.up.labels("database").set(_works(lambda: socket.create_connection((host, int(port)), 3).close()))

    def mirror(self) -> None:
        """An alias that somebody moved in MLflow goes back: it never decided anything."""
        champion = door.champion(self._environment, self._model)
        if champion is not None:
            release = releases.serving(releases.read(self._store, self._model), releases.now())
            on_trial = release.on_trial if release else None
            for change in Tracking(self._environment.tracking).mirror(self._model, champion.digest, on_trial):
                log.warning("%s", json.dumps({"event": "alias", "change": change}))

    def observe(self) -> None:
        log_now = releases.read(self._store, self._model)
        if log_now:
            self.metrics.released.labels(self._model).set(log_now[-1].at.timestamp())
        prefix = f"models/{self._model}/statements"
        for key in {key for key in self._store.keys(prefix) if "/gate-" in key} - set(self._judged):
            good, _ = statements(self._store, self._environment.keys, self._model, key.split("/")[3], self._environment.name)
            self._judged[key] = next((s for s in reversed(good) if s.kind == "gate"), None)
        judged = [statement for statement in self._judged.values() if statement]
        if judged:
            newest = max(judged, key=lambda statement: statement.at)
            self.metrics.trained.labels(self._model).set(newest.at.timestamp())
            self.metrics.passed.labels(self._model).set(newest.verdict == "passed")

    def compact(self) -> None:
        for kind in KINDS:
            self.metrics.compacted.labels(kind).inc(compact(self._store, kind, self._model))
            self.metrics.waiting.labels(kind).set(len(waiting(self._store, kind, self._model)))
        replicas.forget(self._store, self._model)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Exception:
        return False
    return True


def main() -> None:
    logging.basicConfig(level=logging.INFO, format='{"at": "%(asctime)s", "level": "%(levelname)s", "message": %(message)s}')
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    controller = Controller(Environment.load(), os.environ.get("MLOPS_MODEL") or only_model(), os.environ.get("MLOPS_DATABASE", ""))
    port = int(os.environ.get("MLOPS_CONTROLLER_PORT", _PORT))
    start_http_server(port, os.environ.get("MLOPS_HOST", "0.0.0.0"), controller.metrics.registry)  # noqa: S104
    controller.run(stop)


if __name__ == "__main__":
    try:
        main()
    except Fault as fault:
        raise SystemExit(str(fault)) from None
