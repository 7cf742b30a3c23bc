"""Hostile bundles and records, by who can write to the bucket and by insiders who hold keys.

Each is refused with a reason, a metric counts it, the last good model answers meanwhile and after a restart, and the
next good release comes through.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from securesystemslib.dsse import Envelope

from mlops import access, releases
from mlops import bundle as bundles
from mlops.attestations import attest
from mlops.bundle import FILES, Bundle, canonical
from mlops.envelope import Attestation, name_of, seal
from mlops.environment import Environment
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from tests import synthetic
from tests.service import Service, environment

MODEL = synthetic.MODEL
_DEEP = b'{"files":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
_FAR_AHEAD = 9000


@dataclass(frozen=True)
class Attack:
    name: str
    reason: str  # the label under which it is counted
    strike: Callable[[Bucket], None]
    slow: bool = False
    at_start: bool = False  # noticed by an app that starts; one that runs does not even see it


ATTACKS: list[Attack] = []


def attack(name: str, reason: str, **how: bool) -> Callable[[Callable[[Bucket], None]], None]:
    def add(strike: Callable[[Bucket], None]) -> None:
        ATTACKS.append(Attack(name, reason, strike, **how))

    return add


@dataclass
class Bucket:
    """The bucket in hostile hands: writes anything anywhere, and signs as whoever's key it is given."""

    environment: Environment
    good: Bundle
    huge: int = 64 * 2**20
    made: int = 0

    @property
    def model(self) -> RegisteredModel:
        return self.environment.model(MODEL)

    def twin(self, **files: bytes) -> Bundle:
        """The good bundle under a digest of its own, with other files where given (`model_onnx` for model.onnx)."""
        self.made += 1
        changed = {name.replace("_", "."): data for name, data in files.items()}
        return Bundle(self.good.files | {"card.md": b"twin %d\n" % self.made} | changed)

    def put(self, digest: str, name: str, data: bytes) -> None:
        self.model.store.put(f"{bundles.folder(self.model, digest)}/{name}", data)

    def place(self, files: dict[str, bytes], manifest: bytes) -> str:
        """A bundle that no `bundles.write` would write."""
        digest = hashlib.sha256(manifest).hexdigest()
        for name, data in (files | {"manifest.json": manifest}).items():
            self.put(digest, name, data)
        return digest

    def approve(self, digest: str) -> str:
        attest(self.model, "approved", digest, verdict="passed", environment="local")
        return digest

    def written(self, **files: bytes) -> str:
        """Written and approved by insiders."""
        return self.approve(bundles.write(self.model, self.twin(**files)))

    def release(self, digest: str, **changes: Any) -> None:
        """Signed by an insider."""
        about: dict[str, Any] = {"model": MODEL, "digest": digest, "environment": "local", "at": releases.now()}

        def make(revision: int) -> bytes:
            details = {"revision": revision} | self.fields(digest) | changes
            payload = Attestation(kind="released", details=details, **about).payload()
            return seal(payload, self.environment.keys, "approve", "local").envelope

        self.record(make)

    def fields(self, digest: str) -> dict[str, Any]:
        return {
            "at": releases.now().isoformat(),
            "by": "mallory",
            "why": "[/red]",
            "mode": "full",
            "champion": digest,
            "nonce": "0",
        }

    def record(self, make: Callable[[int], bytes]) -> None:
        self.model.releases.log.append(make)

    def attestation(self, digest: str, data: bytes, name: str = "") -> None:
        """Named as its content has it, if it has any."""
        if not name:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                name = f"approved-{name_of(data)}"
            name = name or "approved-0.json"
        self.environment.store.put(f"models/{MODEL}/attestations/{digest}/{name}", data)

    def signed(self, keyring: Keyring, role: Any, scope: str | None, digest: str, **changes: Any) -> bytes:
        """An approval as the platform writes it, signed with any key there is."""
        about = {"subject": [{"name": MODEL, "digest": {"sha256": digest}}], "predicateType": "urn:mlops:approved:v1"}
        predicate = {"verdict": "passed", "environment": "local", "at": releases.now().isoformat()} | changes
        payload = {"_type": "https://in-toto.io/Statement/v1", **about, "predicate": predicate}
        envelope = Envelope(json.dumps(payload).encode(), "application/vnd.in-toto+json", {})
        envelope.sign(keyring.signer(role, scope))
        return json.dumps(envelope.to_dict()).encode()


