"""MLflow's two databases, and the user that it logs in with."""

import json
import os
import time
from collections.abc import Callable
from typing import Any, LiteralString
from urllib.parse import urlsplit

from infra.identities import TRACKING_USERS

_SECONDS = 300
OWNER = "mlflow_owner"


def create(uri: str, auth_uri: str) -> None:
    """With this version's schema, and MLflow's users. What the addresses leave out (host, user, password, TLS) is in libpq's
    variables, PGHOST and so on; where an administrator is known, it
    makes that user, whose password changes by `mlops rotate`, and never by itself."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db, create_sqlalchemy_engine_with_retry
    from sqlalchemy import inspect

    _create_databases(uri, [urlsplit(each).path.lstrip("/") for each in (uri, auth_uri)])
    engine = create_sqlalchemy_engine_with_retry(uri)
    begun = inspect(engine).has_table("alembic_version")
    (_upgrade_db if begun else _initialize_tables)(engine)
    engine.dispose()
    store = SqlAlchemyStore()
    store.init_db(auth_uri)
    for user in ("admin", *TRACKING_USERS):
        password = os.environ[f"{user.upper()}_PASSWORD"]
        if store.has_user(user):
            store.update_user(user, password)  # its Secret may have been replaced
        else:
            store.create_user(user, password, is_admin=user == "admin")


def retire(uri: str, user: str) -> None:
    """`user` can log in no more; its open connections go on."""
    from psycopg.sql import SQL, Identifier

    with _connect(uri, _administrator()) as connection:
        connection.execute(SQL("alter role {} nologin password null").format(Identifier(user)))


def retried(attempt: Callable[[], Any]) -> Any:
    """The server may still be starting."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return attempt()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _administrator() -> dict[str, Any]:
    """User and password: of a bundled database, or from the secret that RDS keeps and rotates; empty without either."""
    if arn := os.environ.get("DATABASE_ADMIN_ARN"):
        import boto3

        found = json.loads(boto3.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"])
        return {"user": found["username"], "password": found["password"]}
    if password := os.environ.get("DATABASE_ADMIN_PASSWORD"):
        return {"user": os.environ["DATABASE_ADMIN"], "password": password}
    return {}


def _connect(uri: str, login: dict[str, Any]) -> Any:
    import psycopg

    server = f"postgresql://{urlsplit(uri).netloc}/postgres"
    return psycopg.connect(server, autocommit=True, connect_timeout=5, **login)


def _create_databases(uri: str, names: list[str]) -> None:
    from psycopg.sql import SQL, Identifier

    admin = _administrator()
    with retried(lambda: _connect(uri, admin)) as connection:
        if admin:
            _create_user(connection, os.environ["PGUSER"], os.environ["PGPASSWORD"])
        for name in names:
            if not connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
                owner = SQL(" owner {}").format(Identifier(OWNER)) if admin else SQL("")
                create = SQL("create database {} encoding 'UTF8' template template0")
                connection.execute(create.format(Identifier(name)) + owner)


def _create_user(connection: Any, user: str, password: str) -> None:
    """What it makes belongs to a role that cannot log in, so that the next user takes over."""
    from psycopg.sql import SQL, Identifier, Literal

    def run(text: LiteralString, *names: str) -> None:
        connection.execute(SQL(text).format(*map(Identifier, names), secret=Literal(secret)))

    # The server, and so its log, sees no password.
    secret = connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()
    for role in (OWNER, user):
        if not connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone():
            run("create role {}", role)
    for member in (connection.info.user, user):
        run("grant {} to {}", OWNER, member)
    run("alter role {} login password {secret}", user)
    run("alter role {} set role to {}", user, OWNER)
