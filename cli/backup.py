"""The bucket and MLflow's bundled databases, as files of one folder; and their restoration. A database that was brought
along is saved by its owner's snapshots."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryFile

from cli.cluster import Cluster
from infra.databases import OWNER
from mlops.errors import UserError

DATABASES = ("mlflow", "mlflow_auth")
_BUCKET, _POSTGRES = "deploy/controller", "statefulset/database"
_STORE = "python -c 'import sys; from mlops.environment import Environment; Environment.load().store.{}'"
_LOGIN_S3 = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# Read, so that no argument shows them; an empty token would be one.
_AS_ROOT = f"{'; '.join(f'read -r {key}' for key in _LOGIN_S3)}; export {' '.join(_LOGIN_S3)}; "
_AS_ROOT += '[ -n "$AWS_SESSION_TOKEN" ] || unset AWS_SESSION_TOKEN; '
_LOGIN = "PGHOST=127.0.0.1 PGUSER=$POSTGRES_USER PGPASSWORD=$POSTGRES_PASSWORD"
_TOOLS = f"export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) {_LOGIN}; "


def save(cluster: Cluster, folder: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Databases first: what a run's row refers to is in the bucket by then, and the bucket only grows."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError("folder", str(folder), "is not empty; a backup needs a folder of its own")
    sizes = {}
    for name in _databases(cluster):
        say(f"dump {name}")
        file, command = f"{name}.dump", f"{_TOOLS}pg_dump --format=custom --no-owner {name}"
        sizes[file] = _stream(cluster, _POSTGRES, command, folder / file, write=False)
    say("bucket")
    sizes["bucket.tar"] = _stream(
        cluster, _BUCKET, _STORE.format("pack(sys.stdout.buffer)"), folder / "bucket.tar", write=False
    )
    (folder / "backup.json").write_text(
        json.dumps({"environment": cluster.name, "at": time.time(), "bytes": sizes}), "utf-8"
    )
    return sizes


def save_models(cluster: Cluster, file: Path) -> None:
    """Bundles, attestations and releases alone."""
    _stream(cluster, _BUCKET, _STORE.format('pack(sys.stdout.buffer, "models")'), file, write=False)


def load(cluster: Cluster, folder: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Into databases and a bucket that may be empty; objects with the same name are overwritten."""
    if not (folder / "backup.json").exists():
        raise UserError("folder", str(folder), "is incomplete: backup.json, which is written last, is missing")
    sizes = json.loads((folder / "backup.json").read_text("utf-8"))["bytes"]
    say("bucket")
    unpack = _AS_ROOT + _STORE.format("unpack(sys.stdin.buffer)")
    _stream(cluster, _BUCKET, unpack, folder / "bucket.tar", write=True, before=_root(cluster))
    if not _databases(cluster):
        return sizes
    cluster.ask("scale", "deploy/tracking", "--replicas=0")  # it would write into what is being replaced
    cluster.ask("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=tracking", "--timeout=120s")
    try:
        for name in _databases(cluster):
            say(f"restore {name}")
            create = (
                f"psql -d {name} -c '' 2>/dev/null || createdb --encoding=UTF8 --template=template0 -O {OWNER} {name}"
            )
            again = f"pg_restore --clean --if-exists --no-owner --role={OWNER} --single-transaction --exit-on-error -d {name}"
            _stream(cluster, _POSTGRES, f"{_TOOLS}{create}; {again}", folder / f"{name}.dump", write=True)
    finally:
        cluster.ask("scale", "deploy/tracking", "--replicas=1")
    cluster.ask("rollout", "status", "deploy/tracking", "--timeout=300s")
    return sizes


def _root(cluster: Cluster) -> bytes:
    """Lines with credentials: no workload may write a whole bucket, so a bundled one is restored by its root, another by
    whom the variables of this shell name."""
    bundled = cluster.settings["bucket.kind"] == "bundled"
    found = (cluster.secret("bucket-root") or {}) if bundled else os.environ
    if missing := [key for key in _LOGIN_S3[:2] if not found.get(key)]:
        hint = "Secret bucket-root has none" if bundled else "set it, of somebody who may write the whole bucket"
        raise UserError(missing[0], "", hint)
    return "".join(f"{found.get(key, '')}\n" for key in _LOGIN_S3).encode()


def _databases(cluster: Cluster) -> tuple[str, ...]:
    settings = cluster.settings
    return DATABASES if settings["tracking.kind"] == settings["database.kind"] == "bundled" else ()


def _stream(cluster: Cluster, where: str, command: str, file: Path, write: bool, before: bytes = b"") -> int:
    """Between a local file and a command in a pod, which reads `before` first."""
    run = cluster.kubectl("exec", "-i", where, "--", "sh", "-c", command)
    with file.open("rb" if write else "wb") as local, TemporaryFile() as said:
        stdin, stdout = (PIPE, DEVNULL) if write else (None, local)
        with subprocess.Popen(run, stdin=stdin, stdout=stdout, stderr=said) as done:
            if done.stdin:
                with suppress(BrokenPipeError), done.stdin:
                    done.stdin.write(before)
                    shutil.copyfileobj(local, done.stdin)
        said.seek(0)
        if done.returncode:
            raise UserError("restore" if write else "backup", file.name, said.read().decode().strip()[-400:])
    return file.stat().st_size
