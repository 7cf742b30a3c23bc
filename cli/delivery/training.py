"""Trainings of pipelines, and what a change of `training/` does to them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cli.delivery.preview import Gate
from environments.local.platform import Platform
from mlops.environment import ROOT, Environment, models


def train(environment: str, model: str, action: str, why: str) -> tuple[dict[str, Any], int]:
    """`mlops train` there, or `retrain` if there is an action; its answer and exit code."""
    words = ["retrain", "--action", action, "--why", why] if action else ["train"]
    return _mlops(ROOT, "--env", environment, *(["--model", model] if model else []), *words)


def compare(before: Path, say: Callable[[str], None]) -> list[Gate]:
    """Each model trained as main does it, then as this branch does, by the gate that a release would meet: all in a folder
    that is thrown away."""
    return [_compared(name, before, say) for name in models()]


def _compared(name: str, before: Path, say: Callable[[str], None]) -> Gate:
    with TemporaryDirectory() as folder:
        variables = {
            "MLOPS_HOME": folder,
            "MLOPS_MODEL": name,
            "MLOPS_BUCKET": f"{folder}/bucket",
            "MLOPS_ENV": "local",
        }
        os.environ.update(variables)
        with Platform(Environment.load("local"), name) as platform:
            platform.wait_for_tracking()
            then: dict[str, Any] = {}
            if (before / "training" / "models" / name).exists():
                say(f"{name}: train main")
                then, _ = _mlops(before, "train")
                if then.get("gate") == "passed":
                    _mlops(before, "release", then["digest"], "--why", "main")
            say(f"{name}: train this branch")
            now, _ = _mlops(ROOT, "train")
    if "gate" not in now:
        return Gate(model=name, decision="not reached", reasons=[now["error"]["hint"][:2000]])
    metrics = {key: (then.get("metrics", {}).get(key), value) for key, value in now["metrics"].items()}
    return Gate(model=name, decision=now["gate"], reasons=now["reasons"], metrics=metrics)


def _mlops(folder: Path, *words: str) -> tuple[dict[str, Any], int]:
    """The first thing that a command of that folder's code answers, and its exit code."""
    command, env = [sys.executable, "-m", "cli", "--json", *words], os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    silent = {
        "error": {"key": words[-1], "value": done.returncode, "hint": "ended without an answer; see the log above"}
    }
    return next(
        (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")), silent
    ), done.returncode