# Bundles, by who can write to the bucket


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _flips(name: str) -> None:
    @attack(f"a flipped bit in {name}", "digest" if name == "manifest.json" else "hash")
    def _(bucket: Bucket) -> None:
        digest = bucket.written()
        content = bucket.model.store.get(f"{bundles.folder(bucket.model, digest)}/{name}")
        bucket.put(digest, name, _flip(content or b""))
        bucket.release(digest)


for _name in (*FILES, "manifest.json"):
    _flips(_name)


@attack("a truncated model", "hash")
def _(bucket: Bucket) -> None:
    digest = bucket.written()
    bucket.put(digest, "model.onnx", bucket.good.files["model.onnx"][:-100])
    bucket.release(digest)


@attack("a missing file", "files")
def _(bucket: Bucket) -> None:
    twin = bucket.twin()
    bucket.release(
        bucket.approve(bucket.place({n: d for n, d in twin.files.items() if n != "golden.json"}, twin.manifest))
    )


@attack("a missing manifest", "files")
def _(bucket: Bucket) -> None:
    bucket.release(bucket.approve(bucket.twin().digest))


@attack("an extra file", "files")
def _(bucket: Bucket) -> None:
    digest = bucket.written()
    bucket.put(digest, "model.pkl", pickle.dumps(print))
    bucket.release(digest)


@attack("a huge file in place of a small one", "size")
def _(bucket: Bucket) -> None:
    digest = bucket.written()
    bucket.put(digest, "card.md", b"\0" * bucket.huge)
    bucket.release(digest)


@attack("a huge manifest", "size")
def _(bucket: Bucket) -> None:
    digest = bucket.written()
    bucket.put(digest, "manifest.json", b" " * bucket.huge)
    bucket.release(digest)


# Bundles, by insiders who can have anything approved


