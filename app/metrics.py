from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # a second series for each, which nothing queries

ROUTES = ("/predict", "/outcomes", "/healthz", "/readyz", "/metrics", "/model", "/docs", "/openapi.json")
FAULTS = ("error", "nan", "slow", "died", "busy", "dropped")
_LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Every series of the service. Labels take values from fixed lists only, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("http_requests", "Requests answered", ["route", "method", "status"], registry=registry)
        self.duration = Histogram(
            "http_request_duration_seconds", "Time to answer", ["route"], buckets=_LATENCY, registry=registry
        )
        self.in_flight = Gauge("mlops_requests_in_flight", "Prediction requests being answered", registry=registry)
        self.predictions = Counter("mlops_predictions", "Rows scored for callers", registry=registry)
        self.outcomes = Counter("mlops_outcomes", "Outcomes received", ["result"], registry=registry)
        self.auth_refused = Counter(
            "mlops_auth_refused", "Requests refused by authentication", ["reason"], registry=registry
        )
        self.logged = Counter("mlops_log_rows", "Rows written to the local spool", ["kind"], registry=registry)
        self.log_dropped = Counter(
            "mlops_log_dropped_rows", "Rows that the log had to drop", ["reason"], registry=registry
        )
        self.log_uploaded = Counter("mlops_log_segments_uploaded", "Segments uploaded to the bucket", registry=registry)
        self.spool_bytes = Gauge("mlops_log_spool_bytes", "Bytes waiting in the local spool", registry=registry)
        self.refused = Counter("mlops_release_refused", "Releases that did not verify", ["reason"], registry=registry)
        self.bucket_errors = Counter(
            "mlops_bucket_errors", "Failed calls to the bucket", ["operation"], registry=registry
        )
        self.revision = Gauge(
            "mlops_release_revision", "Revision in force by the log, and revision served", ["state"], registry=registry
        )
        self.lag = Gauge(
            "mlops_release_lag_seconds", "How long the release in force has not been served", registry=registry
        )
        self.info = Gauge(
            "mlops_model_info", "The model version that answers", ["model", "model_version"], registry=registry
        )
        self.weight = Gauge(
            "mlops_release_weight", "Share of the entities that the challenger answers", registry=registry
        )
        self.challenger_rows = Counter(
            "mlops_challenger_rows", "Rows for the challenger, by result", ["result"], registry=registry
        )
        self.challenger_seconds = Histogram(
            "mlops_challenger_duration_seconds",
            "Time the challenger took to score a request",
            buckets=_LATENCY,
            registry=registry,
        )
        self.breaker = Gauge(
            "mlops_challenger_breaker_open", "Whether callers are kept from the failing challenger", registry=registry
        )

        # Present from the start: Prometheus sees no increase in the first value of a series.
        for counter, values in (
            (self.outcomes, ("accepted", "late", "duplicate", "contradictory", "unknown")),
            (self.log_dropped, ("queue", "spool", "disk")),
            (self.bucket_errors, ("access", "releases", "lag", "log", "state")),
            (self.challenger_rows, ("scored", *FAULTS)),
        ):
            for value in values:
                counter.labels(value)

        self._series = cache(
            lambda route, method, status: (
                self.requests.labels(route, method, str(status)),
                self.duration.labels(route),
            )
        )

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        route = route if route in ROUTES else "other"
        method = method if method in ("GET", "POST") else "other"
        requests, duration = self._series(route, method, status)
        requests.inc()
        duration.observe(seconds)
