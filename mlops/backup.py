"""Both of MLflow's databases and the bucket, together, as three files of one folder; and all of it back."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mlops.cluster import Cluster
from mlops.errors import Fault
from mlops.store import Store

DATABASES = ("mlflow", "mlflow_auth")
_TOOLS = "export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); "


def backup(cluster: Cluster, folder: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Databases first: what a run's row speaks of was in the bucket by then, and the bucket only grows."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Fault("folder", str(folder), "is not empty; a backup has a folder of its own")
    sizes = {}
    tools = _tools(cluster)
    for name in DATABASES:
        say(f"dump {name}")
        sizes[f"{name}.dump"] = _out(cluster, tools, f"{_TOOLS}pg_dump --format=custom --no-owner {name}", folder / f"{name}.dump")
    cluster.ask("delete", tools, "--wait=false")
    say("bucket")
    sizes["bucket.tar"] = _out(cluster, "deploy/controller", "python -m mlops.backup out", folder / "bucket.tar")
    (folder / "backup.json").write_text(json.dumps({"environment": cluster.name, "at": time.time(), "bytes": sizes}) + "\n")
    return sizes


def restore(cluster: Cluster, folder: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Into databases and a bucket that may be empty; what is there of the same name is replaced."""
    if not (folder / "backup.json").exists():
        raise Fault("folder", str(folder), "holds no whole backup: backup.json is missing, which is written last")
    sizes = json.loads((folder / "backup.json").read_text())["bytes"]
    say("bucket")
    _in(cluster, "deploy/controller", "python -m mlops.backup in", folder / "bucket.tar")
    tools = _tools(cluster)
    cluster.ask("scale", "deploy/tracking", "--replicas=0")  # it would write into what is being replaced
    cluster.ask("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=tracking", "--timeout=120s")
    try:
        for name in DATABASES:
            say(f"restore {name}")
            create = f"psql -d {name} -c '' 2>/dev/null || createdb --encoding=UTF8 --template=template0 {name}"
            again = f"pg_restore --clean --if-exists --no-owner --single-transaction --exit-on-error -d {name}"
            _in(cluster, tools, f"{_TOOLS}{create}; {again}", folder / f"{name}.dump")
    finally:
        cluster.ask("scale", "deploy/tracking", "--replicas=1")
        cluster.ask("delete", tools, "--wait=false")
    cluster.ask("rollout", "status", "deploy/tracking", "--timeout=300s")
    return sizes


def _tools(cluster: Cluster) -> str:
    """A Job with the database's own tools, of the template that the platform keeps."""
    name = cluster.job("database-tools")
    for _ in range(120):
        if cluster.get("job", name)["status"].get("ready"):
            return f"job/{name}"
        time.sleep(0.5)
    raise Fault("job", name, "did not start within a minute; see `kubectl describe job`")


def _out(cluster: Cluster, where: str, command: str, file: Path) -> int:
    with file.open("wb") as out:
        done = subprocess.run(cluster.kubectl("exec", where, "--", "sh", "-c", command), stdout=out, stderr=subprocess.PIPE)
    if done.returncode:
        raise Fault("backup", file.name, done.stderr.decode().strip()[-400:])
    return file.stat().st_size


def _in(cluster: Cluster, where: str, command: str, file: Path) -> None:
    with file.open("rb") as source:
        done = subprocess.run(cluster.kubectl("exec", "-i", where, "--", "sh", "-c", command), stdin=source, capture_output=True)
    if done.returncode:
        raise Fault("restore", file.name, done.stderr.decode().strip()[-400:])


def pack(store: Store, out: BinaryIO) -> int:
    """Every object as a tar stream, one in memory at a time; returns their number."""
    with tarfile.open(fileobj=out, mode="w|") as archive:
        keys = store.keys("")
        for key in keys:
            data = store.get(key)
            if data is not None:  # compacted meanwhile: its rows are in an object that is listed, or was in the log before
                entry = tarfile.TarInfo(key)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return len(keys)


def unpack(store: Store, source: BinaryIO) -> int:
    count = 0
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            assert content is not None
            store.put(entry.name, content.read())
            count += 1
    return count


if __name__ == "__main__":
    from mlops.environment import Environment

    here = Environment.load().store
    if sys.argv[1:] == ["out"]:
        pack(here, sys.stdout.buffer)
    else:
        unpack(here, sys.stdin.buffer)
