from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from environments.local.platform import free_port
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.tracking import reachable
from tests import synthetic
from tests.service import environment as make_environment


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return make_environment(tmp_path)


@pytest.fixture(scope="session")
def first_bundle() -> Bundle:
    return synthetic.build(seed=1)


@pytest.fixture(scope="session")
def second_bundle() -> Bundle:
    return synthetic.build(seed=2, learning_rate=0.2)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 API in a process of its own."""
    port = free_port(19000)
    # One request at a time: moto's put-if-absent looks first and writes then, where S3's is one step.
    serve = f"run_simple('127.0.0.1', {port}, DomainDispatcherApplication(create_backend_app), threaded=False)"
    imports = "from moto.server import DomainDispatcherApplication, create_backend_app; from werkzeug.serving import run_simple"
    server = subprocess.Popen(
        [sys.executable, "-c", f"{imports}; {serve}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            client.list_buckets()
            break
        except Exception:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """s3://… of an empty bucket; AWS_* point to it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    name = "b" + str(abs(hash(request.node.nodeid)))
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/prefix"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server, one for all the processes of a test run: the first starts it, the last stops it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    address = shared / "mlflow.address"
    with (shared / "mlflow.start").open("w") as start, (shared / "mlflow.users").open("w") as users:
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        if not address.exists():
            address.write_text(_start(shared))
        url, pid = address.read_text().split()
        fcntl.flock(start, fcntl.LOCK_UN)
        yield url
        fcntl.flock(start, fcntl.LOCK_EX)
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        os.killpg(int(pid), signal.SIGTERM)
        address.unlink()


def _start(folder: Path) -> str:
    url = f"http://127.0.0.1:{(port := free_port(5100))}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "mlflow.log").open("w") as log:
        told = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as the platform runs it
        server = subprocess.Popen(command, env=told, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while not reachable(url):
        assert server.poll() is None, (folder / "mlflow.log").read_text()[-2000:]
        assert time.monotonic() < deadline, "MLflow does not answer"
        time.sleep(0.1)
    return f"{url} {server.pid}"


@pytest.fixture
def tracked(tmp_path: Path, mlflow_server: str) -> Environment:
    """A fresh environment whose trainings MLflow records."""
    return make_environment(tmp_path).model_copy(update={"tracking": mlflow_server})
