from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mlops import profile
from mlops.model import Model

_LABELS = ["feature", "bin", "tier", "model_version"]


class Bins(Collector):
    """Counts served rows in the bins of the model's profile, so that Prometheus can compute PSI over replicas.

    A bin is a position in the profile of one model, so each version has its own series, which start at zero. The tier
    (integrity, season, score) says whether a shift is an alarm.
    """

    def __init__(self, registry: CollectorRegistry):
        # Replaced as a whole: scrapes read it meanwhile.
        self._counted: tuple[Model, dict[str, np.ndarray]] | None = None
        registry.register(self)

    def observe(self, model: Model, rows: Sequence[Sequence[Any]], scores: Sequence[float]) -> None:
        """`rows`: request values in the order of `model.schema.names`."""
        bins, watched = model.profile["bins"], [*model.profile["watched"], "score"]
        if self._counted is None or self._counted[0] is not model:
            self._counted = model, {name: np.zeros(len(bins[name]["expected"]), np.int64) for name in watched}
        columns = dict(zip([*model.schema.names, "score"], [*self._columns(model, rows), scores], strict=True))
        for name in watched:
            self._counted[1][name] += profile.count(bins[name], columns[name])

    @staticmethod
    def _columns(model: Model, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        return list(zip(*rows, strict=True))[: len(model.schema.names)]

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        rows = CounterMetricFamily("mlops_feature_bin_rows", "Rows served by bin", labels=_LABELS)
        expected = GaugeMetricFamily("mlops_feature_bin_expected", "Share of the bin in training", labels=_LABELS)
        if self._counted:
            model, counted = self._counted
            for name, counts in counted.items():
                bins = model.profile["bins"][name]
                tier = model.contract.features[name].drift if name in model.contract.features else "score"
                for label, n, share in zip(profile.names(bins), counts.tolist(), bins["expected"], strict=True):
                    labels = [name, label, tier, model.digest]
                    rows.add_metric(labels, n)
                    expected.add_metric(labels, share)
        yield rows
        yield expected
