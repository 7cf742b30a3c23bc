"""Approvals signed in AWS KMS, and credentials from EKS Pod Identity: moto plays AWS, by HTTP."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from moto.core import enable_iam_authentication
from moto.kms.utils import ECDSAPrivateKey
from moto.server import ThreadedMotoServer
from obstore.exceptions import BaseError, PermissionDeniedError

from environments.local.platform import free_port
from mlops import promotion
from mlops.attestations import attest, require_approval
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.errors import UserError, VerificationError
from mlops.keys import Key, Keyring
from mlops.store import Store
from tests import synthetic
from tests.service import Service
from tests.service import environment as make_environment

DIGEST = "a" * 64
SIGNS = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}


def new_key(**about: Any) -> str:
    return boto3.client("kms").create_key(**(about or SIGNS))["KeyMetadata"]["Arn"]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """In this process, since its KMS must be corrected: AWS does not hash again what it is told to be a digest."""

    def sign(key: ECDSAPrivateKey, digest: bytes, _: str) -> bytes:
        return key.private_key.sign(digest, ECDSA(Prehashed(SHA256())))

    server = ThreadedMotoServer("127.0.0.1", free_port(19300), verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ECDSAPrivateKey, "sign", sign)
        server.start()
        yield "http://{}:{}".format(*server.get_host_and_port())
        server.stop()


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """AWS_* for boto3 and for the bucket, whose URL it returns."""
    for name, value in {
        "AWS_ENDPOINT_URL": moto, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    name = f"bucket-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/prefix"


@pytest.fixture
def environment(tmp_path: Path, aws: str) -> Environment:
    """Its approvals are signed in KMS; its bucket is a folder."""
    made = make_environment(tmp_path)
    for file in (made.keyring, *made.keyring.parent.glob("*.pem")):
        file.unlink()
    made.keys.add_kms("approve", "local", new_key())
    made.keys.new("build")
    return made


@pytest.fixture
def without_aws(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def leave() -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)

    return leave


def approve_by(environment: Environment, digest: str, key: Key) -> None:
    """As if `key` were one that approves here."""
    path = environment.home / f"{key.id}.json"
    lie = key.model_copy(update={"role": "approve", "environment": "local", "state": "active"})
    path.write_text(json.dumps({"keys": [lie.model_dump(mode="json")]}))
    liar = replace(environment.model(synthetic.MODEL), keyring=Keyring(path))
    attest(liar, "approved", digest, verdict="passed", environment="local")


def revoked(keys: Keyring) -> Key:
    return keys.set_state(keys.add_kms("approve", "local", new_key()).id, "revoked")


# Keys that may not approve here, and what is said of their approvals.
WRONG: dict[str, tuple[Callable[[Keyring], Key], str]] = {
    "of another environment": (lambda keys: keys.add_kms("approve", "prod", new_key()), "may not sign 'approved' here"),
    "revoked": (revoked, "was made by a revoked key"),
    "of trainings": (lambda keys: keys.add_kms("build", None, new_key()), "may not sign 'approved' here"),
}


def test_a_model_approved_in_kms_is_served_without_aws(
    environment: Environment, first_bundle: Bundle, second_bundle: Bundle, without_aws: Callable[[], None]
) -> None:
    model = environment.model(synthetic.MODEL)
    promotion.release(model, synthetic.publish(environment, first_bundle), "test")
    wrong = synthetic.publish(environment, second_bundle)
    for make, _ in WRONG.values():
        approve_by(environment, wrong, make(environment.keys))
    first = model.releases.read()[0]
    record = first.model_copy(update={"revision": 2, "champion": wrong, "why": "not approved"})
    sealed = model.releases._sealed(record, "")
    without_aws()
    assert [file.name[:5] for file in environment.keyring.parent.glob("*.pem")] == ["build"]
    with Service(environment, synthetic.MODEL) as service:
        service.serves(1)
        model.releases.log.append(lambda _: sealed)
        service.until(lambda: service.metric("mlops_release_refused_total") > 0)
        assert service.predict(synthetic.request())["model_version"] == first_bundle.digest


@pytest.mark.parametrize("kind", WRONG)
def test_an_approval_by_the_wrong_key_counts_for_nothing(kind: str, environment: Environment) -> None:
    make, said = WRONG[kind]
    key = make(environment.keys)
    approve_by(environment, DIGEST, key)
    with pytest.raises(VerificationError, match=said) as error:
        require_approval(environment.model(synthetic.MODEL), DIGEST)
    assert error.value.value == key.id


KINDS: dict[str, dict[str, str]] = {
    "RSA": {"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"},
    "a larger curve": {"KeySpec": "ECC_NIST_P384", "KeyUsage": "SIGN_VERIFY"},
    "a curve of another family": {"KeySpec": "ECC_SECG_P256K1", "KeyUsage": "SIGN_VERIFY"},
    "for encryption": {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"},
    "for key agreement": {"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"},
    "symmetric": {"KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_another_kind_is_named_and_not_added(kind: str, environment: Environment) -> None:
    refused_to_add(environment, new_key(**KINDS[kind]))


def test_a_key_that_is_not_there_is_named_and_not_added(environment: Environment) -> None:
    refused_to_add(environment, new_key().replace("key/", "key/0"))


def refused_to_add(environment: Environment, kms: str) -> None:
    before = environment.keys.all()
    with pytest.raises(UserError, match="must be ECC_NIST_P256 for SIGN_VERIFY") as error:
        environment.keys.add_kms("approve", "local", kms)
    assert (error.value.value, environment.keys.all()) == (kms, before)


def test_without_a_region_the_error_names_the_key(environment: Environment, without_aws: Callable[[], None]) -> None:
    without_aws()
    with pytest.raises(UserError, match=r"key/.* must specify a region"):
        approve(environment)


def approve(environment: Environment) -> None:
    attest(environment.model(synthetic.MODEL), "approved", DIGEST, verdict="passed", environment="local")


class Agent:
    """The Pod Identity agent of a node: to who shows the pod's token, as it is now, it gives the role's credentials."""

    def __init__(self, token: Path) -> None:
        self.token, self.credentials, self.answered = token, b"", 0
        token.write_text("first")
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.headers["Authorization"] == agent.token.read_text()
                agent.answered += known
                self.send_response(200 if known else 403)
                self.end_headers()
                self.wfile.write(agent.credentials if known else b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def give(self, *actions: str, minutes: int = 60) -> None:
        """Of a role that may do these."""
        name, nobody = f"role-{secrets.token_hex(4)}", {"Version": "2012-10-17", "Statement": []}
        may = nobody | {"Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]}
        iam = boto3.client("iam")
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(nobody))["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="may", PolicyDocument=json.dumps(may))
        found = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="pod")["Credentials"]
        expires = datetime.now(UTC) + timedelta(minutes=minutes)
        self.credentials = json.dumps({
            "AccessKeyId": found["AccessKeyId"], "SecretAccessKey": found["SecretAccessKey"],
            "Token": found["SessionToken"], "Expiration": f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        }).encode()  # fmt: skip


@pytest.fixture
def agent(tmp_path: Path, aws: str) -> Iterator[Agent]:
    made = Agent(tmp_path / "token")
    with made.server as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield made
        server.shutdown()


@contextmanager
def in_a_pod(agent: Agent) -> Generator[None]:
    """Without other credentials, and where rights are enforced."""
    with pytest.MonkeyPatch.context() as patch, enable_iam_authentication():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{agent.server.server_port}/v1/credentials"
        )
        patch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(agent.token))
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield


def test_a_role_that_may_not_sign_is_told_which_key(environment: Environment, agent: Agent) -> None:
    agent.give("kms:GetPublicKey")
    kms = environment.keys.all()[0].kms
    with in_a_pod(agent), pytest.raises(UserError, match="kms:Sign must be allowed") as error:
        approve(environment)
    assert error.value.value == kms


def test_a_role_that_may_only_sign_approves(environment: Environment, agent: Agent) -> None:
    agent.give("kms:Sign")
    with in_a_pod(agent):
        approve(environment)
    require_approval(environment.model(synthetic.MODEL), DIGEST)


def test_a_role_that_may_not_read_the_public_key_is_told_which_key(environment: Environment, agent: Agent) -> None:
    agent.give("kms:Sign")
    kms = new_key()
    with in_a_pod(agent):
        refused_to_add(environment, kms)


def test_the_bucket_is_used_as_the_role_of_the_pod(agent: Agent, aws: str) -> None:
    agent.give("s3:PutObject", "s3:GetObject", "s3:ListBucket")
    with in_a_pod(agent):
        store = Store(aws)
        assert [store.put_new("a/1", b"one"), store.put_new("a/1", b"two")] == [True, False]
        assert (store.get("a/1"), store.keys("a")) == (b"one", ["a/1"])
    assert agent.answered == 1


def test_credentials_that_end_are_asked_for_again(agent: Agent, aws: str) -> None:
    agent.give("s3:PutObject", minutes=1)
    with in_a_pod(agent):
        store = Store(aws)
        store.put("a/1", b"one")
        with pytest.raises(PermissionDeniedError):
            store.get("a/1")
    agent.give("s3:GetObject")
    agent.token.write_text("second")
    time.sleep(0.2)  # object_store asks ten times a second at most
    with in_a_pod(agent):
        assert store.get("a/1") == b"one"
        with pytest.raises(PermissionDeniedError):
            store.put("a/2", b"two")


def test_the_agent_is_asked_in_plain_though_the_bucket_is_not(
    agent: Agent, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_a_pod(agent):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:1")
        with pytest.raises(BaseError):
            Store(aws).get("a/1")
    assert agent.answered == 1
