"""The bucket goes away under load, hanging or dead: requests go on, and what waited arrives when it is back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from environments.local.platform import free_port
from mlops import promotion
from mlops.environment import ROOT
from tests import synthetic
from tests.load import Load
from tests.proofs.log import compare, logged
from tests.proofs.swap import against_the_log
from tests.service import Service
from tests.service import environment as make_environment

BACK_SECONDS = 15.0
_GIVES_UP_SECONDS = 10.0  # a call to a bucket that hangs
Kind = Literal["hangs", "dies"]


class Bucket:
    """An S3 API in a process of its own, that can hang (SIGSTOP) or die; what it held it has again when it is back."""

    def __init__(self) -> None:
        self.port = free_port(19400 + os.getpid() % 97 * 5)
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        self.url = "s3://outage/prefix"
        self._s3 = boto3.client(
            "s3",
            endpoint_url=self.variables["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="t",
            aws_secret_access_key="t",
        )
        self._kept: dict[str, bytes] = {}

    def __enter__(self) -> Bucket:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def go(self, kind: Kind) -> None:
        if kind == "hangs":
            self._process.send_signal(signal.SIGSTOP)
            return
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket="outage")
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        self._kept = {key: self._s3.get_object(Bucket="outage", Key=key)["Body"].read() for key in keys}
        self._process.kill()
        self._process.wait()

    @property
    def away(self) -> bool:
        try:
            httpx.get(self.variables["AWS_ENDPOINT_URL"], timeout=1)
        except httpx.TransportError:
            return True
        return False

    def back(self, kind: Kind) -> None:
        if kind == "hangs":
            self._process.send_signal(signal.SIGCONT)
        else:
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self._s3.create_bucket(Bucket="outage")
                break
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
        assert self._process.poll() is None, "another process answers at this port"
        for key, data in self._kept.items():
            self._s3.put_object(Bucket="outage", Key=key, Body=data)


def outage(
    service: Service, bucket: Bucket, kind: Kind, seconds: float, digest: str, per_second: float
) -> dict[str, Any]:
    """`digest`: released as soon as the bucket is back; it must have been released before."""
    environment = service.environment
    releases = environment.model(synthetic.MODEL).releases
    with Load(service, per_second) as load:
        time.sleep(1)
        gone = time.time()
        assert service.process
        # Stopped for a moment: what is uploaded while the bucket dies would be lost with it.
        service.process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        bucket.go(kind)
        service.process.send_signal(signal.SIGCONT)
        time.sleep(seconds)
        away = bucket.away
        noticed = service.metric("mlops_bucket_errors_total")
        alive = service.http.get("/healthz").status_code == service.http.get("/readyz").status_code == 200
        returned = time.time()
        bucket.back(kind)
        release = releases.append(digest, "after the outage")
        service.serves(release.revision, 60)
        time.sleep(0.5)
    new = min(answer.at for answer in load.good if answer.revision == release.revision)
    answered = {answer.prediction["id"] for answer in load.good}
    service.until(lambda: answered <= {row.id for row in logged(environment)[0]}, 60)
    arrived = time.time()
    rows, damaged = logged(environment)
    during = [answer for answer in load.answers if gone <= answer.sent <= returned]
    found, against = compare(load.good, rows), against_the_log(load.good, releases.read())
    return {
        "away_seconds": round(returned - gone, 1),
        "requests": len(load.answers),
        "requests_while_away": len(during),
        "failed": len(load.failed),
        "slowest_ms": round(max(answer.at - answer.sent for answer in load.answers) * 1000),
        "away": away,
        "alive": alive,
        "errors_counted": int(noticed),
        "swap_seconds": round(new - returned, 2),
        "log_seconds": round(arrived - returned, 2),
        "dropped": int(service.metric("mlops_log_dropped_rows_total")),
        "missing": found["missing"],
        "twice": found["twice"],
        "wrong": found["wrong"],
        "damaged": damaged,
        **{name: count for name, count in against.items() if name != "behind_seconds"},
    }


def faults(found: dict[str, Any]) -> list[str]:
    nothing = ("failed", "dropped", "missing", "twice", "wrong", "damaged", "foreign", "ahead", "backwards")
    listed = [f"{name} is {found[name]}" for name in nothing if found[name]]
    if not found["alive"]:
        listed.append("a health check failed while the bucket was away")
    if not found["away"] or not found["requests_while_away"]:
        listed.append("the bucket was not away, or nothing was asked meanwhile")
    if not found["errors_counted"] and found["away_seconds"] > 2 * _GIVES_UP_SECONDS:
        listed.append("no metric says that the bucket was away")
    if found["swap_seconds"] > BACK_SECONDS:
        listed.append(f"the swap took {found['swap_seconds']} s after the return")
    return listed


def rehearse(
    folder: Path, kind: Kind, seconds: float, per_second: float, bundles: list[Any], **settings: Any
) -> dict[str, Any]:
    """Two releases, then the outage; AWS_* must point to a bucket of `Bucket`."""
    with Bucket() as bucket:
        os.environ.update(bucket.variables)
        environment = make_environment(folder, bucket.url)
        digests = [synthetic.publish(environment, bundle) for bundle in bundles]
        with Service(environment, synthetic.MODEL, **settings) as service:
            for digest in digests:
                service.serves(promotion.release(environment.model(synthetic.MODEL), digest, "proof").revision)
            return outage(service, bucket, kind, seconds, digests[0], per_second)


def stops_in_time(service: Service, bucket: Bucket) -> float:
    """Seconds that a replica needs to end when the bucket hangs; its rows must stay in the spool."""
    bucket.go("hangs")
    try:
        for _ in range(5):
            service.http.post("/predict", json={"rows": [synthetic.request()]})
        started = time.monotonic()
        service.stop()
        return round(time.monotonic() - started, 1)
    except httpx.HTTPError as error:
        raise AssertionError(f"a request failed: {error!r}") from error
    finally:
        bucket.back("hangs")


def prove(folder: Path) -> dict[str, Any]:
    bundles = [synthetic.build(seed=1), synthetic.build(seed=2, learning_rate=0.2)]
    figures: dict[str, Any] = {}
    reasons = []
    for kind in ("hangs", "dies"):
        figures[kind] = rehearse(folder / kind, kind, 300, 30, bundles, poll_seconds=2.0, segment_seconds=10)
        reasons += [f"{kind}: {fault}" for fault in faults(figures[kind])]
    return figures | {"holds": not reasons, "reason": "; ".join(reasons)}
