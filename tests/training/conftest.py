from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from environments.local.platform import free_port
from mlops.environment import Environment
from mlops.tracking import reachable
from tests.service import environment as make_environment


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
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
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
