"""Hostile environments (proxies, MLFLOW_*, AWS_*, GIT_*, PROMETHEUS_*, PYTHON*, locales, zones, umask, folders): train, predict
and status give what they give without them, or a clear error."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops import promotion
from mlops.environment import ROOT
from tests import synthetic
from tests.proofs import crashes
from tests.proofs.crashes import Place
from tests.service import Service

NOWHERE = "127.0.0.1:9"
_ID = "0123456789abcdef0123456789abcdef"
# Those of one line may be combined: none of them says anything to us.
HARMLESS: list[dict[str, str]] = [
    {"http_proxy": f"http://{NOWHERE}", "MLFLOW_RUN_ID": _ID, "PYTHONIOENCODING": "ascii", "TZ": "Asia/Kolkata", "GIT_DIR": "/nowhere"},
    {"HTTP_PROXY": f"http://{NOWHERE}", "https_proxy": f"http://{NOWHERE}", "NO_PROXY": "example.org", "MLFLOW_EXPERIMENT_ID": "7",
     "PROMETHEUS_MULTIPROC_DIR": "/nowhere", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"},
    {"all_proxy": f"http://{NOWHERE}", "ALL_PROXY": f"http://{NOWHERE}", "MLFLOW_TRACKING_URI": f"http://{NOWHERE}", "LC_ALL": "de_DE.ISO-8859-1",
     "MLFLOW_EXPERIMENT_NAME": "other", "AWS_ENDPOINT_URL": f"http://{NOWHERE}", "GIT_WORK_TREE": "/tmp", "PYTHONHASHSEED": "1"},
]  # fmt: skip
ALONE: dict[str, dict[str, str]] = {
    name: {name: value}
    for line in HARMLESS for name, value in line.items()
} | {
    "MLFLOW_REGISTRY_URI": {"MLFLOW_REGISTRY_URI": f"http://{NOWHERE}"},
    "MLFLOW_ENABLE_ASYNC_LOGGING": {"MLFLOW_ENABLE_ASYNC_LOGGING": "true"},
    "a proxy without scheme": {"http_proxy": NOWHERE, "HTTP_PROXY": NOWHERE},
    "a SOCKS proxy": {"ALL_PROXY": f"socks5://{NOWHERE}"},
    "AWS_PROFILE": {"AWS_PROFILE": "missing", "AWS_CONFIG_FILE": "/nowhere"},
    "AWS_CA_BUNDLE": {"AWS_CA_BUNDLE": "/nowhere"},
    "GIT_INDEX_FILE": {"GIT_INDEX_FILE": "/nowhere"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX", "LANG": ""},
    "TZ=America/St_Johns": {"TZ": "America/St_Johns"},
    "SSL_CERT_FILE": {"SSL_CERT_FILE": "/nowhere", "REQUESTS_CA_BUNDLE": "/nowhere"},
    "MPLBACKEND": {"MPLBACKEND": "nonsense"},
    "OMP_NUM_THREADS": {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
    "HOME missing": {"HOME": "/nowhere/at/all"},
    "PYTHONWARNINGS": {"PYTHONWARNINGS": "always"},
    "a slash at the end": {"MLOPS_ENDPOINT": "/", "MLOPS_TRACKING": "/"},
    "umask 077": {"UMASK": "077"},
    "a folder with a space": {"MLOPS_HOME": "a home"},
    "a folder with %2F": {"MLOPS_HOME": "home%2Fhere"},
    "a folder with #": {"MLOPS_HOME": "home#1"},
    "a folder with ?": {"MLOPS_HOME": "home?x=1"},
}  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """The command as a person with this environment calls it; `digest`, `score`: what is right."""

    at: Place
    service: Service
    digest: str
    score: float

    def run(self, told: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
        home, told = self.at.environment.home, dict(told)
        known: dict[str, Any] = {
            "HOME": home,
            "BUCKET": home / "bucket",
            "KEYRING": self.at.environment.keyring,
            "MODELS": self.at.models,
        }
        known |= {"TRACKING": self.at.tracking, "ENDPOINT": self.service.url, "API_KEY": self.service.key}
        variables = {f"MLOPS_{name}": str(value) for name, value in known.items()}
        for name in ("MLOPS_ENDPOINT", "MLOPS_TRACKING"):
            variables[name] += told.pop(name, "")
        if folder := told.pop("MLOPS_HOME", ""):
            told["MLOPS_HOME"] = str(home.parent / folder)
        mask = int(told.pop("UMASK", "022"), 8)
        return subprocess.run(
            [sys.executable, "-m", "cli", "--json", "--model", synthetic.MODEL, *words], cwd=ROOT, umask=mask,
            env=os.environ | variables | told, capture_output=True, text=True, errors="replace",
        )  # fmt: skip

    def ends(self, told: Mapping[str, str]) -> str:
        """`as without`, `clear error`, or what went wrong."""
        seen = set()
        for words in (["train"], ["predict", json.dumps(synthetic.request())], ["status"]):
            done = self.run(told, *words)
            if done.returncode == 2 and "unexpected" not in done.stdout and "Traceback" not in done.stderr:
                seen.add("clear error")
                continue
            found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
            right = {
                "train": lambda found=found: found["digest"] == self.digest,
                "predict": lambda found=found: abs(found["predictions"][0]["score"] - self.score) < 1e-9,
                "status": lambda found=found: {found["service"]["state"], found["tracking"]["state"]} == {"ready"},
            }[words[0]]
            if not found or not right():
                return f"{words[0]}: exit code {done.returncode}, {(done.stderr or done.stdout).strip()[-300:]}"
            seen.add("as without")
        return " and ".join(sorted(seen))


def caller(at: Place, service: Service) -> Caller:
    digest = at.run("train")["digest"]
    promotion.release(at.model, digest, "first")
    service.serves(1)
    return Caller(at, service, digest, service.predict(synthetic.request())["predictions"][0]["score"])


def prove(folder: Path) -> dict[str, Any]:
    with crashes.place(folder) as at, Service(at.environment, synthetic.MODEL) as service:
        made = caller(at, service)
        ends = {name: made.ends(told) for name, told in ALONE.items()}
    wrong = {
        name: end
        for name, end in ends.items()
        if end not in ("as without", "clear error", "as without and clear error")
    }
    return {
        "holds": not wrong and len(ends) >= 30,
        "environments": len(ends),
        "ends": ends,
        "reason": json.dumps(wrong) if wrong else "",
    }
