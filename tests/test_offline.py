"""A short form of `make prove offline`: no process of a training and a scoring asks Python for another host."""

import os
import subprocess
import sys
from pathlib import Path

from mlops import promotion
from mlops.environment import ROOT
from tests import synthetic
from tests.proofs import crashes, offline

_GUARD = """
import os, sys

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[1] if event == "socket.connect" else args[0]
        with open(os.environ["GUARD"], "a") as log:
            print(event, host[0] if isinstance(host, tuple) else host, file=log)

sys.addaudithook(watch)
"""


def test_training_and_scoring_ask_for_no_other_host(tmp_path: Path) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(_GUARD)
    seen, rows = tmp_path / "seen", tmp_path / "rows.parquet"
    synthetic.frame(5, 20).write_parquet(rows)
    with crashes.place(tmp_path) as at:
        told = {"HOME": at.environment.home, "MODELS": at.models, "TRACKING": at.tracking, "MODEL": synthetic.MODEL}
        guarded = {
            "PYTHONPATH": str(tmp_path / "guard"),
            "GUARD": str(seen),
            **{f"MLOPS_{k}": str(v) for k, v in told.items()},
        }
        for words in (["train"], ["score", str(rows), str(tmp_path / "scores")]):
            done = subprocess.run(
                [sys.executable, "-m", "cli", *words],
                cwd=ROOT,
                env=os.environ | guarded,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            if words == ["train"]:
                digest = at.model.store.keys("models/synthetic/bundles")[0].split("/")[3]
                promotion.release(at.model, digest, "first")
    hosts = {
        line.split()[1]
        for line in seen.read_text().splitlines()
        if line.split()[1].strip("b'") not in ("127.0.0.1", "localhost")
    }
    assert seen.read_text().count("connect 127.0.0.1") >= 2, "MLflow was called: the guard sees something"
    assert not hosts


def test_the_trace_is_read_as_strace_writes_it() -> None:
    trace = """\
1 connect(3, {sa_family=AF_INET, sin_port=htons(8080), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
2 connect(4, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1 ENOENT
3 sendto(5, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.1")}, 16) = 1
4 connect(6, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = 0
"""
    assert offline.reached(trace) == ["192.0.2.1:53", "2001:db8::1:443"]
