"""The control loop of an environment: judges the challenger, compacts and analyses the prediction log, mirrors the release
log into MLflow, watches its dependencies. It reads what callers sent, so it has no key that signs: see the approver.

Two controllers do no harm, and one that was killed continues where it was: every step starts from the state it finds.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from obstore.exceptions import BaseError
from prometheus_client import CollectorRegistry, Counter, Gauge

from mlops import access, attestations, promotion, replicas, rollout
from mlops import bundle as bundles
from mlops.contract import Contract
from mlops.envelope import Attestation
from mlops.environment import Environment, only_model
from mlops.errors import VerificationError
from mlops.releases import Release, now
from mlops.tracking import Tracking, reachable
from mlops.verdict import DECISIONS, Verdict
from monitoring import alerts, server, status
from monitoring.alerts import Alert
from monitoring.analysis import evidence_for, judge_now
from monitoring.compaction import compact, waiting
from monitoring.evidence import Evidence
from monitoring.frames import KINDS
from monitoring.loop import Loop
from monitoring.page import Site
from monitoring.retention import expire
from monitoring.series import Series
from monitoring.steps import Step, Steps

log = logging.getLogger("controller")
_PORT = 9100
_BLIND = 5  # looks
_REPEAT_SECONDS = 10.0
_URGENT, _SHOWN = "judge", ("access", "alerts", "status")


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(name, about, labels, registry=registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        self.up = gauge("mlops_dependency_up", "Whether it answers: tracking, database, bucket", "dependency")
        self.compacted = counter("mlops_compacted_rows", "Rows of the log written as Parquet", "kind")
        self.lost = counter("mlops_log_lost_rows", "Lines and rows of the log that are no records of ours", "kind")
        self.damaged = counter("mlops_log_damaged_files", "Files of the log that were set aside as damaged", "kind")
        self.deleted = counter("mlops_retention_deleted_objects", "Files of the log older than it is kept", "kind")
        self.waiting = gauge("mlops_segments_waiting", "Segments of closed hours that are not Parquet yet", "kind")
        self.trained = gauge("mlops_last_training_timestamp_seconds", "The gate's last verdict", "model")
        self.passed = gauge("mlops_last_gate_passed", "Whether that model passed", "model")
        self.decision = gauge("mlops_judge_decision", "The judge's decision on the challenger now", "decision")
        self.estimate = gauge("mlops_judge_estimate", "Estimate of the criterion", "criterion")
        self.low = gauge("mlops_judge_low", "Lower bound of the estimate", "criterion")
        self.high = gauge("mlops_judge_high", "Upper bound of the estimate", "criterion")
        self.bound = gauge("mlops_judge_bound", "The bound that the criterion is compared with", "criterion")
        self.evidence = gauge("mlops_judge_rows", "Rows that both models scored")
        self.rollout = gauge("mlops_rollout_step_timestamp_seconds", "Start of the rollout's current step; 0: none")
        self.released = gauge("mlops_released_timestamp_seconds", "The newest release record", "model")

    def show(self, verdict: Verdict | None) -> None:
        for decision in DECISIONS:
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
    def __init__(self, environment: Environment, name: str, database: str = "", alertmanager: str = ""):
        """`database`: HOST:PORT to be watched, `alertmanager`: the URL to be asked, if there is one."""
        self.metrics = Metrics()
        self._model, self._tracking, self._database = environment.model(name), environment.tracking, database
        self._environment, self._alertmanager = environment, alertmanager
        self.asked = threading.Event()  # for an analysis now
        self.loop = Loop(self._model, self.metrics.registry, self.asked)
        self.site = Site(self._model, self.metrics.registry, self.ask_for_analysis)
        self._contracts: dict[str, Contract | None] = {}  # of the champion, by its digest
        self._series: Series | None = None  # of the newest rollout
        self._up: dict[str, bool] = {}
        self._firing: list[Alert] | None = None
        self._reports: set[str] = set()  # digests
        self._judged: dict[str, Attestation | None] = {}  # by key of the bucket; None: not trusted
        self._rollout: tuple[str, Contract, Evidence] | None = None
        self._saved: tuple[int, Verdict] | None = None
        self._repeat, self._blind = 0.0, 0
        every: list[Step] = [
            (_URGENT, 2, self.judge),
            ("dependencies", 10, self.watch),
            ("mirror", 10, self.mirror),
            ("observe", 30, self.observe),
            ("compact", 60, self.compact),
            ("analyse", 2, self.loop.analyse),
            ("retrain", 10, self.loop.retrain),
            ("access", 4, self.follow_keys),
            *([("alerts", 15, self.follow_alerts)] if alertmanager else []),
            ("status", 2, self.show),
        ]
        self.steps = Steps(every, self.metrics.registry)

    def run(self, stop: threading.Event) -> None:
        """The judge has a thread of its own, and so has the page: neither must wait for compaction."""
        self.steps.run(stop, [_URGENT], [step for step in _SHOWN if step != "alerts" or self._alertmanager])

    def judge(self) -> None:
        """Judge the rollout in progress. If that fails again and again nobody sees the harm that it does, so it ends; not if
        the bucket is out of reach, when callers have the champion of before anyway."""
        release = self._model.releases.current()
        try:
            self._look(release)
            self._blind = 0
        except BaseError:
            raise
        except Exception as error:
            self._blind += 1
            if release and release.in_rollout and self._blind >= _BLIND:
                why = f"the judge could not look {self._blind} times in a row: {str(error)[:200]}"
                rollout.save_verdict(self._model, release, Verdict("abort", [why], [], []))
            raise

    def _look(self, release: Release | None) -> None:
        if release is None or not release.in_rollout:
            self._rollout = self._saved = None
            self.metrics.show(None)
            if ended := status.newest_rollout(self._model.releases.read()):
                self._follow(ended).save(at_once=True)
            return
        verdict = judge_now(self._model, release, *self._evidence(release))
        self._save(release, verdict)
        self.metrics.show(verdict)
        self.metrics.rollout.set(release.at.timestamp())

    def _save(self, release: Release, verdict: Verdict) -> None:
        """For the approver, who acts on it. Repeated, so that it sees that the judge still looks."""
        new = (release.revision, verdict) != self._saved
        if new or time.monotonic() > self._repeat:
            rollout.save_verdict(self._model, release, verdict)
            self._saved, self._repeat = (release.revision, verdict), time.monotonic() + _REPEAT_SECONDS
        if new:
            self._follow(release).add(now(), release, verdict)
        self._follow(release).save()

    def _follow(self, release: Release) -> Series:
        if self._series is None or self._series.rollout != release.rollout:
            if self._series:
                self._series.save(at_once=True)
            self._series = Series(self._model, release)
        return self._series

    def _evidence(self, release: Release) -> tuple[Contract, Evidence]:
        name = f"{release.champion}-{release.rollout}"
        if self._rollout is None or self._rollout[0] != name:
            self._rollout = name, *evidence_for(self._model, release.champion)
        return self._rollout[1:]

    def watch(self) -> None:
        up = {"tracking": reachable(self._tracking), "bucket": _works(lambda: self._model.store.get("is-it-there"))}
        if self._database:
            host, _, port = self._database.rpartition(":")
            up["database"] = _works(lambda: socket.create_connection((host, int(port)), 3).close())
        for name, answers in up.items():
            self.metrics.up.labels(name).set(answers)
        self._up = up

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
        self._reports = {key.split("/")[3] for key in model.store.keys(f"{model.folder}/reports")}
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
            done = compact(self._model, kind)
            self.metrics.compacted.labels(kind).inc(done.rows)
            self.metrics.lost.labels(kind).inc(done.lost)
            self.metrics.damaged.labels(kind).inc(done.damaged)
            self.metrics.waiting.labels(kind).set(len(waiting(self._model, kind)))
        replicas.remove_gone(self._model)
        champion = promotion.champion(self._model)
        if champion and (days := champion.contract.retention_days):
            for kind in KINDS:
                self.metrics.deleted.labels(kind).inc(expire(self._model, kind, days, now()))

    def follow_keys(self) -> None:
        self.site.keys.replace(access.read(self._model.store))

    def follow_alerts(self) -> None:
        self._firing = None  # unless it answers
        self._firing = alerts.firing(self._alertmanager)

    def ask_for_analysis(self) -> None:
        self.asked.set()

    def show(self) -> None:
        """The page as it is now."""
        gates = [gate for gate in list(self._judged.values()) if gate]
        silent = {"alertmanager": False} if self._alertmanager else {}
        watched, events = self.loop.watched, self.loop.events
        known = alerts.known(self._up | silent, watched.drift if watched else None, events, gates)
        self.site.show(status.snapshot(
            self._model, self._environment, contract=self._contract(), verdict=self._saved[1] if self._saved else None,
            series=self._series, alerts=known if self._firing is None else self._firing, gates=gates, reports=self._reports,
            days=watched.days if watched else None, analysis=watched.drift if watched else None,
            quality=watched.quality if watched else None, retrainings=events,
        ))  # fmt: skip

    def _contract(self) -> Contract | None:
        """The champion's; None if its bundle is damaged."""
        release = self._model.releases.current()
        if release and release.champion not in self._contracts:
            self._contracts = {release.champion: None}
            with suppress(VerificationError):
                self._contracts[release.champion] = bundles.read(self._model, release.champion).contract
        return self._contracts.get(release.champion) if release else None


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Exception:
        return False
    return True


def main(stop: threading.Event) -> None:
    watched = (os.environ.get(name, "") for name in ("MLOPS_DATABASE", "MLOPS_ALERTMANAGER"))
    controller = Controller(Environment.load(), os.environ.get("MLOPS_MODEL") or only_model(), *watched)
    sys.setswitchinterval(0.001)  # seconds that the page waits at most for a thread that computes; the default is 5 ms
    controller.site.serve(*server.address(_PORT))
    controller.run(stop)


if __name__ == "__main__":
    server.run(main)
