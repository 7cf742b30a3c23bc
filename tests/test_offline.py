"""The short form of `make prove offline`: no process of a training and a scoring asks Python for another host."""

import json
import os
import subprocess
import sys
from pathlib import Path

from mlops import promotion
from mlops.environment import ROOT, Environment
from tests import synthetic
from tests.proofs import offline

_GUARD = """
import json, os, socket, sys

def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        found = [event, str(args[0])]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        if args[0].family not in (socket.AF_INET, socket.AF_INET6):
            return
        found = [event, str(args[1][0])]
    else:
        return
    write(found)

def write(found):
    with open(os.environ["GUARD"], "a") as log:
        log.write(json.dumps(found) + "\\n")

sys.addaudithook(watch)
write(["started", ""])
"""


def test_training_and_scoring_ask_for_no_other_host(tracked: Environment, tmp_path: Path) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(_GUARD)
    seen, rows, models = tmp_path / "seen", tmp_path / "rows.parquet", tmp_path / "models"
    synthetic.frame(5, 20).write_parquet(rows)
    made = synthetic.write_model(models, synthetic.frame())
    (made.folder / "parameters.yaml").write_text("estimator: linear\n")
    told = {"MLOPS_HOME": str(tracked.home), "MLOPS_MODELS": str(models), "MLOPS_TRACKING": tracked.tracking}
    told |= {"PYTHONPATH": str(tmp_path / "guard"), "GUARD": str(seen)}

    def mlops(*words: str) -> dict[str, str]:
        command = [sys.executable, "-m", "cli", "--json", *words]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | told, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    digest = mlops("train")["digest"]
    promotion.release(tracked.model(synthetic.MODEL), digest, "first")
    mlops("score", str(rows), str(tmp_path / "scores"))
    events = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [name for name, _ in events].count("started") >= 2
    assert ["socket.connect", "127.0.0.1"] in events, "MLflow was called: the guard sees something"
    assert {host for _, host in events} <= {"", "127.0.0.1", "::1", "localhost"}


def test_the_trace_is_read_as_strace_writes_it() -> None:
    trace = """\
1 connect(3, {sa_family=AF_INET, sin_port=htons(8080), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
2 connect(4, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1 ENOENT
3 sendto(5, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.1")}, 16) = 1
4 connect(6, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = 0
5 connect(6, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::ffff:127.0.0.1", &sin6_addr), sin6_scope_id=0}, 28) = 0
6 connect(7, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16 <unfinished ...>
7 connect(7, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}, 42) = 0
8 sendto(8, [{nlmsg_len=20, nlmsg_type=RTM_GETADDR}], 20, 0, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 20
"""
    resolver = "/run/systemd/resolve/io.systemd.Resolve"
    assert offline.reached(trace) == [resolver, "192.0.2.1:53", "2001:db8::1:443", "127.0.0.53:53"]
