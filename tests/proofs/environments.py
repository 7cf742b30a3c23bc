"""Whatever a shell says to other programs, train, predict, status and the platform end as without it, or name the variable.

Proxies, MLFLOW_*, AWS_*, GIT_*, PROMETHEUS_*, PYTHON*, locales, zones, umask, certificates and folders, one at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mlops import promotion
from mlops.environment import ROOT
from tests import synthetic
from tests.proofs import crashes
from tests.proofs.crashes import Place
from tests.service import Service

Told = Mapping[str, str | None]  # None: the variable is not set

_ELSEWHERE = "http://127.0.0.1:9"  # nobody answers there
_MISSING = "/nowhere/at/all"
_ID = "0123456789abcdef0123456789abcdef"
_VERBS = ("train", "predict", "status")
_OURS = ("MLOPS_ENDPOINT", "MLOPS_TRACKING")  # what is said of these comes after the address

# HERE is the proof's folder, where `other` is a git repository and `home` what MLOPS_HOME of another name is a copy of.
ENVIRONMENTS: dict[str, Told] = {
    "http_proxy": {"http_proxy": _ELSEWHERE},
    "HTTP_PROXY": {"HTTP_PROXY": _ELSEWHERE},
    "https_proxy": {"https_proxy": _ELSEWHERE, "HTTPS_PROXY": _ELSEWHERE},
    "all_proxy": {"all_proxy": _ELSEWHERE, "ALL_PROXY": _ELSEWHERE},
    "a SOCKS proxy": {"ALL_PROXY": "socks5://127.0.0.1:9"},
    "a SOCKS proxy that resolves names": {"all_proxy": "socks5h://127.0.0.1:9"},
    "a proxy without scheme": {"http_proxy": "127.0.0.1:9", "HTTP_PROXY": "127.0.0.1:9"},
    "a proxy, not for others": {"http_proxy": _ELSEWHERE, "NO_PROXY": "example.org", "no_proxy": "example.org"},
    "a proxy, not for us": {"http_proxy": _ELSEWHERE, "NO_PROXY": "localhost,127.0.0.1"},
    "a proxy, not for networks": {"http_proxy": _ELSEWHERE, "no_proxy": ".example.org,*.example.com,10.0.0.0/8,fd00::/8"},
    "MLFLOW_RUN_ID": {"MLFLOW_RUN_ID": _ID},
    "MLFLOW_EXPERIMENT_ID": {"MLFLOW_EXPERIMENT_ID": "7"},
    "MLFLOW_EXPERIMENT_NAME": {"MLFLOW_EXPERIMENT_NAME": "other"},
    "MLFLOW_TRACKING_URI": {"MLFLOW_TRACKING_URI": _ELSEWHERE},
    "MLFLOW_REGISTRY_URI": {"MLFLOW_REGISTRY_URI": _ELSEWHERE},
    "MLFLOW_ENABLE_ASYNC_LOGGING": {"MLFLOW_ENABLE_ASYNC_LOGGING": "true"},
    "AWS_PROFILE": {"AWS_PROFILE": "missing", "AWS_CONFIG_FILE": _MISSING},
    "AWS_ENDPOINT_URL": {"AWS_ENDPOINT_URL": _ELSEWHERE},
    "AWS_CA_BUNDLE": {"AWS_CA_BUNDLE": _MISSING},
    "GIT_DIR": {"GIT_DIR": "HERE/other/.git"},
    "GIT_WORK_TREE": {"GIT_DIR": "HERE/other/.git", "GIT_WORK_TREE": "HERE/other"},
    "GIT_INDEX_FILE": {"GIT_INDEX_FILE": "HERE/other/.git/index"},
    "PROMETHEUS_MULTIPROC_DIR": {"PROMETHEUS_MULTIPROC_DIR": _MISSING},
    "PYTHONOPTIMIZE": {"PYTHONOPTIMIZE": "2"},
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"},
    "LC_ALL=C": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "LC_ALL missing": {"LC_ALL": "de_DE.ISO-8859-1"},
    "PYTHONHASHSEED": {"PYTHONHASHSEED": "1"},
    "PYTHONWARNINGS=error": {"PYTHONWARNINGS": "error"},
    "PYTHONDONTWRITEBYTECODE": {"PYTHONDONTWRITEBYTECODE": "1"},
    "TZ=Asia/Kolkata": {"TZ": "Asia/Kolkata"},
    "TZ=America/St_Johns": {"TZ": "America/St_Johns"},
    "umask 077": {"UMASK": "077"},
    "HOME not set": {"HOME": None},
    "HOME read-only": {"HOME": "/proc"},  # for root, too
    "HOME missing": {"HOME": _MISSING},
    "MLOPS_HOME with a space": {"MLOPS_HOME": "HERE/a home"},
    "MLOPS_HOME with %2F": {"MLOPS_HOME": "HERE/home%2Fhere"},
    "MLOPS_HOME with #": {"MLOPS_HOME": "HERE/home#1"},
    "MLOPS_HOME with ?": {"MLOPS_HOME": "HERE/home?x=1"},
    "SSL_CERT_FILE": {"SSL_CERT_FILE": _MISSING},
    "REQUESTS_CA_BUNDLE": {"REQUESTS_CA_BUNDLE": _MISSING, "CURL_CA_BUNDLE": _MISSING},
    "MPLBACKEND": {"MPLBACKEND": "nonsense"},
    "OMP_NUM_THREADS": {"OMP_NUM_THREADS": "0"},
    "TMPDIR": {"TMPDIR": _MISSING},
    "a slash at the end": {"MLOPS_ENDPOINT": "/", "MLOPS_TRACKING": "/"},
}  # fmt: skip

# The platform itself is started in these.
PLATFORMS = [name for name in ENVIRONMENTS if name.startswith("MLOPS_HOME with ")] + ["http_proxy"]


def together(names: Iterable[str]) -> Told:
    """Several environments at once."""
    told: dict[str, str | None] = {}
    for name in names:
        assert not told.keys() & ENVIRONMENTS[name].keys(), name
        told |= ENVIRONMENTS[name]
    return told


@dataclass(frozen=True)
class Caller:
    """The command as a person with such an environment calls it; `digest`, `score`: what is right."""

    at: Place
    service: Service
    digest: str
    score: float

    def variables(self, told: Told) -> dict[str, str]:
        home, folder = self.at.environment.home, self.at.models.parent
        ours = {"HOME": str(home), "MODELS": str(self.at.models), "TRACKING": self.at.tracking}
        ours |= {"ENDPOINT": self.service.url, "API_KEY": self.service.key}
        variables = shell() | {f"MLOPS_{name}": value for name, value in ours.items()}
        for name, value in told.items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = variables[name] + value if name in _OURS else value.replace("HERE", str(folder))
        variables.pop("UMASK", None)  # it is no variable
        return variables

    def run(self, told: Told, verb: str) -> str:
        """`as without`, `clear error`, or what is wrong."""
        variables, words = self.variables(told), [verb]
        if not (home := Path(variables["MLOPS_HOME"])).exists():
            shutil.copytree(self.at.environment.home, home)
        if verb == "predict":
            words.append(json.dumps(row(), ensure_ascii=False))
        done = subprocess.run(
            [sys.executable, "-m", "cli", "--json", "--model", synthetic.MODEL, *words], cwd=ROOT, env=variables,
            umask=int(told.get("UMASK") or "022", 8), capture_output=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        said = done.stdout + done.stderr
        problem = f"exit code {done.returncode}: {said.strip()[-400:]}"
        if "Traceback" in said or "unexpected" in said:
            return problem
        if done.returncode == 2:
            return "clear error" if any(name in done.stdout for name in told) else problem
        if done.returncode:
            return problem
        return (
            "as without" if self.right(verb, found := json.loads(done.stdout.splitlines()[-1])) else f"other: {found}"
        )

    def right(self, verb: str, found: dict[str, Any]) -> bool:
        if verb == "train":
            return found["digest"] == self.digest
        if verb == "predict":
            return abs(found["predictions"][0]["score"] - self.score) < 1e-12
        return (found["service"]["state"], found["tracking"]["state"]) == ("ready", "ready")

    def ends(self, told: Told) -> dict[str, str]:
        return {verb: self.run(told, verb) for verb in _VERBS}

    def platform(self, told: Told) -> str:
        """The same of `mlops run`: a first model, an answer to the request that it prints, and nothing beside its folder."""
        variables = self.variables(told) | {"PYTHONUNBUFFERED": "1", "COLUMNS": "300"}
        folder = self.at.models.parent / "platforms" / Path(variables["MLOPS_HOME"]).name
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in (*_OURS, "MLOPS_API_KEY"):
            del variables[name]
        output = self.at.models.parent / "platform.log"
        with output.open("wb") as log:
            command = [sys.executable, "-m", "cli", "--model", synthetic.MODEL, "run"]
            told_home = variables | {"MLOPS_HOME": str(folder)}
            run = subprocess.Popen(command, cwd=ROOT, env=told_home, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 300
            while "Ctrl-C ends it" not in output.read_text() and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
            curl = re.search(r"^curl .*/predict.*$", output.read_text(), re.MULTILINE)
            if curl is None:
                return output.read_text().strip()[-400:]
            called = subprocess.run(["sh", "-c", curl[0]], capture_output=True, text=True, env=told_home)
            answer = json.loads(called.stdout) if called.returncode == 0 else {"curl": called.returncode}
        finally:
            run.send_signal(signal.SIGINT)
            code = run.wait(60)
        beside = sorted(path.name for path in folder.parent.iterdir() if path != folder)
        kept = [path.name for path in (folder / "bucket" / "mlflow").rglob("model.onnx")]
        if (
            answer.get("model_version") == self.digest
            and code == 0
            and not beside
            and kept
            and (folder / "mlflow.db").exists()
        ):
            return "as without"
        return f"exit code {code}, answer {answer}, beside it {beside}, MLflow has {kept}"


def shell() -> dict[str, str]:
    """The variables without those that importing `mlops` has set here: a child is to set them by itself."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_PROXY", "no_proxy", "ORT_DISABLE_TELEMETRY")
    }


