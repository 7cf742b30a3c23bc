"""What the platform survives on a real cluster (KUBECONFIG, images there; it is applied anew, and gone afterwards)."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cli import backup
from cli.cluster import Cluster
from tests.cluster import cluster as real
from tests.cluster.test_platform import golden_row, key, mlops, predict
from tests.load import Load

RUNS, SECONDS, PER_SECOND = 5, 60, 300


class Sink:
    """What Alertmanager tells, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, str, str]] = []
        sink = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                sink.told += [
                    (time.monotonic(), alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"]
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = http.server.ThreadingHTTPServer(("", 0), Handler)
        address = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()[0]
        self.url = f"http://{address}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def heard(self, alert: str, status: str, since: float) -> bool:
        return any(at >= since and (name, how) == (alert, status) for at, name, how in self.told)


def prove(folder: Path) -> dict[str, Any]:
    sink = Sink()
    real.delete()
    started = time.monotonic()
    real.apply({"alerts.webhook": sink.url})
    real.wait_until_ready(600)
    found: dict[str, Any] = {"ready_seconds": round(time.monotonic() - started)}
    cluster = Cluster.of("kind")
    assert cluster
    mlops("snapshot")
    trained = mlops("train")
    released = time.monotonic()
    mlops("release", trained["digest"], "--why", "proof")
    row = golden_row(cluster, trained["digest"])
    real.until(lambda: predict(cluster, row).status_code == 200, 60)
    found["first_answer_seconds"] = round(time.monotonic() - released, 1)
    caller = SimpleNamespace(url=f"http://127.0.0.1:{real.NODE_PORT}", http=SimpleNamespace(headers=key()))
    found["kill"] = [under_load(caller, row, kill_one) for _ in range(RUNS)]
    found["rolling"] = [under_load(caller, row, roll) for _ in range(RUNS)]
    found["alerts"] = page(sink)
    found["autoscaling"] = scale(caller, row)
    found["backup"] = save_and_restore(cluster, folder)
    real.delete()
    bars = {
        "ready ≤ 360 s": found["ready_seconds"] <= 360,
        "first answer ≤ 30 s": found["first_answer_seconds"] <= 30,
        "no request failed": sum(run["failed"] for run in found["kill"] + found["rolling"]) == 0,
        "page ≤ 120 s": found["alerts"]["page_seconds"] <= 120,
        "resolved ≤ 300 s": found["alerts"]["resolved_seconds"] <= 300,
        "out and in again": found["autoscaling"]["most"] > 2 and found["autoscaling"]["at_last"] == 2,
        "all came back": found["backup"]["equal"],
        "restored ≤ 600 s": found["backup"]["seconds"] <= 600,
    }
    missed = [bar for bar, holds in bars.items() if not holds]
    return found | {"holds": not missed, "reason": "; ".join(missed)}


def under_load(caller: Any, row: dict[str, Any], fault: Callable[[], None]) -> dict[str, Any]:
    real.wait_until_ready(120)
    time.sleep(5)
    with Load(caller, per_second=PER_SECOND, threads=6, count=PER_SECOND * SECONDS, row=lambda _: row) as load:
        time.sleep(SECONDS / 4)
        fault()
        load.finish()
    took = sorted(answer.at - answer.sent for answer in load.answers)
    rate = len(load.answers) / (load.answers[-1].at - load.answers[0].sent)
    return {
        "requests": len(load.answers), "per_second": round(rate), "failed": len(load.failed),
        "p99_ms": round(took[len(took) * 99 // 100] * 1000, 1), "most_ms": round(took[-1] * 1000),
    }  # fmt: skip


def apps() -> list[int]:
    """The app's processes, which on a cluster of this machine are this machine's."""
    found = subprocess.run(["pgrep", "-f", "^python -m app"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def kill_one() -> None:
    os.kill(apps()[0], signal.SIGKILL)


def roll() -> None:
    real.mlops_namespace("rollout", "restart", "deploy/serving")
    real.mlops_namespace("rollout", "status", "deploy/serving", "--timeout=120s")


def page(sink: Sink) -> dict[str, Any]:
    """All replicas gone at once, and back once somebody was paged."""
    started = time.monotonic()
    real.mlops_namespace("scale", "deploy/serving", "--replicas=0")
    for pid in apps():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    paged = real.until(lambda: sink.heard("ServingDown", "firing", started), 300)
    real.mlops_namespace("scale", "deploy/serving", "--replicas=2")
    back = time.monotonic()
    real.until(lambda: sink.heard("ServingDown", "resolved", back), 600)
    return {"page_seconds": round(paged), "resolved_seconds": round(time.monotonic() - back)}


def scale(caller: Any, row: dict[str, Any]) -> dict[str, Any]:
    def replicas() -> int:
        return real.get("deployments", "-l", "app.kubernetes.io/name=serving")[0]["spec"]["replicas"]

    most, deadline = 2, time.monotonic() + 150
    with Load(caller, per_second=100_000, threads=32, row=lambda _: row) as load:
        while most < 4 and time.monotonic() < deadline:
            time.sleep(5)
            most = max(most, replicas())
    started = time.monotonic()
    with suppress(AssertionError):
        real.until(lambda: replicas() == 2, 480)
    return {
        "most": most,
        "failed": len(load.failed),
        "at_last": replicas(),
        "in_again_seconds": round(time.monotonic() - started),
    }


def save_and_restore(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """A hundred runs, ten versions, aliases, tags, artifacts, users, releases: gone, and back."""
    fill = """
import mlflow, os, tempfile
mlflow.set_tracking_uri(os.environ['MLOPS_TRACKING']); c = mlflow.MlflowClient()
e = c.create_experiment('backup' + os.urandom(3).hex()); m = 'backup' + os.urandom(3).hex(); c.create_registered_model(m, tags={'a': 'b'})
for i in range(100):
    r = c.create_run(e, tags={'n': str(i)}); c.log_param(r.info.run_id, 'p', i); c.log_metric(r.info.run_id, 'm', i / 3)
    if i % 10 == 0:
        c.log_text(r.info.run_id, 'artifact %d' % i * 1000, 'bundle/file.txt')
        c.create_model_version(m, r.info.artifact_uri + '/bundle', r.info.run_id, tags={'digest': str(i)})
    c.set_terminated(r.info.run_id)
c.set_registered_model_alias(m, 'champion', '7')
"""
    cluster.ask("exec", "deploy/controller", "--", "python", "-c", fill)
    before = everything(cluster)
    started = time.monotonic()
    sizes = backup.save(cluster, folder / "backup", lambda _: None)
    saved = time.monotonic() - started
    for name in backup.DATABASES:
        in_postgres(cluster, f"dropdb --force {name}")
    cluster.ask("exec", "bucket-0", "--", "sh", "-c", "rm -rf /data/buckets/mlops/*")
    started = time.monotonic()
    backup.load(cluster, folder / "backup", lambda _: None)
    restored = time.monotonic() - started
    after = everything(cluster)
    kinds = {name: (len(before[name]), before[name] == after[name]) for name in before}
    return {
        "equal": all(same for _, same in kinds.values()), "lines": {name: number for name, (number, _) in kinds.items()},
        "bytes": sizes, "backup_seconds": round(saved), "seconds": round(restored),
    }  # fmt: skip


def in_postgres(cluster: Cluster, command: str) -> str:
    return cluster.ask("exec", backup._POSTGRES, "--", "sh", "-c", backup._TOOLS + command).decode()


def everything(cluster: Cluster) -> dict[str, list[str]]:
    """Each row of both databases, and the hash of each object except those that the app continues to write."""
    found = {}
    for name in backup.DATABASES:
        rows = in_postgres(cluster, f"pg_dump --data-only --inserts --rows-per-insert=1 {name}").splitlines()
        found[name] = sorted(row for row in rows if row.startswith("INSERT"))
    packed = cluster.ask("exec", backup._BUCKET, "--", "sh", "-c", backup._STORE.format("pack(sys.stdout.buffer)"))
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        kept = [entry for entry in archive if not entry.name.startswith(("predictions/", "outcomes/", "replicas/"))]
        hashes = {entry.name: hashlib.sha256(content(archive, entry)).hexdigest() for entry in kept}
    found["bucket"] = sorted(f"{name} {digest}" for name, digest in hashes.items())
    return found


def content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(entry)
    return file.read() if file else b""
