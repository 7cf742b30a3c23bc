"""The control loop of an environment: judges the challenger and advances or aborts its rollout; compacts the prediction
log, mirrors the release log into MLflow, watches its dependencies.

Two controllers do no harm, and one that was killed continues where it was: every step starts from the state it finds.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from mlops import attestations, logs, promotion, replicas, rollout
from mlops.attestations import Attestation
from mlops.contract import Contract
from mlops.environment import Environment, only_model
from mlops.errors import ConflictError, UserError
from mlops.releases import Release
from mlops.tracking import Tracking, reachable
from mlops.verdict import Verdict
from monitoring.analysis import evidence_for, judge_now
from monitoring.compaction import compact, waiting
from monitoring.evidence import Evidence
from monitoring.frames import KINDS

log = logging.getLogger("controller")
_PORT = 9100
_TICK_SECONDS = 2.0
_URGENT = "judge"


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(name, about, labels, registry=registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        self.up = gauge("mlops_dependency_up", "Whether it answers: tracking, database, bucket", "dependency")
        self.seconds = gauge("mlops_controller_step_seconds", "Duration of the step's last run", "step")
        self.success = gauge("mlops_controller_last_success_timestamp_seconds", "The step's last success", "step")
        self.failures = counter("mlops_controller_failures", "Steps that failed", "step")
        self.compacted = counter("mlops_compacted_rows", "Rows of the log written as Parquet", "kind")
        self.waiting = gauge("mlops_segments_waiting", "Segments of closed hours that are not Parquet yet", "kind")
        self.trained = gauge("mlops_last_training_timestamp_seconds", "The gate's last verdict", "model")
        self.passed = gauge("mlops_last_gate_passed", "Whether that model passed", "model")
        self.decision = gauge("mlops_judge_decision", "The judge's decision on the challenger now", "decision")
        self.estimate = gauge("mlops_judge_estimate", "Estimate of the criterion", "criterion")
        self.low = gauge("mlops_judge_low", "Lower bound of the estimate", "criterion")
        self.high = gauge("mlops_judge_high", "Upper bound of the estimate", "criterion")
        self.bound = gauge("mlops_judge_bound", "The bound that the criterion is compared with", "criterion")
        self.evidence = gauge("mlops_judge_rows", "Rows that both models scored")
        self.steps = counter("mlops_release_steps", "Records that the controller wrote", "step")
        self.rollout = gauge("mlops_rollout_step_timestamp_seconds", "Start of the rollout's current step; 0: none")
        self.released = gauge("mlops_released_timestamp_seconds", "The newest release record", "model")
        for step in ("advance", "abort"):
            self.steps.labels(step)

    def show(self, verdict: Verdict | None) -> None:
        for decision in ("abort", "advance", "inconclusive"):
            self.decision.labels(decision).set(verdict is not None and verdict.decision == decision)
        for gauge in (self.estimate, self.low, self.high, self.bound):
            gauge.clear()
        self.evidence.set(verdict.rows or 0 if verdict else 0)
        if verdict is None:
            self.rollout.set(0)
        for each in verdict.checks if verdict else ():
            if "=" in each.name:  # a slice: a series for each would be too many
                continue
            for gauge, value in ((self.estimate, each.estimate), (self.low, each.low), (self.high, each.high)):
                if value is not None:
                    gauge.labels(each.name).set(float(value))
            self.bound.labels(each.name).set(float(each.bound))


class Controller:
    def __init__(self, environment: Environment, name: str, database: str = ""):
        """`database`: HOST:PORT to be watched, if there is one."""
        self.metrics = Metrics()
        self._model, self._tracking, self._database = environment.model(name), environment.tracking, database
        self._judged: dict[str, Attestation | None] = {}  # by key of the bucket; None: not trusted
        self._rollout: tuple[str, Contract, Evidence] | None = None
        self._saved: tuple[int, Verdict] | None = None
        every: list[tuple[str, float, Callable[[], None]]] = [
            (_URGENT, 2, self.judge),
            ("dependencies", 10, self.watch),
            ("mirror", 10, self.mirror),
            ("observe", 30, self.observe),
            ("compact", 60, self.compact),
        ]
        self._steps = {step: (seconds, run) for step, seconds, run in every}
        self._due = dict.fromkeys(self._steps, 0.0)
        for step in self._steps:  # so that a step which never succeeds counts as stalled
            self.metrics.success.labels(step).set_to_current_time()
            self.metrics.failures.labels(step)

    def run(self, stop: threading.Event) -> None:
        """The judge has a thread of its own: aborting must not wait for compaction."""
        others = [step for step in self._steps if step != _URGENT]
        judging = threading.Thread(target=self._run, args=(stop, [_URGENT]), daemon=True)
        judging.start()
        self._run(stop, others)
        judging.join(timeout=5)

    def _run(self, stop: threading.Event, steps: list[str]) -> None:
        while not stop.is_set():
            self.tick(steps)
            stop.wait(_TICK_SECONDS)

    def tick(self, steps: list[str] | None = None) -> None:
        """Run what is due. A failed step is repeated when it is due again, and delays no other."""
        for step in steps or self._steps:
            seconds, run = self._steps[step]
            started = time.monotonic()
            if started < self._due[step]:
                continue
            try:
                run()
                self.metrics.success.labels(step).set_to_current_time()
            except Exception as error:
                self.metrics.failures.labels(step).inc()
                log.warning("step failed", extra={"step": step, "error": str(error)[:300]})
            self.metrics.seconds.labels(step).set(time.monotonic() - started)
            self._due[step] = time.monotonic() + seconds

    def judge(self) -> None:
        """Judge the rollout in progress, and write the record that follows. A record written meanwhile takes precedence."""
        release = self._model.releases.current()
        if release is None or not release.in_rollout:
            self._rollout = self._saved = None
            self.metrics.show(None)
            return
        contract, evidence = self._evidence(release)
        verdict = judge_now(self._model, release, contract, evidence)
        self.metrics.show(verdict)
        self.metrics.rollout.set(release.at.timestamp())
        why = "; ".join(verdict.reasons)
        automatic = release.mode != "ab" and not release.cohort and not release.paused
        with suppress(ConflictError):
            if verdict.decision == "abort":  # before the verdict is saved: no failure to save it leaves callers exposed
                self._wrote(rollout.abort(self._model, release, f"aborted: {why}"[:500]), "abort")
            self._save(release, verdict)
            if verdict.decision == "advance" and automatic:
                next_release = rollout.advance(self._model, release, contract.judge, f"advanced: {why}"[:500])
                self._wrote(next_release, "advance")

    def _save(self, release: Release, verdict: Verdict) -> None:
        if (release.revision, verdict) != self._saved:
            rollout.save_verdict(self._model, release, verdict.as_dict())
            self._saved = release.revision, verdict

    def _evidence(self, release: Release) -> tuple[Contract, Evidence]:
        name = f"{release.champion}-{release.rollout}"
        if self._rollout is None or self._rollout[0] != name:
            self._rollout = name, *evidence_for(self._model, release.champion)
        return self._rollout[1:]

    def _wrote(self, release: Release, step: str) -> None:
        self.metrics.steps.labels(step).inc()
        kept = release.model_dump(include={"revision", "mode", "weight", "why"})
        log.warning("release", extra={"step": step, **kept})

    def watch(self) -> None:
        self.metrics.up.labels("tracking").set(reachable(self._tracking))
        self.metrics.up.labels("bucket").set(_works(lambda: self._model.store.get("is-it-there")))
        if self._database:
            host, _, port = self._database.rpartition(":")
            connect = lambda: socket.create_connection((host, int(port)), 3).close()  # noqa: E731
            self.metrics.up.labels("database").set(_works(connect))

    def mirror(self) -> None:
        """Aliases in MLflow are for people: they follow the release log, and decide nothing."""
        champion = promotion.champion(self._model)
        if champion is not None:
            release = self._model.releases.current()
            challenger = release.challenger if release and release.in_rollout else None
            for change in Tracking(self._tracking).mirror(self._model.name, champion.digest, challenger):
                log.warning("alias", extra={"change": change})

    def observe(self) -> None:
        model, releases = self._model, self._model.releases.read()
        if releases:
            self.metrics.released.labels(model.name).set(releases[-1].at.timestamp())
        keys = {key for key in model.store.keys(f"{model.folder}/attestations") if "/gate-" in key}
        for key in keys - set(self._judged):
            good, _ = attestations.read(model, key.split("/")[3])
            self._judged[key] = next((each for each in reversed(good) if each.kind == "gate"), None)
        if judged := [attestation for attestation in self._judged.values() if attestation]:
            newest = max(judged, key=lambda attestation: attestation.at)
            self.metrics.trained.labels(model.name).set(newest.at.timestamp())
            self.metrics.passed.labels(model.name).set(newest.verdict == "passed")

    def compact(self) -> None:
        for kind in KINDS:
            self.metrics.compacted.labels(kind).inc(compact(self._model, kind))
            self.metrics.waiting.labels(kind).set(len(waiting(self._model, kind)))
        replicas.remove_gone(self._model)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Exception:
        return False
    return True


def main() -> None:
    logs.configure()
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    database = os.environ.get("MLOPS_DATABASE", "")
    controller = Controller(Environment.load(), os.environ.get("MLOPS_MODEL") or only_model(), database)
    port = int(os.environ.get("MLOPS_CONTROLLER_PORT", _PORT))
    host = os.environ.get("MLOPS_HOST", "0.0.0.0")  # noqa: S104
    start_http_server(port, host, controller.metrics.registry)
    controller.run(stop)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
