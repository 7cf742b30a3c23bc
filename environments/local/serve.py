"""`mlops run`: the platform in the foreground, with a first model."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys

from environments.local.platform import Platform, console
from mlops import promotion
from mlops.environment import ROOT, Environment
from mlops.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(environment: Environment, name: str, train: bool) -> None:
    for each in _SIGNALS:
        signal.signal(each, _end)
    with contextlib.suppress(KeyboardInterrupt), Platform(environment, name) as platform:
        platform.wait_for_tracking()
        here, model = platform.environment, platform.environment.model(name)
        if train and not model.releases.read():
            console.print("no model yet: training and releasing the first one")
            train_and_release(platform)
        try:
            if model.releases.read():
                platform.wait("app", f"{here.endpoint}/readyz", lambda answer: not answer.json()["reason"])
            request = curl(here, name)
        except UserError as error:  # the release does not serve: it is fixed with the platform running
            request = str(error)
        console.print(f"predictions  {here.endpoint}/docs\nmetrics      {here.endpoint}/metrics")
        console.print(f"MLflow       {here.tracking}\nlogs         {platform.logs}\n")
        print(request, "\n\nCtrl-C ends it; the data stays in", here.home, flush=True)
        platform.watch()
    console.print("stopped")


def _end(*_: object) -> None:
    for each in _SIGNALS:  # one is enough: another would cut the stop short
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def curl(environment: Environment, name: str) -> str:
    """A request that works, with the client's key."""
    champion = promotion.champion(environment.model(name))
    if champion is None:
        return f"curl {environment.endpoint}/readyz"
    body = json.dumps({"rows": champion.json("golden.json")["rows"][:1]})
    key = (environment.home / "keys" / "client.key").read_text()
    return f"curl -s {environment.endpoint}/predict -H 'Authorization: Bearer {key}' -d {shlex.quote(body)}"


def train_and_release(platform: Platform) -> None:
    with platform.log("train").open("ab") as file:

        def mlops(*words: str) -> bytes:
            command = [sys.executable, "-m", "cli", "--json", "--model", platform.model, *words]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file)
            file.write(done.stdout)
            if done.returncode:
                hint = f"the first model was not released; see {file.name}, then: mlops {words[0]}"
                raise UserError(words[0], f"exit code {done.returncode}", hint)
            return done.stdout

        digest = json.loads(mlops("train").splitlines()[-1])["digest"]
        mlops("release", digest, "--why", "first model")
