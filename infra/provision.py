"""Creates what a new environment needs and lacks: `python -m infra.provision keys|database|bucket` (and `folder`: the keys
as files, for containers without a cluster).

Secrets are made inside the cluster, so that neither Pulumi's state nor a person's disk ever has them. Each step may be
killed and repeated.
"""

import base64
import hashlib
import json
import os
import secrets
import shutil
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from infra import databases
from infra.databases import retried
from infra.identities import IDENTITIES, SECRETS, TRACKING_USERS, grants
from mlops import access
from mlops.environment import Environment
from mlops.errors import UserError
from mlops.keys import Keyring, Role, kms_key

_USER = 65532  # of our images, as the Dockerfile has it
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Cluster:
    """Creates absent Secrets and ConfigMaps in the pod's own namespace."""

    def __init__(self) -> None:
        self._namespace = (_ACCOUNT / "namespace").read_text("utf-8")
        host = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
        token = {"authorization": f"Bearer {(_ACCOUNT / 'token').read_text('utf-8')}"}
        trusted = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT  # many cluster CAs lack extensions that Python 3.13 requires
        self._http = httpx.Client(base_url=host, headers=token, verify=trusted, timeout=20)

    def create(self, kind: str, name: str, data: dict[str, str]) -> None:
        """`kind`: secrets or configmaps. Existing ones are not changed."""
        metadata = {"name": name, "labels": {"app.kubernetes.io/part-of": "mlops"}}
        body = {"metadata": metadata, "stringData" if kind == "secrets" else "data": data}
        self._call("POST", kind, "", (201, 409), body)

    def secret(self, name: str) -> dict[str, str]:
        data = self._call("GET", "secrets", f"/{name}", (200,))["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def _call(self, method: str, kind: str, path: str, expected: tuple[int, ...], body: Any = None) -> dict[str, Any]:
        answer = self._http.request(method, f"/api/v1/namespaces/{self._namespace}/{kind}{path}", json=body)
        if answer.status_code not in expected:
            raise UserError(f"{kind}{path}", answer.status_code, answer.json().get("message", "")[:300])
        return answer.json()


_USERS = {"for-grafana": 472, "for-serving": 0, "for-database": 0, "for-bucket": 0}  # of those containers


class Folder:
    """The same as files: `<name>/<key>`, each for its reader alone."""

    def __init__(self, path: Path):
        self._path = path

    def create(self, kind: str, name: str, data: dict[str, str]) -> None:  # noqa: ARG002 (all are files)
        if (self._path / name).exists():
            return
        new = self._path / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(0o700, parents=True)
        for key, value in data.items():
            (new / key).touch(0o600)
            (new / key).write_text(value, "utf-8")
        if name.startswith("for-") and os.geteuid() == 0:
            for path in (new, *new.iterdir()):
                os.chown(path, user := _USERS.get(name, _USER), user)
        new.rename(self._path / name)

    def secret(self, name: str) -> dict[str, str]:
        return {file.name: file.read_text("utf-8") for file in (self._path / name).iterdir()}


def keys(target: Cluster | Folder, environment: str) -> None:
    """Signing keys and their keyring, passwords, the bucket's identities, one API key."""
    public = []
    for role, scope in (("build", None), ("approve", environment)):
        target.create("secrets", f"signing-{role}", _signing_key(role, scope))
        public.append(json.loads(target.secret(f"signing-{role}")["key.json"]))
    target.create("configmaps", "keyring", {"keyring.json": json.dumps({"keys": public}, indent=1)})
    target.create("secrets", "database", {"password": secrets.token_hex(24)})
    target.create("secrets", "database-user", {"user": "mlflow_a", "password": secrets.token_hex(24)})
    target.create("secrets", "tracking-admin", {"password": secrets.token_hex(16), "secret-key": secrets.token_hex(32)})
    for user in TRACKING_USERS:
        login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(16)}
        target.create("secrets", f"tracking-{user}", login)
    for identity in ("root", *IDENTITIES):
        key_id = f"{identity}-{secrets.token_hex(4)}"
        pair = {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24)}
        target.create("secrets", f"bucket-{identity}", pair)
    target.create("secrets", "log-key", {"key": secrets.token_hex(32)})
    target.create("secrets", "client-key", {"client.key": access.new_secret()})
    target.create("secrets", "grafana", {"password": secrets.token_hex(16)})


