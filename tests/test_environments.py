"""The short form of `make prove environments`: many of them at once, none of which says anything to us."""

from pathlib import Path

import pytest

from mlops.environment import Environment
from tests import synthetic
from tests.proofs import environments
from tests.proofs.crashes import Place
from tests.service import Service

# Those that exclude each other are apart.
TOGETHER = [
    ["http_proxy", "a SOCKS proxy", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "AWS_PROFILE", "GIT_WORK_TREE", "PROMETHEUS_MULTIPROC_DIR",
     "PYTHONOPTIMIZE", "LC_ALL=C", "TZ=Asia/Kolkata", "umask 077", "HOME not set", "SSL_CERT_FILE",
     "REQUESTS_CA_BUNDLE", "MPLBACKEND", "OMP_NUM_THREADS", "TMPDIR"],
    ["a proxy, not for networks", "https_proxy", "MLFLOW_EXPERIMENT_ID", "MLFLOW_REGISTRY_URI", "MLFLOW_ENABLE_ASYNC_LOGGING",
     "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "GIT_INDEX_FILE", "PYTHONIOENCODING", "LC_ALL missing", "PYTHONHASHSEED",
     "TZ=America/St_Johns", "HOME missing", "MLOPS_HOME with %2F", "a slash at the end"],
]  # fmt: skip


@pytest.mark.timeout(600)
def test_what_the_shell_says_to_other_programs_changes_nothing(tracked: Environment, tmp_path: Path) -> None:
    environments.write_model(tmp_path / "models")
    at = Place(tracked, tmp_path / "models", tracked.tracking)
    with Service(tracked, synthetic.MODEL) as service:
        made = environments.caller(at, service)
        for names in TOGETHER:
            assert set(made.ends(environments.together(names)).values()) == {"as without"}, names
