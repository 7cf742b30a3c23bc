"""Creates what a new environment needs and lacks: `python -m infra.provision keys|database|bucket` (and `folder`: the keys
as files, for containers without a cluster).

Secrets are made inside the cluster, so that neither Pulumi's state nor a person's disk ever has them. Each step may be
killed and repeated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from mlops import access
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.keys import Key, Keyring, Role

# Rights in the bucket by identity. No identity may delete releases or bundles.
IDENTITIES = {
    "serving": {"read": ["models/*", "access/*"], "write": ["predictions/*", "outcomes/*", "replicas/*"]},
    "training": {"read": ["models/*", "data/*"], "write": ["models/*"]},
    "tracking": {"read": ["mlflow/*"], "write": ["mlflow/*"], "delete": ["mlflow/*"]},
    "controller": {"read": ["*"], "write": ["*"], "delete": ["predictions/*", "outcomes/*", "replicas/*"]},
}
TRACKING_USERS = ("training", "controller")
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS = 300


class Cluster:
    """Creates absent Secrets and ConfigMaps in the pod's own namespace."""

    def __init__(self) -> None:
        self._namespace = (_ACCOUNT / "namespace").read_text()
        host = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
        token = {"authorization": f"Bearer {(_ACCOUNT / 'token').read_text()}"}
        trusted = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
        trusted.verify_flags &= (
            ~ssl.VERIFY_X509_STRICT
        )  # many cluster CAs lack extensions that Python 3.13 requires
        self._http = httpx.Client(base_url=host, headers=token, verify=trusted, timeout=20)

    def create(self, kind: str, name: str, data: dict[str, str]) -> None:
        """`kind`: secrets or configmaps. Existing ones are not changed."""
        values = {"stringData": data} if kind == "secrets" else {"data": data}
        body = {"metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "mlops"}}, **values}
        answer = self._http.post(f"/api/v1/namespaces/{self._namespace}/{kind}", json=body)
        if answer.status_code not in (201, 409):
            raise UserError(f"{kind}/{name}", answer.status_code, answer.json().get("message", "")[:300])

    def secret(self, name: str) -> dict[str, str]:
        answer = self._http.get(f"/api/v1/namespaces/{self._namespace}/secrets/{name}")
        if answer.status_code != 200:
            raise UserError(f"secrets/{name}", answer.status_code, answer.json().get("message", "")[:300])
        return {key: base64.b64decode(value).decode() for key, value in answer.json()["data"].items()}


class Folder:
    """The same as files: `<name>/<key>`."""

    def __init__(self, path: Path):
        self._path = path

    def create(self, kind: str, name: str, data: dict[str, str]) -> None:  # noqa: ARG002 (all are files)
        if (self._path / name).exists():
            return
        new = self._path / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for key, value in data.items():
            (new / key).write_text(value)
        new.rename(self._path / name)

    def secret(self, name: str) -> dict[str, str]:
        return {file.name: file.read_text() for file in (self._path / name).iterdir()}


def keys(cluster: Cluster | Folder, environment: str) -> None:
    """Signing keys and their keyring, passwords, the bucket's identities, one API key."""
    public = []
    for role, scope in (("build", None), ("approve", environment)):
        cluster.create("secrets", f"signing-{role}", _signing_key(role, scope))
        public.append(json.loads(cluster.secret(f"signing-{role}")["key.json"]))
    cluster.create("configmaps", "keyring", {"keyring.json": json.dumps({"keys": public}, indent=1)})
    cluster.create("secrets", "database", {"password": secrets.token_hex(24)})
    cluster.create(
        "secrets", "tracking-admin", {"password": secrets.token_hex(16), "secret-key": secrets.token_hex(32)}
    )
    for user in TRACKING_USERS:
        password = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(16)}
        cluster.create("secrets", f"tracking-{user}", password)
    for identity in ("root", *IDENTITIES):
        pair = {
            "AWS_ACCESS_KEY_ID": f"{identity}-{secrets.token_hex(4)}",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24),
        }
        cluster.create("secrets", f"bucket-{identity}", pair)
    cluster.create("secrets", "client-key", {"client.key": access.new_secret()})
    cluster.create("secrets", "grafana", {"password": secrets.token_hex(16)})