def files(folder: Folder) -> None:
    """For containers without a cluster: a folder for each, with its environment variables and keys, and nobody else's."""
    read, keyring = folder.secret, folder.secret("keyring")
    more = {
        "serving": keyring,
        "training": keyring | read("signing-build"),
        "controller": keyring | read("client-key"),
        "approver": keyring | read("signing-approve"),
    }
    for workload, variables in SECRETS.items():
        lines = [f"export {name}={read(secret)[key]}\n" for name, (secret, key) in variables.items()]
        folder.create("files", f"for-{workload}", {"env": "".join(lines)} | more.get(workload, {}))
    for workload in ("database", "grafana"):
        folder.create("files", f"for-{workload}", read(workload))


def _signing_key(role: Role, environment: str | None) -> dict[str, str]:
    """In a KMS, if it has the key that approves: then only the public half is here."""
    if role == "approve" and (kms := os.environ.get("MLOPS_APPROVAL_KEY")):
        return {"key.json": kms_key(role, environment, kms).model_dump_json()}
    with tempfile.TemporaryDirectory() as folder:
        key = Keyring(Path(folder, "keyring.json")).new(role, environment)
        return {f"{key.id}.pem": Path(folder, f"{key.id}.pem").read_text("utf-8"), "key.json": key.model_dump_json()}


def bucket(environment: Environment, client_key: str) -> None:
    """In the bundled bucket: the bucket, its identities and their rights. Always: the client's API key."""
    if "ROOT_ACCESS_KEY_ID" in os.environ:
        _bundled_bucket(urlsplit(environment.bucket).netloc, os.environ["AWS_ENDPOINT_URL"])
    access.ensure(environment.store, "client", access.CLIENT, per_second=100_000, secret=client_key)


def _bundled_bucket(name: str, endpoint: str) -> None:
    import boto3
    from botocore.exceptions import ClientError

    root = (os.environ["ROOT_ACCESS_KEY_ID"], os.environ["ROOT_SECRET_ACCESS_KEY"])
    session = boto3.Session(*root, region_name=os.environ.get("AWS_REGION", "us-east-1"))
    s3 = session.client("s3", endpoint_url=endpoint)
    retried(s3.list_buckets)
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
    """The policy of `bucket`, which may be a prefix of one; `users`: identity → principal."""
    statements = [
        {
            "Effect": "Allow",
            "Principal": {"AWS": [users[identity]]},
            "Action": [action],
            "Resource": [f"arn:aws:s3:::{bucket if key else bucket.partition('/')[0]}{key}" for key in keys],
        }
        for identity in IDENTITIES
        for action, keys in grants(identity)
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def _versity_user(session: Any, endpoint: str, user: str, secret: str) -> None:
    """VersityGW's admin API, which S3 clients lack. An existing account gets this secret."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    def patch(path: str, body: str) -> httpx.Response:
        headers = {"x-amz-content-sha256": hashlib.sha256(body.encode()).hexdigest()}
        request = AWSRequest("PATCH", f"{endpoint}{path}", data=body, headers=headers)
        SigV4Auth(session.get_credentials(), "s3", session.region_name).add_auth(request)
        return httpx.patch(f"{endpoint}{path}", content=body, headers=dict(request.headers), timeout=20)

    account = f"<Account><Access>{user}</Access><Secret>{secret}</Secret><Role>user</Role></Account>"
    answer = patch("/create-user", account)
    if answer.status_code == 409:
        answer = patch(f"/update-user?access={user}", f"<MutableProps><Secret>{secret}</Secret></MutableProps>")
    if not answer.is_success:
        raise UserError("bucket user", user, f"was not created: {answer.status_code} {answer.text[:200]}")


def _print_policy(bucket: str, *principals: str) -> None:
    """For a bucket that was brought along: its owner sets it."""
    users = dict(each.partition("=")[::2] for each in principals)
    if missing := [identity for identity in IDENTITIES if not users.get(identity)]:
        raise UserError("principal", ", ".join(missing), "name one of each: policy BUCKET serving=PRINCIPAL …")
    print(json.dumps(policy(bucket, users), indent=1))


def main(step: str, *words: str) -> None:
    if step == "keys":
        keys(Cluster(), os.environ["MLOPS_ENV"])
    elif step == "folder":
        folder = Folder(Path(os.environ["SECRETS"]))
        keys(folder, os.environ["MLOPS_ENV"])
        files(folder)
    elif step == "database":
        databases.create(os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["MLFLOW_AUTH_STORE_URI"])
    elif step == "bucket":
        bucket(Environment.load(), os.environ["CLIENT_KEY"])
    elif step == "retire":
        databases.retire(os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["RETIRED_USER"])
    elif step == "policy" and words:
        _print_policy(*words)
    else:
        raise UserError("step", step, "use keys, folder, database, retire, bucket or policy")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