def row() -> dict[str, Any]:
    return synthetic.request(color="grün")


def caller(at: Place, service: Service) -> Caller:
    digest = at.run("train")["digest"]
    promotion.release(at.model, digest, "first")
    service.serves(1)
    other = at.models.parent / "other"
    for words in (["init", "--quiet", str(other)], ["-C", str(other), "-c", "user.name=other", "-c", "user.email=other@example.org",
                  "commit", "--quiet", "--allow-empty", "--message", "other"]):  # fmt: skip
        subprocess.run(["git", *words], check=True)
    return Caller(at, service, digest, service.predict(row())["predictions"][0]["score"])


def write_model(models: Path) -> None:
    """With a category that not every locale can spell."""
    rows = synthetic.frame().with_columns(pl.col("color").replace("grey", "grün"))
    made = synthetic.write_model(models, rows)
    (made.folder / "parameters.yaml").write_text("estimator: linear\n")


def wrong(ends: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    return {name: end for name, end in ends.items() if set(end.values()) - {"as without", "clear error"}}


def prove(folder: Path) -> dict[str, Any]:
    ends: dict[str, dict[str, str]] = {}
    with crashes.place(folder) as at, Service(at.environment, synthetic.MODEL) as service:
        write_model(at.models)
        made = caller(at, service)
        for name, told in ENVIRONMENTS.items():
            ends[name] = made.ends(told) | ({"run": made.platform(told)} if name in PLATFORMS else {})
    faults = wrong(ends)
    return {
        "environments": len(ends),
        "as_without": sum(set(end.values()) == {"as without"} for end in ends.values()),
        "ends": {name: end if len(set(end.values())) > 1 else next(iter(end.values())) for name, end in ends.items()},
        "holds": not faults and len(ends) >= 30,
        "reason": "; ".join(f"{name}: {end}" for name, end in faults.items()),
    }