def _manifest(bucket: Bucket, **changes: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    twin = bucket.twin()
    return dict(twin.files), json.loads(twin.manifest) | changes


@attack("names in the manifest that leave the bundle's folder", "files")
def _(bucket: Bucket) -> None:
    files, manifest = _manifest(bucket)
    manifest["files"]["../../../../etc/cron.d/x"] = manifest["files"].pop("card.md")
    bucket.release(bucket.approve(bucket.place(files, canonical(manifest))))


@attack("a manifest that says less than the file has", "size")
def _(bucket: Bucket) -> None:
    files, manifest = _manifest(bucket)
    manifest["files"]["model.onnx"]["bytes"] = 10
    bucket.release(bucket.approve(bucket.place(files, canonical(manifest))))


@attack("a manifest that says more than fits", "manifest")
def _(bucket: Bucket) -> None:
    files, manifest = _manifest(bucket)
    manifest["files"]["model.onnx"]["bytes"] = 10**15
    bucket.release(bucket.approve(bucket.place(files, canonical(manifest))))


@attack("a manifest with an infinite size", "manifest")
def _(bucket: Bucket) -> None:
    files, manifest = _manifest(bucket)
    manifest["files"]["model.onnx"]["bytes"] = float("inf")
    bucket.release(bucket.approve(bucket.place(files, json.dumps(manifest).encode())))


@attack("a manifest nested deeply", "manifest")
def _(bucket: Bucket) -> None:
    bucket.release(bucket.approve(bucket.place(bucket.twin().files, _DEEP)))


def _contracts(name: str, change: Callable[[bytes], bytes], reason: str = "contract") -> None:
    @attack(name, reason)
    def _(bucket: Bucket) -> None:
        bucket.release(bucket.written(contract_json=change(bucket.good.files["contract.json"])))


_contracts("another model's contract", lambda raw: raw.replace(b'"synthetic"', b'"other"'))
_contracts("a contract nested deeply", lambda _: _DEEP)
_contracts("a contract whose merge keys multiply", lambda _: b"".join(b"k%d: &k%d {<<: [%s], x%d: 1}\n" % (
    n, n, b", ".join([b"*k%d" % (n - 1)] * 9) if n else b"{}", n) for n in range(12)
))  # fmt: skip
_contracts("a contract of megabytes", lambda raw: raw + b" " * 5 * 2**20, "size")
_contracts(
    "a contract with a column more",
    lambda raw: raw.replace(b'"heat": {', b'"more": {"type": "number", "missing": true}, "heat": {'),
    "profile",
)


def _profiles(name: str, change: Callable[[dict[str, Any]], object]) -> None:
    @attack(name, "profile")
    def _(bucket: Bucket) -> None:
        profile = bucket.good.json("profile.json")
        change(profile)
        bucket.release(bucket.written(profile_json=canonical(profile)))


_profiles("a profile without levels", lambda p: p.pop("levels"))
_profiles("a profile without the score's bins", lambda p: p["bins"].pop("score"))
_profiles("a profile with fewer shares than bins", lambda p: p["bins"]["size"]["expected"].pop())
_profiles(
    "a profile with a million bins",
    lambda p: p["bins"]["size"].update(edges=list(range(10**5)), expected=[0] * (10**5 + 2)),
)
_profiles("a profile with a category's bins for a number", lambda p: p["bins"]["size"].update(levels=["a"]))
_profiles("a profile with edges out of order", lambda p: p["bins"]["size"]["edges"].reverse())


@attack("a profile nested deeply", "profile")
def _(bucket: Bucket) -> None:
    bucket.release(bucket.written(profile_json=_DEEP))


def _goldens(name: str, change: Callable[[dict[str, Any]], object]) -> None:
    @attack(name, "golden")
    def _(bucket: Bucket) -> None:
        golden = bucket.good.json("golden.json")
        change(golden)
        bucket.release(bucket.written(golden_json=json.dumps(golden).encode()))


_goldens("golden rows that the model does not meet", lambda g: g["scores"].__setitem__(7, 0.99999))
_goldens("no golden rows", lambda g: g.update(rows=[], scores=[]))
_goldens("fewer golden scores than rows", lambda g: g["scores"].pop())
_goldens("golden scores that are no numbers", lambda g: g.update(scores=[float("nan")] * len(g["scores"])))
_goldens("infinite golden scores", lambda g: g.update(scores=[float("inf")] * len(g["scores"])))


@attack("golden rows that the contract refuses", "golden")
def _(bucket: Bucket) -> None:
    golden = bucket.good.json("golden.json")
    golden["rows"][3]["region"] = "nowhere"
    bucket.release(bucket.written(golden_json=canonical(golden)))


# Models


def _models(name: str, reason: str, make: Callable[[onnx.ModelProto], onnx.ModelProto | bytes], **how: bool) -> None:
    @attack(name, reason, **how)
    def _(bucket: Bucket) -> None:
        made = make(onnx.load_model_from_string(bucket.good.files["model.onnx"]))
        bucket.release(bucket.written(model_onnx=made if isinstance(made, bytes) else made.SerializeToString()))


def _pickled(_: onnx.ModelProto) -> bytes:
    class Payload:
        def __reduce__(self) -> Any:
            return print, ("run",)

    return pickle.dumps(Payload())


def _zip_bomb(_: onnx.ModelProto) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model.onnx", b"\0" * 100 * 2**20)
    return packed.getvalue()


def _with(nodes: list[onnx.NodeProto], *tensors: onnx.TensorProto) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """The good graph, with nodes between its score and its output, from `score` to `changed`."""

    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        output = model.graph.output[-1].name
        for node in model.graph.node:
            node.output[:] = ["score" if name == output else name for name in node.output]
            node.input[:] = ["score" if name == output else name for name in node.input]
        for node in nodes:
            node.output[:] = [output if name == "changed" else name for name in node.output]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensors)
        return model

    return change


def _branch(name: str = "inner") -> onnx.GraphProto:
    value = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Constant", [], [value.name], value_float=1.0)], name, [], [value])


def _custom(model: onnx.ModelProto) -> onnx.ModelProto:
    model.opset_import.append(helper.make_opsetid("evil", 1))
    return _with([helper.make_node("Run", ["score"], ["changed"], domain="evil")])(model)


