"""The prediction log holds each scored row once with its values, survives kill -9, and never harms a request."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mlops import log_schema, promotion
from mlops.environment import Environment
from mlops.log_schema import PredictionRecord
from tests import synthetic
from tests.load import Answer, Load
from tests.service import Service
from tests.service import environment as make_environment

LOST_SECONDS = 2.0


def logged(environment: Environment) -> tuple[list[PredictionRecord], int]:
    """The rows of all segments in the bucket, and how many segments are damaged anywhere but in their last line."""
    decode = msgspec.json.Decoder(PredictionRecord).decode
    rows, damaged = [], 0
    for key in environment.store.keys(f"predictions/{synthetic.MODEL}"):
        segment = environment.store.get(key) or b""
        found = [decode(raw) for raw in log_schema.lines(segment)]
        rows += found
        damaged += len(found) < segment.count(b"\n")
    return rows, damaged


def compare(answers: list[Answer], rows: list[PredictionRecord]) -> dict[str, int]:
    """Of the answers: not logged, logged twice, logged with other values; and rows that nobody was answered."""
    times = Counter(row.id for row in rows)
    by_id = {row.id: row for row in rows}
    wrong = 0
    for answer in answers:
        row = by_id.get(answer.prediction["id"])
        if row is not None:
            sent = {name: value for name, value in answer.row.items() if name not in ("customer", "group")}
            kept = {name: value for name, value in row.features.items() if name != "group"}
            answered = (answer.revision, answer.model_version, answer.prediction["score"])
            answered += (answer.prediction["prediction"], answer.row["customer"])
            stored = (row.revision, row.model_version, row.score, row.prediction, row.entity)
            right = (sent, answered) == (kept, stored)
            wrong += not (right and answer.sent - 0.1 <= row.at <= answer.at + 0.1)
    ids = {answer.prediction["id"] for answer in answers}
    return {
        "missing": len(ids - set(times)),
        "twice": sum(count > 1 for count in times.values()),
        "wrong": wrong,
        "foreign": len(set(times) - ids),
    }


def every_row_once(service: Service, requests: int, per_second: float) -> dict[str, Any]:
    with Load(service, per_second, threads=4, count=requests) as load:
        load.finish()
    service.stop()
    rows, damaged = logged(service.environment)
    return {
        "requests": requests,
        "failed": len(load.failed),
        "rows": len(rows),
        "damaged": damaged,
        **compare(load.good, rows),
    }


def kill(service: Service, seconds: float, per_second: float) -> dict[str, Any]:
    """kill -9 under load; the successor on the same spool must bring in what the dead one left there."""
    with Load(service, per_second) as load:
        time.sleep(seconds)
        killed_at = time.time()
        service.stop(signal.SIGKILL)
    answered = [answer for answer in load.good if answer.at <= killed_at]
    before = {row.id for row in logged(service.environment)[0]}
    left = len(list(service.spool.glob("*.open"))) + len(list(service.spool.glob("*.log")))
    service.start()
    service.until(lambda: not any(service.spool.glob("*.log")))
    service.stop()
    rows, damaged = logged(service.environment)
    after = {row.id for row in rows}
    lost = [killed_at - answer.at for answer in answered if answer.prediction["id"] not in after]
    found = compare(load.good, rows)
    return {
        "answered": len(answered),
        "segments_left": left,
        "rows_adopted": len(after - before),
        "lost": len(lost),
        "oldest_lost_seconds": round(max(lost, default=0.0), 2),
        "damaged": damaged,
        "twice": found["twice"],
        "wrong": found["wrong"],
    }


def disk_full(service: Service, requests: int, per_second: float) -> dict[str, Any]:
    """The service has a spool that cannot take the rows; what it logged and what it says it dropped add up to what was sent."""
    with Load(service, per_second, count=requests) as load:
        load.finish()
    good = len(load.good)
    service.until(
        lambda: service.metric("mlops_log_rows_total") + service.metric("mlops_log_dropped_rows_total") >= good
    )
    dropped = int(service.metric("mlops_log_dropped_rows_total"))
    service.stop()
    rows, damaged = logged(service.environment)
    waits = sorted(answer.at - answer.sent for answer in load.good)
    return {
        "requests": requests,
        "failed": len(load.failed),
        "dropped": dropped,
        "unaccounted": good - dropped - len(rows),
        "damaged": damaged,
        **{name: count for name, count in compare(load.good, rows).items() if name != "missing"},
        "slowest_ms": round(waits[-1] * 1000),
    }


@contextmanager
def little_disk(folder: Path, kilobytes: int) -> Generator[bool]:
    """A file system of that size at `folder`, where we may mount one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "spool", str(folder)]
    mounted = (
        bool(shutil.which("mount"))
        and sys.platform == "linux"
        and subprocess.run(mount, capture_output=True).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def little_files(service: Service, size: int) -> bool:
    """From now on each file of the running service ends there, where the system can do that to another process."""
    if not hasattr(resource, "prlimit") or service.process is None:
        return False
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (size, size))
    return True


def released(home: Path) -> Environment:
    environment = make_environment(home)
    digest = synthetic.publish(environment, synthetic.build(seed=1))
    promotion.release(environment.model(synthetic.MODEL), digest, "proof")
    return environment


@contextmanager
def running(environment: Environment, **settings: Any) -> Generator[Service]:
    with Service(environment, synthetic.MODEL, **settings) as service:
        service.serves(1)
        yield service


def prove(folder: Path) -> dict[str, Any]:
    environment = released(folder / "once")
    with running(environment) as service:
        once = every_row_once(service, 50_000, 2_000)
    kills = []
    for number in range(5):
        with running(released(folder / f"kill-{number}")) as service:
            kills.append(kill(service, 6 + number * 0.23, 200))
    full = released(folder / "full")
    with little_disk(full.home / "spool", 256) as mounted:
        settings = {"segment_seconds": 5} if mounted else {"spool_bytes": 1}
        with running(full, **settings) as service:
            disk = disk_full(service, 10_000, 500)
    worst = {
        name: max(found[name] for found in kills)
        for name in ("lost", "oldest_lost_seconds", "damaged", "twice", "wrong")
    }
    figures = {"once": once, "kill": {"times": len(kills), **worst}, "disk_full": {"mounted": mounted, **disk}}
    faults = [
        f"once: {name} is {once[name]}"
        for name in ("failed", "damaged", "missing", "twice", "wrong", "foreign")
        if once[name]
    ]
    faults += [f"kill: {name} is {worst[name]}" for name in ("damaged", "twice", "wrong") if worst[name]]
    if worst["oldest_lost_seconds"] > LOST_SECONDS:
        faults.append(f"kill: a row of {worst['oldest_lost_seconds']} s before the kill is missing")
    faults += [
        f"disk: {name} is {disk[name]}"
        for name in ("failed", "unaccounted", "damaged", "twice", "wrong", "foreign")
        if disk[name]
    ]
    faults += [] if disk["dropped"] else ["disk: it never was full"]
    return figures | {"holds": not faults, "reason": "; ".join(faults)}
