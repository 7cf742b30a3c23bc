from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from cli.cluster import Cluster
from tests.cluster import cluster as real


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is no cluster the tests say so; where there is one, one process has it to itself."""
    there = "KUBECONFIG" in os.environ and shutil.which("kubectl")
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.xdist_group("cluster"))
            item.add_marker(pytest.mark.timeout(900))
            if not there:
                item.add_marker(pytest.mark.skip(reason="needs a cluster: set KUBECONFIG"))


@pytest.fixture(scope="session")
def platform() -> Iterator[Cluster]:
    """Applied to an empty cluster, without a model, every workload Ready; gone again at the end."""
    if not real.MODEL or not real.images_present():
        pytest.skip("needs a model, and the images: mlops --env kind images")
    real.delete()
    real.apply()
    real.wait_until_ready()
    cluster = Cluster.of("kind")
    assert cluster
    yield cluster
    if "MLOPS_KEEP_CLUSTER" not in os.environ:
        real.delete()