def _function(model: onnx.ModelProto) -> onnx.ModelProto:
    body = [helper.make_node("Neg", ["x"], ["y"])]
    model.functions.append(helper.make_function("", "Own", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    return model


def _external(model: onnx.ModelProto) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.zeros(8, np.float32), "stolen")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../keys/build.pem")
    model.graph.initializer.append(tensor)
    return model


def _external_sparse(model: onnx.ModelProto) -> onnx.ModelProto:
    sparse = model.graph.sparse_initializer.add(dims=[8])
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "at"))
    sparse.values.CopyFrom(_external(onnx.ModelProto()).graph.initializer[0])
    return model


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    old = model.graph.input[0].name
    model.graph.input[0].name = "other"
    for node in model.graph.node:
        node.input[:] = ["other" if name == old else name for name in node.input]
    return model


def _crowd(model: onnx.ModelProto) -> bytes:
    nodes = b"\n\0" * 8_000_000  # field 1 of the graph, empty: small here, large once it is read
    length, rest = b"", len(nodes)
    while rest:
        length, rest = length + bytes([rest & 0x7F | (0x80 if rest > 0x7F else 0)]), rest >> 7
    return model.SerializeToString() + b":" + length + nodes  # field 7 of the model, merged with its graph


_HOG = [
    helper.make_node("ConstantOfShape", ["hog_shape"], ["hog"]),
    helper.make_node("ReduceMax", ["hog"], ["hog_sum"], keepdims=0),
    helper.make_node("Add", ["score", "hog_sum"], ["changed"]),
]
_BATCH = [  # one answer for all rows: right for golden rows of which there is one
    helper.make_node("ReduceMean", ["score", "rows"], ["changed"], keepdims=1)
]
_ROWS = numpy_helper.from_array(np.array([0]), "rows")
_STEPS = 400
_SPIN = [
    helper.make_node("ReduceMean", ["score"], ["mean"], keepdims=0),
    helper.make_node("Expand", ["mean", "hog_shape"], ["spin0"]),
    *(helper.make_node("MatMul", [f"spin{n}", f"spin{n}"], [f"spin{n + 1}"]) for n in range(_STEPS)),
    helper.make_node("ReduceMin", [f"spin{_STEPS}"], ["least"], keepdims=0),
    helper.make_node("Add", ["score", "least"], ["changed"]),
]


def _shape(*dims: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(dims, np.int64), "hog_shape")


_models("a pickle in place of the model", "onnx", _pickled)
_models("a zip bomb in place of the model", "onnx", _zip_bomb, slow=True)
_models("half a model", "onnx", lambda model: model.SerializeToString()[:20_000], slow=True)
_models("no model at all", "contract", lambda _: b"")
_models(
    "an If",
    "operators",
    _with([helper.make_node("If", ["c"], ["changed"], then_branch=_branch(), else_branch=_branch())]),
)
_models("a Loop", "operators", _with([helper.make_node("Loop", ["m", ""], ["changed"], body=_branch())]), slow=True)
_models(
    "a Scan",
    "operators",
    _with([helper.make_node("Scan", ["score"], ["changed"], body=_branch(), num_scan_inputs=1)]),
    slow=True,
)
_models("an operator of a custom domain", "operators", _custom)
_models("a function of its own", "operators", _function)
_models("weights in another file", "operators", _external)
_models("sparse weights in another file", "operators", _external_sparse)
_models("inputs that the contract does not have", "contract", _renamed)
_models(
    "scores that are no numbers",
    "golden",
    _with(
        [helper.make_node("Sqrt", ["low"], ["nan"]), helper.make_node("Add", ["score", "nan"], ["changed"])],
        numpy_helper.from_array(np.array([-1], np.float32), "low"),
    ),
)
_models("a model that takes gigabytes to load", "load", _with(_HOG, _shape(2**16, 2**16)))
_models("a model that takes minutes", "operators", _with(_SPIN, _shape(2000, 2000)), slow=True)
_models("a model of eight million empty nodes", "onnx", _crowd, slow=True)


