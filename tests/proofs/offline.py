"""Nothing leaves the machine: init, `mlops run`, train, score and the demo under strace reach no address but loopback, look up
no name, and write nothing below the user's home."""

import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mlops.environment import ROOT
from tests import synthetic

_CALLS = "connect,sendto,sendmsg"
_ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")')


def reached(trace: str) -> list[str]:
    """Addresses beyond loopback, with their ports, in the order of the calls."""
    found = []
    for line in trace.splitlines():
        for port, four, six in _ADDRESS.findall(line):
            if (
                not ipaddress.ip_address(four or six).is_loopback and port != "0"
            ):  # 0: a route is asked for, nothing is sent
                found.append(f"{four or six}:{port}")
    return found


def watched(folder: Path, name: str, words: list[str], told: dict[str, str], until: str = "") -> dict[str, Any]:
    """Run it under strace; with `until` it gets Ctrl-C once it has printed that."""
    trace, output = folder / f"{name}.trace", folder / f"{name}.out"
    command = ["strace", "-f", "-qq", "-e", f"trace={_CALLS}", "-o", str(trace), sys.executable, "-m", *words]
    with output.open("wb") as out:
        run = subprocess.Popen(command, cwd=ROOT, env=os.environ | told, stdout=out, stderr=out, start_new_session=True)
    while until and run.poll() is None and until not in output.read_text("utf-8"):
        time.sleep(0.2)
    if until:
        os.killpg(run.pid, signal.SIGINT)
    code = run.wait()
    calls = trace.read_text("utf-8", errors="replace")
    return {
        "code": code,
        "calls": len(calls.splitlines()),
        "reached": reached(calls)[:10],
        "said": output.read_text("utf-8")[-300:],
    }


def prove(folder: Path) -> dict[str, Any]:
    if not shutil.which("strace"):
        return {"holds": False, "reason": "strace is missing"}
    home, models = folder / "user", folder / "models"
    home.mkdir()
    told = {"HOME": str(home), "MLOPS_HOME": str(folder / "home"), "MLOPS_MODELS": str(models), "PYTHONUNBUFFERED": "1"}
    told |= {"XDG_CACHE_HOME": str(home / "cache"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    synthetic.frame().drop("settled", "at", "heat_at", "known_at").write_csv(folder / "things.csv")
    steps = {
        "init": watched(
            folder, "init", ["cli", "init", str(folder / "things.csv"), "--target", "y", "--drop", "amount"], told
        ),
        "run": watched(folder, "run", ["cli", "run"], told, until="Ctrl-C ends it"),
        "score": watched(folder, "score", ["cli", "score", str(folder / "things.csv"), str(folder / "scores")], told),
    }
    demo = {"HOME": str(home), "MLOPS_HOME": str(folder / "demo"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    steps["demo"] = watched(folder, "demo", ["environments.local.demo"], demo)
    written = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    wrong = [name for name, step in steps.items() if step["code"] not in (0, -signal.SIGINT) or step["reached"]]
    holds = not wrong and not written
    return {"holds": holds, "steps": steps, "written": written, "reason": "" if holds else f"{wrong} {written}"}
