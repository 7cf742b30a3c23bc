"""`mlops run`: the platform in the foreground, with a first model."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
from typing import Any

from environments.local.platform import Platform, console
from mlops import promotion
from mlops.client import api_key
from mlops.environment import ROOT, Environment
from mlops.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stop(BaseException):
    """Not KeyboardInterrupt: Python dies of SIGINT after one that was caught, if it was raised inside `exec`."""


def serve(environment: Environment, name: str, train: bool) -> None:
    for each in _SIGNALS:
        signal.signal(each, _end)
    with contextlib.suppress(_Stop), Platform(environment, name) as platform:
        platform.wait_for_tracking()
        here, model = platform.environment, platform.environment.model(name)
        if train and not model.releases.read():
            console.print("no model yet: training and releasing the first one")
            if problem := train_and_release(platform):
                again = f".venv/bin/mlops --model {name} train"
                print(f"no model is released yet: {problem}\nThe platform stays up; when that is fixed: {again}\n")
        try:
            if model.releases.read():
                platform.wait("app", f"{here.endpoint}/readyz", lambda answer: not answer.json()["reason"])
            request = curl(here, name)
        except UserError as error:  # the release does not serve: it is fixed with the platform running
            request = str(error)
        console.print(f"predictions  {here.endpoint}/docs\nmetrics      {here.endpoint}/metrics")
        console.print(f"MLflow       {here.tracking}\nlogs         {platform.logs}")
        print(f"status       {status_page(here)}\n")
        print(request, "\n\nCtrl-C ends it; the data stays in", here.home, flush=True)
        platform.watch()
    console.print("stopped")


def _end(*_: object) -> None:
    for each in _SIGNALS:  # one is enough: another would cut the stop short
        signal.signal(each, signal.SIG_IGN)
    raise _Stop


def status_page(environment: Environment) -> str:
    """Its address, with the client's key."""
    running = json.loads((environment.home / "running.json").read_text("utf-8"))
    return f"{running['status'].replace('://', f'://client:{api_key(environment)}@')}/"


def curl(environment: Environment, name: str) -> str:
    """A request that works, with the client's key."""
    champion = promotion.champion(environment.model(name))
    if champion is None:
        return f"curl --noproxy '*' {environment.endpoint}/readyz"
    body = json.dumps({"rows": champion.json("golden.json")["rows"][:1]})
    key = (environment.home / "keys" / "client.key").read_text("utf-8")
    return (
        f"curl -s --noproxy '*' {environment.endpoint}/predict -H 'Authorization: Bearer {key}' -d {shlex.quote(body)}"
    )


def train_and_release(platform: Platform) -> str:
    """'' if a model is released, else why not."""
    with platform.log("train").open("ab") as file:

        def mlops(*words: str) -> dict[str, Any]:
            command = [sys.executable, "-m", "cli", "--json", "--model", platform.model, *words]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file)
            file.write(done.stdout)
            crashed = {"error": {"key": words[0], "value": done.returncode, "hint": f"see {file.name}"}}
            return json.loads((done.stdout.splitlines() or [json.dumps(crashed)])[-1])

        found = mlops("train")
        if "error" not in found:
            found = mlops("release", found["digest"], "--why", "first model")
        error = found.get("error")
        return f"{error['key']} is {error['value']!r}: {error['hint']}" if error else ""