@attack("a model that gives all rows of a request one answer", "golden")
def _(bucket: Bucket) -> None:
    golden = bucket.good.json("golden.json")
    model = _with(_BATCH, _ROWS)(onnx.load_model_from_string(bucket.good.files["model.onnx"]))
    one = canonical({"rows": golden["rows"][:1], "scores": golden["scores"][:1]})
    bucket.release(bucket.written(model_onnx=model.SerializeToString(), golden_json=one))


# Attestations


@attack("a bundle without any signature", "approval")
def _(bucket: Bucket) -> None:
    bucket.release(bundles.write(bucket.model, bucket.twin()))


@attack("a model that the gate refused, released by hand", "approval")
def _(bucket: Bucket) -> None:
    bucket.release(synthetic.publish(bucket.environment, bucket.twin(), "refused"))


def _approvals(name: str, reason: str, forge: Callable[[Bucket, str], bytes]) -> None:
    @attack(name, reason)
    def _(bucket: Bucket) -> None:
        digest = synthetic.publish(bucket.environment, bucket.twin())
        bucket.attestation(digest, forge(bucket, digest))
        bucket.release(digest)


def _foreign(bucket: Bucket, digest: str) -> bytes:
    own = Keyring(bucket.environment.home / f"foreign-{bucket.made}" / "keyring.json")
    own.new("approve", "local")
    return bucket.signed(own, "approve", "local", digest)


def _elsewhere(bucket: Bucket, digest: str) -> bytes:
    bucket.environment.keys.new("approve", "prod")
    return bucket.signed(bucket.environment.keys, "approve", "prod", digest, environment="prod")


def _relabelled(bucket: Bucket, digest: str) -> bytes:
    bucket.environment.keys.new("approve", "prod")
    return bucket.signed(bucket.environment.keys, "approve", "prod", digest)


def _tampered(bucket: Bucket, digest: str) -> bytes:
    envelope = json.loads(bucket.signed(bucket.environment.keys, "approve", "local", "0" * 64))
    payload = base64.b64decode(envelope["payload"]).replace(b"0" * 64, digest.encode())
    return json.dumps(envelope | {"payload": base64.b64encode(payload).decode()}).encode()


def _unsigned(bucket: Bucket, digest: str) -> bytes:
    return json.dumps(
        json.loads(bucket.signed(bucket.environment.keys, "approve", "local", digest)) | {"signatures": []}
    ).encode()


def _copied(bucket: Bucket, _: str) -> bytes:
    return bucket.signed(bucket.environment.keys, "approve", "local", bucket.good.digest)


def _broken_key(change: Callable[[dict[str, Any]], object]) -> Callable[[Bucket, str], bytes]:
    """Signed by a key whose entry in the keyring then breaks."""

    def forge(bucket: Bucket, digest: str) -> bytes:
        keyring = bucket.environment.keys
        key = keyring.new("approve", "local")
        signed = bucket.signed(keyring, "approve", "local", digest)
        entries = json.loads(keyring.path.read_text())
        change(next(entry for entry in entries["keys"] if entry["id"] == key.id))
        keyring.path.write_text(json.dumps(entries))
        return signed

    return forge


def _revoked(bucket: Bucket, digest: str) -> bytes:
    key = bucket.environment.keys.new("approve", "local")
    signed = bucket.signed(bucket.environment.keys, "approve", "local", digest)
    bucket.environment.keys.set_state(key.id, "revoked")
    return signed


_approvals("an approval by a foreign key", "signature", _foreign)
_approvals("an approval for another environment", "environment", _elsewhere)
_approvals("an approval by another environment's key", "signature", _relabelled)
_approvals("an approval by a revoked key", "revoked", _revoked)
_approvals(
    "an approval by the build key", "signature", lambda b, digest: b.signed(b.environment.keys, "build", None, digest)
)
_approvals("an approval of another bundle, copied over", "attestation", _copied)
_approvals("an approval with another payload", "signature", _tampered)
_approvals("an approval that nobody signed", "attestation", _unsigned)
_approvals("an approval that is not JSON", "attestation", lambda *_: b"\xff\x00not JSON")
_approvals("an approval nested deeply", "attestation", lambda *_: _DEEP)
_approvals("a huge approval", "size", lambda bucket, _: b" " * bucket.huge)
_approvals(
    "an approval by a key whose entry is no key",
    "signature",
    _broken_key(lambda entry: entry.update(public="-----BEGIN x", state="verify-only")),
)
_approvals(
    "an approval at no time zone",
    "attestation",
    lambda b, d: b.signed(b.environment.keys, "approve", "local", d, at="2024-01-01T00:00:00"),
)


