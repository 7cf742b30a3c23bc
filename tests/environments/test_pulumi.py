"""`environments/pulumi`: where the state is, and whose secrets are in it, whichever clone asks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mlops.environment import ROOT

# What it is told, and what it was called with.
_PULUMI = """#!/bin/sh
[ "$1" = whoami ] && exit 1
echo "$*" "backend=$PULUMI_BACKEND_URL" "fallback=$PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER" "file=$PULUMI_CONFIG_PASSPHRASE_FILE" >> "$SEEN"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("environments/pulumi", "environments/aws/Pulumi.dev.yaml", "Pulumi.yaml", "infra/aws/Pulumi.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "environments" / "account").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pulumi").write_text(_PULUMI)
    (tmp_path / "bin" / "pulumi").chmod(0o755)
    return tmp_path


def run(clone: Path, *words: str, **told: str) -> tuple[str, list[str]]:
    seen = clone / "seen"
    seen.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PULUMI_", "SECRETS_"))}
    env = kept | {"PATH": f"{clone / 'bin'}:{os.environ['PATH']}", "SEEN": str(seen)} | told
    done = subprocess.run([clone / "environments" / "pulumi", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, seen.read_text().splitlines() if seen.exists() else []


def test_a_clone_takes_the_provider_of_secrets_from_the_state(clone: Path) -> None:
    """Only the clone that made a stack has in its file what `stack select --create` wrote there."""
    state = "PULUMI_BACKEND_URL='s3://state'\nSECRETS_PROVIDER='awskms://alias/x'\n"
    (clone / "environments" / "account" / "shared.state").write_text(state)
    _, (select, up) = run(clone, "dev", "up", "--yes")
    assert "--secrets-provider=awskms://alias/x" in select
    assert "backend=s3://state fallback=true file=" in up
    assert up.endswith("file="), "there is no passphrase, and none is asked for"
    assert not (clone / ".mlops" / "pulumi" / "passphrase").exists()


def test_without_an_account_state_and_passphrase_are_here(clone: Path) -> None:
    shutil.rmtree(clone / "environments" / "aws")
    _, (_, up) = run(clone, "kind", "up")
    assert f"file={clone}/.mlops/pulumi/passphrase" in up
    assert (clone / ".mlops" / "pulumi" / "passphrase").stat().st_mode & 0o77 == 0
    shown, called = run(clone, "kind", "backend")
    assert (shown.strip(), called) == (f"file://{clone}/.mlops/pulumi", [])
    shown, _ = run(clone, "kind", "backend", PULUMI_BACKEND_URL="s3://mine")
    assert shown.strip() == "s3://mine"
