"""A model on its way to another environment, and the service asked for rows of which the answer is known."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.bundle import _folders, receive
from mlops import promotion, smoke
from mlops.attestations import require_approval
from mlops.bundle import Bundle, digests
from mlops.client import Client
from mlops.environment import Environment
from mlops.errors import UserError, VerificationError
from mlops.store import Store
from tests import synthetic
from tests.service import Service
from tests.service import environment as make_environment


def archive(environment: Environment, digest: str) -> bytes:
    target, model = io.BytesIO(), environment.model(synthetic.MODEL)
    model.store.pack(target, *_folders(model, digest))
    return target.getvalue()


def changed(data: bytes, change: Callable[[dict[str, bytes]], Any]) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as source:
        files = {each.name: (source.extractfile(each) or io.BytesIO()).read() for each in source}
    change(files)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return target.getvalue()


@pytest.fixture
def other(tmp_path: Path) -> Environment:
    """Another environment, with keys of its own."""
    made = make_environment(tmp_path / "other").model_copy(update={"name": "staging"})
    made.keys.new("approve", "staging")
    return made


def trust(other: Environment, environment: Environment) -> None:
    for key in environment.keys.all():
        if key.role == "build":
            other.keys.trust(key)


def test_the_same_bytes_arrive_once_their_maker_is_trusted(
    environment: Environment, other: Environment, first_bundle: Bundle
) -> None:
    digest = synthetic.publish(environment, first_bundle)
    promotion.release(environment.model(synthetic.MODEL), digest, "here")
    data, model = archive(environment, digest), other.model(synthetic.MODEL)
    with pytest.raises(VerificationError, match=r"not in the keyring; .*mlops signing-key trust"):
        receive(model, data)
    assert digests(model) == []
    trust(other, environment)
    assert receive(model, data) == receive(model, data) == digest
    with pytest.raises(VerificationError, match="is not 'staging'"):
        require_approval(model, digest)
    assert promotion.release(model, digest, "there").champion == digest
    (key,) = [key for key in other.keys.all() if key.state == "verify-only"]
    assert not (other.keys.private / f"{key.id}.pem").exists(), "it signs nothing here"


def test_a_refused_model_does_not_travel(environment: Environment, other: Environment, first_bundle: Bundle) -> None:
    digest = synthetic.publish(environment, first_bundle, "refused")
    trust(other, environment)
    with pytest.raises(VerificationError, match="was refused by the gate"):
        receive(other.model(synthetic.MODEL), archive(environment, digest))
    assert digests(other.model(synthetic.MODEL)) == []


def swapped(files: dict[str, bytes]) -> None:
    name = next(name for name in files if name.endswith("model.onnx"))
    files[name] = b"another" + files[name]


def outside(files: dict[str, bytes]) -> None:
    files["../../../outside"] = b"x"


def a_release(files: dict[str, bytes]) -> None:
    files[f"models/{synthetic.MODEL}/releases/00000001.json"] = b"{}"


def two(files: dict[str, bytes]) -> None:
    files |= {name.replace("/bundles/", "/bundles/0"): content for name, content in files.items()}


BAD: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"", "no archive": lambda data: b"x" * 4096, "cut short": lambda data: data[: len(data) // 2],
    "other bytes": lambda data: changed(data, swapped), "two bundles": lambda data: changed(data, two),
    "no bundle": lambda data: changed(data, lambda files: files.clear()),
    "a path outside": lambda data: changed(data, outside),
    "no attestation": lambda data: changed(data, lambda files: [files.pop(name) for name in [*files] if "attestations" in name]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_leaves_nothing(
    case: str, environment: Environment, other: Environment, first_bundle: Bundle, tmp_path: Path
) -> None:
    digest = synthetic.publish(environment, first_bundle)
    trust(other, environment)
    with pytest.raises(UserError):
        receive(other.model(synthetic.MODEL), BAD[case](archive(environment, digest)))
    assert Store(other.bucket).keys("") == []
    assert list(tmp_path.rglob("outside")) == []


def test_nothing_but_the_bundle_and_its_attestations_is_taken(
    environment: Environment, other: Environment, first_bundle: Bundle
) -> None:
    digest = synthetic.publish(environment, first_bundle)
    trust(other, environment)
    receive(other.model(synthetic.MODEL), changed(archive(environment, digest), a_release))
    assert [key for key in Store(other.bucket).keys("") if digest not in key] == []


def test_golden_rows_are_answered_as_in_training(
    environment: Environment, first_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = environment.model(synthetic.MODEL)
    with Service(environment, synthetic.MODEL) as service:
        here = environment.model_copy(update={"endpoint": service.url})
        monkeypatch.setenv("MLOPS_API_KEY", service.key)
        assert smoke.ask(here, model) == {"rows": 0, "digest": ""}
        digest = synthetic.publish(environment, first_bundle)
        service.serves(promotion.release(model, digest, "first").revision)
        rows = len(json.loads(first_bundle.files["golden.json"])["rows"])
        assert smoke.ask(here, model) == {"rows": rows, "digest": digest}
        predict = Client.predict

        def off(client: Client, asked: list[dict[str, Any]]) -> dict[str, Any]:
            answer = predict(client, asked)
            answer["predictions"][3]["score"] += 0.01
            return answer

        monkeypatch.setattr(Client, "predict", off)
        with pytest.raises(UserError, match=r"golden row 3 .* as .* scored it in training"):
            smoke.ask(here, model)
    monkeypatch.setattr(smoke, "_SECONDS", 1)
    with pytest.raises(UserError, match="is not ready: does not answer"):
        smoke.ask(here, model)