@attack("more attestations than anybody writes", "attestation")
def _(bucket: Bucket) -> None:
    digest = bucket.written()
    for number in range(1001):
        bucket.attestation(digest, b"{}", f"gate-{number}.json")
    bucket.release(digest)


# Records


def _records(name: str, make: Callable[[int], bytes]) -> None:
    @attack(name, "record")
    def _(bucket: Bucket) -> None:
        bucket.record(make)


_records("a record that is garbage", lambda _: b"\xff\xfe\x00garbage")
_records("an empty record", lambda _: b"")
_records("a record nested deeply", lambda _: _DEEP)
_records("a record that is a list", lambda _: b"[]")


@attack("a huge record", "record")
def _(bucket: Bucket) -> None:
    bucket.record(lambda _: b" " * bucket.huge)


def _changed(name: str, reason: str, **changes: Any) -> None:
    @attack(name, reason)
    def _(bucket: Bucket) -> None:
        bucket.release(**{"digest": bucket.good.digest} | changes)


_changed("a record with another number inside", "record", revision=1)
_changed("a record with a mode that nobody knows", "record", mode="turbo")
_changed("a canary without a challenger", "record", mode="canary", weight=0.5)
_changed("a challenger that nobody approved", "approval", mode="canary", weight=0.5, challenger="ab" * 32)
_changed("a shadow that nobody approved", "approval", mode="shadow", challenger="ab" * 32)
_changed("a record of an unknown digest", "approval", digest="ab" * 32)
_changed("a record whose digest leaves the folder", "record", digest="../../../keys")
_changed("a record at no time zone", "record", at="2024-01-01T00:00:00")
_changed("a record active at no time zone", "record", activate_at="2024-01-01T00:00:00")
_changed("a record far in the future", "future", at="9999-12-31T23:59:59-23:59")
_changed("a record with a field more", "record", run="rm -rf /")


@attack("a record with an infinite weight", "record")
def _(bucket: Bucket) -> None:
    record = bucket.fields(bucket.good.digest) | {"mode": "canary", "challenger": "ab" * 32, "weight": float("inf")}
    bucket.record(lambda revision: json.dumps(record | {"revision": revision}).encode())


@attack("a record that nobody signed", "signature")
def _(bucket: Bucket) -> None:
    record = bucket.fields(bucket.approve(bucket.twin().digest))
    bucket.record(lambda revision: json.dumps(record | {"revision": revision}).encode())


@attack("a record far ahead", "revision", at_start=True)
def _(bucket: Bucket) -> None:
    record = {
        "revision": _FAR_AHEAD,
        "at": releases.now().isoformat(),
        "by": "mallory",
        "why": "",
        "mode": "full",
        "nonce": "0",
    }
    key = bucket.model.releases.log.key(_FAR_AHEAD)
    bucket.environment.store.put(key, json.dumps(record | {"champion": bucket.good.digest}).encode())


def _keys(name: str, data: bytes) -> None:
    @attack(name, "access")
    def _(bucket: Bucket) -> None:
        access.access_log(bucket.environment.store).append(lambda _: data)


_keys("a garbage record of API keys", b"garbage")
_keys("an empty record of API keys", b"")
_keys("API keys with a hash that is none", json.dumps({"nonce": "", "keys": [
    {"id": "0", "name": "", "sha256": "é", "scopes": [], "per_second": 0, "created": "2024-01-01T00:00:00"}]}).encode())  # fmt: skip


