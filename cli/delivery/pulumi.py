"""Pulumi's CLI on a stack of this repository, or of a worktree of it, with what its program needs."""

import subprocess
import sys
from pathlib import Path

from mlops.environment import ROOT


def stacks(environment: str) -> list[str]:
    """As `environments/pulumi` takes them, in the order in which they are made."""
    on_aws = (ROOT / "environments" / "aws" / f"Pulumi.{environment}.yaml").exists()
    return [*([f"aws/{environment}"] if on_aws else []), environment]


def pulumi(stack: str, *words: str, folder: Path = ROOT, quiet: bool = True) -> subprocess.CompletedProcess[str]:
    """`quiet`: what it says is returned, else shown."""
    runs_program = words[0] not in ("backend", "cancel")
    if runs_program and (stack.startswith("aws/") or folder != ROOT):
        target = "aws" if stack.startswith("aws/") else "install"
        subprocess.run(["make", "-s", target], cwd=folder, check=True, stdout=sys.stderr)
    command = [str(folder / "environments" / "pulumi"), stack, *words]
    return subprocess.run(command, capture_output=quiet, text=True)