def files(folder: Folder) -> None:
    """For containers without a cluster: the environment variables of each, and folders with signing keys."""
    bucket = {identity: folder.secret(f"bucket-{identity}") for identity in ("root", *IDENTITIES)}
    admin, users = folder.secret("tracking-admin"), {user: folder.secret(f"tracking-{user}") for user in TRACKING_USERS}
    password = folder.secret("database")["password"]
    environments: dict[str, dict[str, str]] = {
        "bucket": {
            "ROOT_ACCESS_KEY": bucket["root"]["AWS_ACCESS_KEY_ID"],
            "ROOT_SECRET_KEY": bucket["root"]["AWS_SECRET_ACCESS_KEY"],
        },
        "setup-database": {
            "PGPASSWORD": password,
            "ADMIN_PASSWORD": admin["password"],
            **{f"{user.upper()}_PASSWORD": login["MLFLOW_TRACKING_PASSWORD"] for user, login in users.items()},
        },
        "setup-bucket": {
            **{
                key.replace("AWS", identity.upper()): value
                for identity, pair in bucket.items()
                for key, value in pair.items()
            },
            **bucket["controller"],
            "CLIENT_KEY": folder.secret("client-key")["client.key"],
        },
        "tracking": {
            "PGPASSWORD": password,
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin["password"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": admin["secret-key"],
            **bucket["tracking"],
        },
        "serving": bucket["serving"],
        "training": bucket["training"] | users["training"],
        "controller": bucket["controller"] | users["controller"],
    }
    for name, values in environments.items():
        folder.create(
            "files", f"{name}-env", {"env": "".join(f"export {key}={value}\n" for key, value in values.items())}
        )
    for role, more in (("build", {}), ("approve", folder.secret("client-key"))):
        folder.create("files", f"keys-{role}", folder.secret("keyring") | folder.secret(f"signing-{role}") | more)


def _signing_key(role: Role, environment: str | None) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        key: Key = Keyring(Path(folder, "keyring.json")).new(role, environment)
        return {f"{key.id}.pem": Path(folder, f"{key.id}.pem").read_text(), "key.json": key.model_dump_json()}


def database(uri: str, auth_uri: str) -> None:
    """MLflow's two databases with this version's schema, and its users. The password is in PGPASSWORD."""
    import psycopg
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
    from mlflow.store.db.utils import _initialize_tables, _upgrade_db, create_sqlalchemy_engine_with_retry
    from sqlalchemy import inspect

    for each in (uri, auth_uri):
        parts = urlsplit(each)
        name = parts.path.lstrip("/")
        server = parts._replace(scheme="postgresql", path="/postgres").geturl()
        with _patiently(
            lambda server=server: psycopg.connect(server, autocommit=True, connect_timeout=5)
        ) as connection:
            if not connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
                connection.execute(f"create database \"{name}\" encoding 'UTF8' template template0")
    engine = create_sqlalchemy_engine_with_retry(uri)
    begun = inspect(engine).has_table("alembic_version")
    (_upgrade_db if begun else _initialize_tables)(engine)
    engine.dispose()
    store = SqlAlchemyStore()
    store.init_db(auth_uri)
    wanted = {"admin": os.environ["ADMIN_PASSWORD"]} | {
        user: os.environ[f"{user.upper()}_PASSWORD"] for user in TRACKING_USERS
    }
    for user, password in wanted.items():
        if store.has_user(user):
            store.update_user(user, password)  # its Secret may have been replaced
        else:
            store.create_user(user, password, is_admin=user == "admin")


def bucket(environment: Environment, client_key: str) -> None:
    """In the bundled bucket: the bucket, its identities and their rights. Always: the client's API key."""
    if "ROOT_ACCESS_KEY_ID" in os.environ:
        _bundled_bucket(urlsplit(environment.bucket).netloc, os.environ["AWS_ENDPOINT_URL"])
    if access.sha256(client_key) not in {key.sha256 for key in access.read(environment.store)}:
        access.new(environment.store, "client", ["predict", "outcomes"], per_second=100_000, secret=client_key)


def _bundled_bucket(name: str, endpoint: str) -> None:
    import boto3
    from botocore.exceptions import ClientError

    root = {
        "aws_access_key_id": os.environ["ROOT_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["ROOT_SECRET_ACCESS_KEY"],
    }
    session = boto3.Session(**root, region_name=os.environ.get("AWS_REGION", "us-east-1"))
    s3 = session.client("s3", endpoint_url=endpoint)
    _patiently(s3.list_buckets)
    try:
        s3.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    users = {identity: os.environ[f"{identity.upper()}_ACCESS_KEY_ID"] for identity in IDENTITIES}
    for identity, user in users.items():
        _versity_user(session, endpoint, user, os.environ[f"{identity.upper()}_SECRET_ACCESS_KEY"])
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps(policy(name, users)))


def policy(bucket: str, users: dict[str, str]) -> dict[str, Any]:
    """The bucket's policy; `users`: identity → principal."""
    statements: list[dict[str, Any]] = []
    for identity, may in IDENTITIES.items():
        grants = {"s3:GetObject": may["read"], "s3:PutObject": may["write"], "s3:DeleteObject": may.get("delete", [])}
        statements.append(_statement(users[identity], ["s3:ListBucket"], [f"arn:aws:s3:::{bucket}"]))
        for action, paths in grants.items():
            if paths:
                statements.append(
                    _statement(users[identity], [action], [f"arn:aws:s3:::{bucket}/{path}" for path in paths])
                )
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(user: str, actions: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": {"AWS": [user]}, "Action": actions, "Resource": resources}


def _versity_user(session: Any, endpoint: str, user: str, secret: str) -> None:
    """VersityGW's admin API, which S3 clients lack. An existing account gets this secret."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    def ask(path: str, body: str) -> httpx.Response:
        request = AWSRequest(
            "PATCH",
            f"{endpoint}{path}",
            data=body,
            headers={"x-amz-content-sha256": hashlib.sha256(body.encode()).hexdigest()},
        )
        SigV4Auth(session.get_credentials(), "s3", session.region_name).add_auth(request)
        return httpx.patch(f"{endpoint}{path}", content=body, headers=dict(request.headers), timeout=20)

    account = f"<Account><Access>{user}</Access><Secret>{secret}</Secret><Role>user</Role></Account>"
    answer = ask("/create-user", account)
    if answer.status_code == 409:
        answer = ask(f"/update-user?access={user}", f"<MutableProps><Secret>{secret}</Secret></MutableProps>")
    if not answer.is_success:
        raise UserError("bucket user", user, f"was not created: {answer.status_code} {answer.text[:200]}")


def _patiently(attempt: Callable[[], Any]) -> Any:
    """The server may still be starting."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return attempt()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def main(step: str) -> None:
    if step == "keys":
        keys(Cluster(), os.environ["MLOPS_ENV"])
    elif step == "folder":
        folder = Folder(Path(os.environ["SECRETS"]))
        keys(folder, os.environ["MLOPS_ENV"])
        files(folder)
    elif step == "database":
        database(os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["MLFLOW_AUTH_STORE_URI"])
    elif step == "bucket":
        bucket(Environment.load(), os.environ["CLIENT_KEY"])
    else:
        raise UserError("step", step, "use keys, folder, database or bucket")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except UserError as fault:
        sys.exit(str(fault))
