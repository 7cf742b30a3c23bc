from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mlops.model import Model


class Bins(Collector):
    """Counts served rows in the bins of the model's profile, so that Prometheus can compute PSI over replicas.

    Bin names are positions in the profile, `missing`, and for categories `other`; a new model starts at zero. The tier
    (integrity, season, score) says whether a shift is an alarm.
    """

    def __init__(self, registry: CollectorRegistry):
        self._counted: tuple[Model, dict[str, np.ndarray]] | None = None  # replaced as a whole: scrapes read it meanwhile
        registry.register(self)

    def observe(self, model: Model, rows: Sequence[Sequence[Any]], scores: Sequence[float]) -> None:
        """`rows`: request values in the order of `model.schema.names`."""
        if self._counted is None or self._counted[0] is not model:
            self._counted = model, {name: np.zeros(len(bins["expected"]), np.int64) for name, bins in model.profile["bins"].items()}
        counts = self._counted[1]
        for name, values in zip(model.schema.names, zip(*rows, strict=True), strict=False):
            feature = model.contract.features[name]
            bins = model.profile["bins"][name]
            if feature.type == "category":
                positions = {level: i for i, level in enumerate(bins["levels"])}
                other = len(positions)
                found = [other + 1 if v is None else positions.get(v, other) for v in values]
            else:
                found = self._numbers(bins["edges"], [np.nan if v is None else v for v in values])
            _add(counts[name], found)
        _add(counts["score"], self._numbers(model.profile["bins"]["score"]["edges"], scores))

    @staticmethod
    def _numbers(edges: Sequence[float], values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values, float)
        return np.where(np.isnan(array), len(edges) + 1, np.searchsorted(edges, array, side="left"))

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        counted = CounterMetricFamily("mlops_feature_bin_rows", "Rows served by bin", labels=["feature", "bin", "tier"])
        expected = GaugeMetricFamily("mlops_feature_bin_expected", "Share of the bin in training", labels=["feature", "bin", "tier"])
        if self._counted:
            model, found = self._counted
            for name, counts in found.items():
                bins = model.profile["bins"][name]
                tier = model.contract.features[name].drift if name in model.contract.features else "score"
                for label, count, share in zip(bin_names(bins), counts.tolist(), bins["expected"], strict=True):
                    counted.add_metric([name, label, tier], count)
                    expected.add_metric([name, label, tier], share)
        yield counted
        yield expected


def _add(counts: np.ndarray, positions: Any) -> None:
    counts += np.bincount(positions, minlength=len(counts))


def bin_names(bins: dict[str, Any]) -> list[str]:
    if "levels" in bins:
        return [*map(str, range(len(bins["levels"]))), "other", "missing"]
    return [*map(str, range(len(bins["edges"]) + 1)), "missing"]
