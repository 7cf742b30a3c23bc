"""How Pulumi's state gets into the bucket that Pulumi itself has made, with a stand-in for its CLI."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mlops.environment import ROOT

URL, PROVIDER = "s3://mlops-state-1?region=us-east-1&awssdk=v2", "awskms://alias/mlops-state?region=us-east-1&awssdk=v2"
# It notes the backend and the words of each call, and fails where the test wants it to.
CLI = f"""#!/bin/sh
echo "${{PULUMI_BACKEND_URL}} $*" >> "$CALLS"
[ -n "$FAILS" ] && case "$*" in $FAILS) exit 1 ;; esac
case "$*" in
  whoami*) exit 1 ;;
  *" export "*) touch "$6" ;;
  *"output state") echo '{URL}' ;;
  *"output secretsProvider") echo '{PROVIDER}' ;;
esac
"""


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    fork, tools = tmp_path / "a fork", tmp_path / "bin"
    ignore = shutil.ignore_patterns("__pycache__", "local")
    shutil.copytree(ROOT / "environments", fork / "environments", ignore=ignore)
    shutil.copytree(ROOT / "infra", fork / "infra", ignore=ignore)
    shutil.copy(ROOT / "Pulumi.yaml", fork)
    tools.mkdir()
    (tools / "pulumi").write_text(CLI)
    (tools / "pulumi").chmod(0o755)
    return fork


def run(fork: Path, script: str, *words: str, fails: str = "") -> tuple[int, list[str]]:
    """Exit code, and `BACKEND WORDS` of each call of Pulumi."""
    calls = fork.parent / "calls"
    calls.write_text("")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
    told = {"PATH": f"{fork.parent / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls), "FAILS": fails}
    done = subprocess.run([fork / "environments" / script, *words], env=kept | told, capture_output=True, text=True)
    found = [line for line in calls.read_text().splitlines() if "whoami" not in line and "select" not in line]
    return done.returncode, found


def test_the_state_moves_into_the_bucket_that_it_describes(fork: Path) -> None:
    local, moving = "file://../../.mlops/pulumi", fork / ".mlops/pulumi/moving.json"
    assert run(fork, "account/up") == (0, [
        f"{local} up --stack shared --yes",
        f"{local} stack --stack shared output state",
        f"{local} stack --stack shared output secretsProvider",
        f"{local} stack --stack shared export --file {moving} --show-secrets",
        f"{URL} stack --stack shared import --file {moving}",
    ])  # fmt: skip
    assert run(fork, "account/up") == (0, [f"{URL} up --stack shared --yes"])
    assert run(fork, "pulumi", "aws/dev", "up")[1] == [f"{URL} up --stack dev"]
    assert run(fork, "pulumi", "dev", "up")[1] == [f"{URL} up --stack dev"]
    assert run(fork, "pulumi", "kind", "up")[1] == ["file://./.mlops/pulumi up --stack kind"]


@pytest.mark.parametrize("step", ["*up*", "*output*", "*export*", "*import*"])
def test_killed_at_any_step_the_local_state_still_counts(fork: Path, step: str) -> None:
    assert run(fork, "account/up", fails=step)[0] != 0
    assert run(fork, "pulumi", "account/shared", "up")[1] == ["file://../../.mlops/pulumi up --stack shared"]
    assert run(fork, "account/up")[0] == 0
    assert run(fork, "pulumi", "account/shared", "up")[1] == [f"{URL} up --stack shared"]
