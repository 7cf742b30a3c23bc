from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from environments.local.platform import free_port
from mlops.bundle import Bundle
from mlops.environment import Environment
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
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
    for _ in range(200):
        try:
            client.list_buckets()
            break
        except Exception:
            if server.poll() is not None:
                raise
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
