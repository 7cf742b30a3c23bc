from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # a second series for each, which nothing queries

ROUTES = ("/predict", "/outcomes", "/healthz", "/readyz", "/metrics", "/model", "/docs", "/openapi.json")
FAULTS = ("error", "nan", "slow", "died", "busy", "dropped")
_LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
# Present from the start: Prometheus sees no increase in the first value of a series.
_PRESENT = {
    "outcomes": ("accepted", "late", "duplicate", "contradictory", "foreign", "excess", "unknown"),
    "log_dropped": ("queue", "spool", "disk", "error"),
    "bucket_errors": ("access", "releases", "lag", "log", "state"),
    "score_failed": ("error", "nan"),
    "challenger_rows": ("scored", *FAULTS),
}


class Metrics:
    """Every series of the service. Labels take values from fixed lists only, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        histogram = partial(Histogram, buckets=_LATENCY, registry=registry)
        self.requests = counter("http_requests", "Requests answered", ["route", "method", "status"])
        self.duration = histogram("http_request_duration_seconds", "Time to answer", ["route"])
        self.in_flight = gauge("mlops_requests_in_flight", "Prediction requests being answered")
        self.bytes_held = gauge("mlops_bytes_in_flight", "Bytes of bodies and large answers of requests with a key")
        self.predictions = counter("mlops_predictions", "Rows scored for callers")
        self.score_failed = counter("mlops_score_failed", "Requests that the champion could not score", ["reason"])
        self.outcomes = counter("mlops_outcomes", "Outcomes received", ["result"])
        self.auth_refused = counter("mlops_auth_refused", "Requests refused by authentication", ["reason"])
        self.logged = counter("mlops_log_rows", "Rows written to the local spool", ["kind"])
        self.log_dropped = counter("mlops_log_dropped_rows", "Rows that the log had to drop", ["reason"])
        self.log_uploaded = counter("mlops_log_segments_uploaded", "Segments uploaded to the bucket")
        self.spool_bytes = gauge("mlops_log_spool_bytes", "Bytes waiting in the local spool")
        self.refused = counter("mlops_release_refused", "Releases that did not verify", ["reason"])
        self.bucket_errors = counter("mlops_bucket_errors", "Failed calls to the bucket", ["operation"])
        self.revision = gauge("mlops_release_revision", "Revision in force by the log, and revision served", ["state"])
        self.lag = gauge("mlops_release_lag_seconds", "How long the release in force has not been served")
        self.info = gauge("mlops_model_info", "The model version that answers", ["model", "model_version"])
        self.weight = gauge("mlops_release_weight", "Share of the entities that the challenger answers")
        self.challenger_rows = counter("mlops_challenger_rows", "Rows for the challenger, by result", ["result"])
        self.challenger_seconds = histogram("mlops_challenger_duration_seconds", "Time it took for a request")
        self.breaker = gauge("mlops_challenger_breaker_open", "Whether callers are kept from the failing challenger")
        for name, values in _PRESENT.items():
            for value in values:
                getattr(self, name).labels(value)
        self._series = cache(lambda *labels: (self.requests.labels(*labels), self.duration.labels(labels[0])))

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        route = route if route in ROUTES else "other"
        method = method if method in ("GET", "POST") else "other"
        requests, duration = self._series(route, method, str(status))
        requests.inc()
        duration.observe(seconds)
