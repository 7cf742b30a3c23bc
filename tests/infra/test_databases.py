"""MLflow's databases on a real PostgreSQL, where one is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from environments.local.platform import free_port
from infra import databases
from tests.infra.rendering import render

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin")) + [
    Path(found).parent for found in [shutil.which("initdb")] if found
]
pytestmark = pytest.mark.skipif(not SERVERS, reason="needs PostgreSQL: apt-get install postgresql")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; the administrator is `root`, who is no superuser's equal on RDS: see `administrator`."""
    folder, port = tmp_path_factory.mktemp("postgres"), free_port(25432)
    data = folder / "data"
    user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}  # it refuses to run as root
    data.mkdir()
    if user:
        shutil.chown(data, "nobody")
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and parent != Path("/") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o755)
        folder.chmod(0o755)
    (password := folder / "password").write_text("root")
    password.chmod(0o644)
    initdb = [
        SERVERS[-1] / "initdb",
        "-D",
        data,
        "-U",
        "root",
        "-A",
        "scram-sha-256",
        "--pwfile",
        password,
        "-E",
        "UTF8",
    ]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)
    run = [
        SERVERS[-1] / "postgres",
        "-D",
        data,
        "-p",
        str(port),
        "-k",
        "",
        "-h",
        "127.0.0.1",
        "-c",
        "log_statement=all",
        *(word for key, value in _certificate(folder, data).items() for word in ("-c", f"{key}={value}")),
    ]
    for file in data.glob("server.*"):
        shutil.chown(file, "nobody") if user else None
    with (folder / "log").open("w") as log, subprocess.Popen(run, stdout=log, stderr=log, cwd="/", **user) as process:
        with databases.retried(lambda: psycopg.connect(f"postgresql://root:root@127.0.0.1:{port}/postgres")) as root:
            root.execute("create role administrator createdb createrole login password 'administrator'")
        yield f"postgresql+psycopg://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)  # without waiting for open connections
    text = (folder / "log").read_text()
    assert "create role" in text
    assert "first-password" not in text, "a password is in the server's log"


def _certificate(folder: Path, data: Path) -> dict[str, str]:
    """The server is `localhost`, says `ca.pem` in the folder, and no authority that the machine knows."""
    here: dict[str, Any] = {"cwd": folder, "check": True, "capture_output": True}
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost"]
    for name, more in (("ca", ["-subj", "/CN=ours"]), ("server", ["-subj", "/CN=localhost", *authority])):
        subprocess.run(
            ["openssl", "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", *more], **here
        )
    for file in ("server.key", "server.pem"):
        (folder / file).rename(data / file)
    return {"ssl": "on", "ssl_cert_file": "server.pem", "ssl_key_file": "server.key"}


def log_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str, admin: bool = True) -> None:
    values = {"PGUSER": user, "PGPASSWORD": password, "DATABASE_ADMIN": "administrator"}
    values["DATABASE_ADMIN_PASSWORD"] = "administrator" if admin else ""
    values |= {f"{name}_PASSWORD": "a-long-password" for name in ("ADMIN", "TRAINING", "CONTROLLER")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def experiments(uri: str) -> set[str]:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return {each.name for each in SqlAlchemyStore(uri, "/tmp").search_experiments()}


def test_a_user_is_replaced_by_its_twin_which_owns_what_the_first_one_made(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri, auth = f"{server}/mlflow", f"{server}/mlflow_auth"
    log_in(monkeypatch, "mlflow_a", "first-password")
    for _ in range(2):  # killed and repeated
        databases.create(uri, auth)
    SqlAlchemyStore(uri, "/tmp").create_experiment("before")
    open_connection = psycopg.connect(f"{uri.replace('+psycopg', '')}")
    log_in(monkeypatch, "mlflow_b", "second-password")
    databases.create(uri, auth)
    databases.retire(uri, "mlflow_a")
    assert "before" in experiments(uri)
    SqlAlchemyStore(uri, "/tmp").create_experiment("after")
    with psycopg.connect(uri.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("alter table experiments add column ours int")  # as the next schema does
        owners = connection.execute("select distinct tableowner from pg_tables where schemaname = 'public'").fetchall()
        assert owners == [("mlflow_owner",)]
        connection.execute("alter table experiments drop column ours")
    assert open_connection.execute("select count(*) from experiments").fetchone() == (3,)
    open_connection.close()
    log_in(monkeypatch, "mlflow_a", "first-password")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(uri.replace("+psycopg", ""))


def test_a_database_brought_along_needs_no_administrator(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, "administrator", "administrator", admin=False)
    uri, auth = f"{server}/other", f"{server}/other_auth"
    databases.create(uri, auth)
    assert experiments(uri) == {"Default"}


def test_what_a_pod_is_told_of_a_database_brought_along_finds_it_and_no_impostor(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = render("prod", {"database.kind": "external", "database.host": "localhost", "database.secret": "db",
                            "database.user": "administrator", "database.ca": "ours"}).objects  # fmt: skip
    pod = next(o for o in found if o["kind"] == "Job" and o["metadata"]["name"].startswith("setup-database"))
    [container] = pod["spec"]["template"]["spec"]["containers"]
    told = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    assert (told["PGSSLMODE"], told["PGUSER"]) == ("verify-full", "administrator")
    assert told["PGSSLROOTCERT"] == f"{container['volumeMounts'][-1]['mountPath']}/ca.pem"
    told["PGSSLROOTCERT"] = str(next(tmp_path_factory.getbasetemp().glob("postgres*/ca.pem")))
    log_in(monkeypatch, "administrator", "administrator", admin=False)
    for name, value in (told | {"PGPORT": str(urlsplit(server).port)}).items():
        monkeypatch.setenv(name, value)
    databases.create(told["MLFLOW_BACKEND_STORE_URI"], told["MLFLOW_AUTH_STORE_URI"])
    assert "Default" in experiments(told["MLFLOW_BACKEND_STORE_URI"])
    for name, value in (("PGHOST", "127.0.0.1"), ("PGSSLROOTCERT", "/etc/ssl/certs/ca-certificates.crt")):
        with monkeypatch.context() as other:
            other.setenv(name, value)
            with pytest.raises(psycopg.OperationalError, match="certificate"):
                psycopg.connect("postgresql:///mlflow")
