"""A replica is ready at once and stays small."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from mlops import promotion
from tests import synthetic
from tests.service import Service
from tests.service import environment as make_environment

READY_SECONDS, MEMORY_MB = 2.0, 160


def weigh(service: Service) -> dict[str, float]:
    """From the start of the process until it serves: seconds, and seconds of a core; then its memory after some work."""
    service.stop()
    started = time.monotonic()
    service.start()
    service.until(lambda: service.http.get("/readyz").json() == {"ready": True, "reason": ""}, 60)
    seconds = time.monotonic() - started
    assert service.process
    process = psutil.Process(service.process.pid)
    spent = process.cpu_times()
    for _ in range(20):
        service.predict(*[synthetic.request()] * 100)
    return {
        "ready_seconds": round(seconds, 2),
        "core_seconds": round(spent.user + spent.system + spent.children_user + spent.children_system, 2),
        "memory_mb": round(process.memory_info().rss / 2**20, 1),
    }


def prove(folder: Path) -> dict[str, Any]:
    environment = make_environment(folder)
    digest = synthetic.publish(environment, synthetic.build(seed=1))
    promotion.release(environment.model(synthetic.MODEL), digest, "proof")
    with Service(environment, synthetic.MODEL) as service:
        found = [weigh(service) for _ in range(7)]
    middle = {name: median(each[name] for each in found) for name in found[0]}
    faults = []
    if middle["ready_seconds"] > READY_SECONDS:
        faults.append(f"ready after {middle['ready_seconds']} s")
    if middle["memory_mb"] > MEMORY_MB:
        faults.append(f"{middle['memory_mb']} MB")
    return {"starts": len(found), **middle, "holds": not faults, "reason": "; ".join(faults)}
