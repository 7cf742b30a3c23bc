"""Twenty processes write fifty records each into one release log, in each kind of bucket that is here: no revision twice, none lost."""

from __future__ import annotations

import base64
import hashlib
import hmac
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import boto3
import httpx

from environments.local.platform import free_port
from mlops.environment import ROOT
from mlops.errors import ConflictError
from mlops.keys import Keyring
from mlops.releases import ReleaseLog
from mlops.store import Store

WRITERS, RECORDS = 20, 50
_AZURE = "devstoreaccount1"  # of every emulator, as is its key
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def process(*command: str | Path, ready: Callable[[], Any], **told: str) -> Generator[None]:
    with subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | told,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        deadline = time.monotonic() + 60
        while True:
            try:
                ready()
                break
            except Exception:
                if running.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield
        running.kill()


def s3(port: int) -> dict[str, str]:
    told = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "testtest",
        "AWS_REGION": "us-east-1",
    }
    os.environ |= told
    return told


def new_bucket() -> None:
    boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(
        Bucket="releases"
    )


@contextmanager
def folder(path: Path) -> Generator[str]:
    yield str(path / "bucket")


@contextmanager
def moto(path: Path) -> Generator[str]:
    s3(port := free_port(19100))
    # One request at a time: moto's put-if-absent looks first and writes then, where S3's is one step.
    imports = "from moto.server import DomainDispatcherApplication, create_backend_app; from werkzeug.serving import run_simple"
    serve = f"run_simple('127.0.0.1', {port}, DomainDispatcherApplication(create_backend_app), threaded=False)"
    with process(sys.executable, "-c", f"{imports}; {serve}", ready=new_bucket):
        yield "s3://releases/prefix"


@contextmanager
def versitygw(path: Path) -> Generator[str]:
    told = s3(port := free_port(17070))
    (path / "buckets").mkdir()
    keys = {"ROOT_ACCESS_KEY": told["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": told["AWS_SECRET_ACCESS_KEY"]}
    with process("versitygw", "--port", f"127.0.0.1:{port}", "posix", path / "buckets", ready=new_bucket, **keys):
        yield "s3://releases/prefix"


@contextmanager
def azurite(path: Path) -> Generator[str]:
    url = f"http://127.0.0.1:{(port := free_port(10000))}"
    os.environ |= {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": url}

    def new_container() -> None:
        date, version = formatdate(usegmt=True), "2021-08-06"
        signed = (
            f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:{version}\n/{_AZURE}/{_AZURE}/releases\nrestype:container"
        )
        mac = base64.b64encode(
            hmac.new(base64.b64decode(_AZURE_KEY), signed.encode(), hashlib.sha256).digest()
        ).decode()
        headers = {"x-ms-date": date, "x-ms-version": version, "authorization": f"SharedKey {_AZURE}:{mac}"}
        httpx.put(f"{url}/{_AZURE}/releases?restype=container", headers=headers).raise_for_status()

    command = (
        "azurite-blob",
        "--location",
        path,
        "--blobPort",
        str(port),
        "--skipApiVersionCheck",
        "--disableTelemetry",
    )
    with process(*command, ready=new_container):
        yield "az://releases/prefix"


BUCKETS = {"a folder": folder, "moto": moto, "VersityGW": versitygw, "Azurite": azurite}
_NEEDS = {"VersityGW": "versitygw", "Azurite": "azurite-blob"}


def release_log(url: str, keyring: Path) -> ReleaseLog:
    return ReleaseLog(Store(url), "m", Keyring(keyring), "local")


def write(url: str, keyring: Path, writer: int, records: int) -> list[tuple[int, str]]:
    """Revision and champion of each record."""
    log, written = release_log(url, keyring), []
    for number in range(records):
        champion = f"{writer:032x}{number:032x}"
        while True:
            try:
                written.append((log.append(champion, "writers").revision, champion))
                break
            except ConflictError:  # many were faster, many times
                continue
    return written


def contend(url: str, writers: int, records: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(writers) as pool:
        keyring = Path(folder, "keyring.json")
        Keyring(keyring).new("approve", "local")
        shares = [(url, keyring, each, records) for each in range(writers)]
        told = [pair for pairs in pool.starmap(write, shares) for pair in pairs]
        log = release_log(url, keyring).read()
    kept = {(release.revision, release.champion) for release in log}
    return {
        "records": len(log),
        "twice": len(told) - len({revision for revision, _ in told}),
        "lost": len(set(told) - kept),
        "gaps": log[-1].revision - len(log),
    }


def prove(path: Path, writers: int = WRITERS, records: int = RECORDS) -> dict[str, Any]:
    found = {}
    for name, bucket in BUCKETS.items():
        if shutil.which(_NEEDS.get(name, "sh")):
            (path / name).mkdir()
            with bucket(path / name) as url:
                found[name] = contend(url, writers, records)
    right = {"records": writers * records, "twice": 0, "lost": 0, "gaps": 0}
    wrong = [name for name, figures in found.items() if figures != right]
    return {"buckets": found, "writers": writers, "holds": not wrong and len(found) > 1, "reason": ", ".join(wrong)}
