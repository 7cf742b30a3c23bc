"""The loop closes here: the log is analysed, and a model is trained when the contract says so. What passed the gate goes the
ordinary road of a release (the approver)."""

import os
import threading
import time

from prometheus_client import CollectorRegistry, Gauge

from mlops.registered_model import RegisteredModel
from mlops.retraining import Event, RetrainingLog, newest_result
from monitoring.trainer import trainer
from monitoring.watch import Watch, Watched, due

_SECONDS = 300.0
_RESULTS = ("passed", "refused", "failed")


class Metrics:
    def __init__(self, registry: CollectorRegistry):
        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(name, about, labels, registry=registry)

        self.analysed = gauge("mlops_analysis_timestamp_seconds", "The last analysis of the log")
        self.effect = gauge(
            "mlops_drift_effect", "PSI against the training, or rise of a share", "feature", "aspect", "tier"
        )
        self.bound = gauge("mlops_drift_bound", "The bound that it is compared with", "feature", "aspect")
        self.alarm = gauge(
            "mlops_drift_alarm", "Whether it is beyond its bound, and not by chance", "feature", "aspect"
        )
        self.loss = gauge("mlops_quality_loss", "Loss of what serves, on the newest matured days")
        self.gap = gauge("mlops_quality_gap", "Scores less outcomes of what serves, on the newest matured days")
        self.auc = gauge("mlops_quality_auc", "AUC of what serves, on the newest matured days")
        self.beyond = gauge("mlops_quality_gap_beyond", "Whether the gap is larger than allowed, and not by chance")
        self.result = gauge("mlops_retraining_result", "Whether the newest run ended so", "result")
        for unknown in (self.loss, self.gap, self.auc):  # until the first analysis: 0 would be a result
            unknown.set(float("nan"))
        for result in _RESULTS:
            self.result.labels(result)

    def show(self, watched: Watched) -> None:
        self.analysed.set(watched.at.timestamp())
        for gauge in (self.effect, self.bound, self.alarm):
            gauge.clear()
        for shift in watched.drift.shifts:
            self.effect.labels(shift.feature, shift.aspect, shift.tier).set(shift.effect)
            self.bound.labels(shift.feature, shift.aspect).set(shift.bound)
            self.alarm.labels(shift.feature, shift.aspect).set(shift.alarm)
        quality, nothing = watched.quality, float("nan")
        self.loss.set(quality.loss.mean if quality.loss else nothing)
        self.gap.set(quality.gap.mean if quality.gap else nothing)
        self.auc.set(nothing if quality.auc is None else quality.auc)
        self.beyond.set(quality.beyond(watched.contract))


class Loop:
    """`asked`: for an analysis now."""

    def __init__(self, model: RegisteredModel, registry: CollectorRegistry, asked: threading.Event):
        self.watched: Watched | None = None
        self.events: list[Event] = []
        self._model, self._metrics, self._asked = model, Metrics(registry), asked
        self._log, self._watch, self._trainer = RetrainingLog(model), Watch(model), trainer(model)
        self._every = float(os.environ.get("MLOPS_ANALYSIS_SECONDS", _SECONDS))
        self._next = 0.0

    def analyse(self) -> None:
        if time.monotonic() < self._next and not self._asked.is_set():
            return
        self.watched = self._watch.look()
        if self.watched:
            self._metrics.show(self.watched)
        self._asked.clear()
        self._next = time.monotonic() + self._every  # one that failed is repeated at once, so that it counts as failing

    def retrain(self) -> None:
        self._log.give_up()
        self.events = self._log.read()
        newest = newest_result(self.events)
        for result in _RESULTS:
            self._metrics.result.labels(result).set(newest is not None and newest.event == result)
        if self.watched and self._trainer and (wanted := due(self.watched, self.events)):
            self._trainer.start(*wanted)
