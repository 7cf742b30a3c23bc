"""Nothing leaves the machine: init, `mlops run`, train, score and the demo contact loopback alone, look up no name, and write
nothing into the user's home.

By strace, which sees all the libraries, whatever they are written in.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlops.environment import ROOT
from tests import synthetic
from tests.proofs.environments import shell

_CALLS = "connect,sendto,sendmsg,sendmmsg"  # the last: glibc asks for both kinds of addresses at once
_ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")')
_RESOLVER = re.compile(r'sun_path="(/run/systemd/resolve/[^"]+)"')  # it would ask for us
_DNS = "53"
_UP = "Ctrl-C ends it"  # says `mlops run`


def reached(trace: str) -> list[str]:
    """Addresses beyond loopback, and of resolvers anywhere, with their ports: each once, in the order of the calls."""
    found = _RESOLVER.findall(trace)
    for port, four, six in _ADDRESS.findall(trace):
        address = ipaddress.ip_address(four or six)
        address = getattr(address, "ipv4_mapped", None) or address
        if not address.is_loopback or port == _DNS:
            found.append(f"{address}:{port}")
    return list(dict.fromkeys(found))


def watched(
    folder: Path,
    name: str,
    words: list[str],
    told: dict[str, str],
    root: Path = ROOT,
    up: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run it under strace; where something is to be done once it is up, it gets Ctrl-C after that."""
    trace, output, began = folder / f"{name}.trace", folder / f"{name}.out", time.monotonic()
    command = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={_CALLS}", "-o", str(trace)]
    command += [sys.executable, "-m", *words]
    with output.open("wb") as out:
        run = subprocess.Popen(command, cwd=root, env=told, stdout=out, stderr=out, start_new_session=True)
    if up:
        while _UP not in output.read_text("utf-8") and run.poll() is None and time.monotonic() < began + 600:
            time.sleep(0.2)
        up()
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGINT)  # strace itself ignores it
    code, calls = run.wait(), trace.read_text("utf-8", errors="replace")
    found: dict[str, Any] = {"code": code, "seconds": round(time.monotonic() - began), "reached": reached(calls)[:10]}
    found["addressed"] = len(_ADDRESS.findall(calls))
    return found if code == 0 else found | {"said": output.read_text("utf-8")[-500:]}


def told(folder: Path) -> dict[str, str]:
    """A user with an empty home, and with no other place for what programs keep."""
    kept = {name: value for name, value in shell().items() if not name.startswith(("XDG_", "MPL", "MLOPS_", "MLFLOW_"))}
    (folder / "user").mkdir()
    return kept | {"HOME": str(folder / "user"), "PYTHONUNBUFFERED": "1"}


def repository(folder: Path) -> Path:
    """A copy: the demo has its data below the repository, where the user's own lie, too."""
    return Path(shutil.copytree(ROOT, folder / "repository", ignore=shutil.ignore_patterns(".*", "__pycache__")))


def prove(folder: Path) -> dict[str, Any]:
    if not shutil.which("strace"):
        return {"holds": False, "reason": "strace is missing: install it"}
    user, table, scores = told(folder), folder / "things.csv", folder / "scores"
    ours = user | {"MLOPS_HOME": str(folder / "home"), "MLOPS_MODELS": str(folder / "models")}
    synthetic.frame().drop("settled", "at", "heat_at", "known_at", "amount").write_csv(table)
    steps: dict[str, dict[str, Any]] = {}

    def cli(*words: str, up: Callable[[], None] | None = None) -> None:
        steps[words[0]] = watched(folder, words[0], ["cli", *words], ours, up=up)

    cli("init", str(table), "--target", "y")
    cli("run", up=lambda: cli("train", "--seed", "1"))
    cli("score", str(table), str(scores))
    steps["demo"] = watched(folder, "demo", ["environments.local.demo"], user, repository(folder))
    home = Path(user["HOME"])
    written = sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())
    faults = [f"{name}: exit code {step['code']}, {step['said']}" for name, step in steps.items() if step["code"]]
    faults += [f"{name} reaches {', '.join(step['reached'])}" for name, step in steps.items() if step["reached"]]
    faults += [f"{name} is watched in vain" for name in ("run", "demo") if steps[name]["addressed"] < 10]
    faults += [f"written into the home: {', '.join(written)}"] if written else []
    return {"steps": steps, "written": written, "holds": not faults, "reason": "; ".join(faults)}
