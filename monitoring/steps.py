"""Steps that a process repeats, each on its own schedule: one that fails is repeated when it is due, and delays no other."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

log = logging.getLogger("steps")
_TICK_SECONDS = 2.0
Step = tuple[str, float, Callable[[], None]]  # its name, and seconds between two runs


class Steps:
    def __init__(self, every: Iterable[Step], registry: CollectorRegistry):
        self._steps = {name: (seconds, run) for name, seconds, run in every}
        self._due = dict.fromkeys(self._steps, 0.0)
        self._seconds = Gauge(
            "mlops_controller_step_seconds", "Duration of the step's last run", ["step"], registry=registry
        )
        self._success = Gauge(
            "mlops_controller_last_success_timestamp_seconds", "The step's last success", ["step"], registry=registry
        )
        self._failures = Counter("mlops_controller_failures", "Steps that failed", ["step"], registry=registry)
        for name in self._steps:  # so that a step which never succeeds counts as stalled
            self._success.labels(name).set_to_current_time()
            self._failures.labels(name)

    def run(self, stop: threading.Event, *threads: Iterable[str]) -> None:
        """Until `stop`: the steps of each of `threads` in one of its own, all others in this one."""
        apart = [threading.Thread(target=self._run, args=(stop, list(names)), daemon=True) for names in threads]
        for thread in apart:
            thread.start()
        named = {name for names in threads for name in names}
        self._run(stop, [name for name in self._steps if name not in named])
        for thread in apart:
            thread.join(timeout=5)

    def _run(self, stop: threading.Event, names: list[str]) -> None:
        while not stop.is_set():
            self.tick(names)
            stop.wait(_TICK_SECONDS)

    def tick(self, names: Iterable[str] | None = None) -> None:
        """Run what is due."""
        for name in names or self._steps:
            seconds, run = self._steps[name]
            started = time.monotonic()
            if started < self._due[name]:
                continue
            try:
                run()
                self._success.labels(name).set_to_current_time()
            except Exception as error:
                self._failures.labels(name).inc()
                log.warning("step failed", extra={"step": name, "error": str(error)[:300]})
            self._seconds.labels(name).set(time.monotonic() - started)
            self._due[name] = time.monotonic() + seconds