class Siege:
    """One running app under attack, asked all the while."""

    def __init__(self, home: Path, good: Bundle, other: Bundle, **settings: Any):
        self.environment = environment(home)
        self.bucket = Bucket(self.environment, good)
        self.service = Service(self.environment, MODEL, **({"poll_seconds": 0.05} | settings))
        self.good = [self.bucket.approve(synthetic.publish(self.environment, bundle)) for bundle in (good, other)]
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.looked_at = 0
        self.rss = 0.0
        self._calm, self._end = threading.Lock(), threading.Event()  # locked: nobody asks
        self._asking = threading.Thread(target=self._ask)

    def __enter__(self) -> Siege:
        self.service.start()
        self.come_through(self.good[0])
        self._asking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._asking.join()
        self.service.stop()
        self.service.http.close()

    def _ask(self) -> None:
        with httpx.Client(base_url=self.service.url, headers=dict(self.service.http.headers), timeout=10) as http:
            while not self._end.wait(0.05):
                with self._calm:
                    try:
                        answer = http.post("/predict", json={"rows": [synthetic.request()]})
                        found = (
                            answer.json().get("model_version", "")
                            if answer.status_code == 200
                            else str(answer.status_code)
                        )
                        self.rss = max(self.rss, psutil.Process(self.service.process.pid).memory_info().rss / 2**20)  # ty: ignore
                    except (httpx.HTTPError, ValueError) as error:
                        found = type(error).__name__
                self.answers[found[:12]] += 1
                if found not in self.good:
                    self.wrong.append(found)

    def refused(self, reason: str) -> float:
        return self.service.metric("mlops_release_refused_total", reason=reason)

    def holds(self) -> None:
        assert self.service.predict(synthetic.request())["revision"] == self.revision
        seen, self.looked_at = self.looked_at, len(self.wrong)
        assert not self.wrong[seen:], f"answered with {self.wrong[seen:][:3]}"

    def come_through(self, digest: str) -> float:
        """Release a good one; seconds until it serves."""
        started = time.monotonic()
        self.revision = self.bucket.model.releases.append(digest, "good").revision
        self.service.serves(self.revision, timeout=60)
        return time.monotonic() - started

    def strike(self, attack: Attack) -> None:
        """It is refused for its reason, and nothing else changes."""
        before = self.refused(attack.reason)
        attack.strike(self.bucket)
        if not attack.at_start:
            self.service.until(lambda: self.refused(attack.reason) > before, timeout=60)
        self.holds()

    def restart(self, *reasons: str) -> None:
        """A new process has only the bucket to go by."""
        with self._calm:
            self.service.stop()
            self.service.start()
            self.service.serves(self.revision, timeout=60)
        for reason in reasons:
            assert self.refused(reason), f"{reason} is not counted after a restart"
        self.holds()


def flood(siege: Siege, records: int) -> float:
    """Records of digests that nobody knows, then a good one: seconds until that serves."""
    for number in range(records):
        siege.bucket.release(f"{number:064x}")
    return siege.come_through(siege.good[0])


def prove(folder: Path) -> dict[str, Any]:
    good, other = synthetic.build(seed=1), synthetic.build(seed=2, learning_rate=0.2)
    failed: dict[str, str] = {}
    through: dict[str, float] = {}
    with Siege(folder, good, other) as siege:
        siege.bucket.huge = 300 * 2**20
        siege.service.until(lambda: siege.rss > 0)
        before = siege.rss
        for number, each in enumerate(ATTACKS):
            try:
                siege.strike(each)
                siege.restart(each.reason)
                through[each.name] = siege.come_through(siege.good[number % 2 - 1])
            except AssertionError as error:
                failed[each.name] = str(error)[:300]
        peak = siege.rss
        flooded = flood(siege, 1000)
        siege.restart()
    slowest = max(through, key=through.__getitem__)
    holds = not failed and not siege.wrong and len(ATTACKS) >= 25 and peak - before < 100
    return {
        "holds": holds,
        "reason": ""
        if holds
        else json.dumps(failed)
        if failed
        else f"{len(siege.wrong)} wrong answers, {peak - before:.0f} MB more",
        "kinds": len(ATTACKS),
        "refused_with_reason": len(ATTACKS) - len(failed),
        "answers": sum(siege.answers.values()),
        "wrong_answers": len(siege.wrong),
        "restarts": len(ATTACKS) + 1,
        "next_good_release_seconds": {
            "median": float(np.median(list(through.values()))),
            "most": through[slowest],
            "after": slowest,
        },
        "next_good_release_seconds_after_1000_records": flooded,
        "rss_mb": {"before": before, "most": peak},
        "reasons": dict(Counter(each.reason for each in ATTACKS)),
    }
