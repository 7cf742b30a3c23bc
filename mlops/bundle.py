from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from mlops.contract import Contract, load_contract
from mlops.errors import Fault, Refused
from mlops.store import Store

FILES = ("model.onnx", "contract.json", "profile.json", "golden.json", "card.md", "provenance.json")
MAX_BYTES = 256 * 1024 * 1024  # of the model
_MAX_TEXT = 4 * 1024 * 1024  # of each other file: the process that serves parses them
MAX_ROWS = 10_000  # of a request
_MAX_BINS = 100  # a feature: each is a series


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class Bundle:
    """A model and all that serving it needs, addressed by the SHA-256 of its manifest, which holds that of each file."""

    files: dict[str, bytes]

    @classmethod
    def unpacked(cls, folder: Path) -> Bundle:
        return cls({name: (folder / name).read_bytes() for name in FILES})

    def unpack(self, folder: Path) -> None:
        for name, data in self.files.items():
            (folder / name).write_bytes(data)

    @property
    def manifest(self) -> bytes:
        entries = {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in self.files.items()}
        return canonical({"version": 1, "files": entries})

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def contract(self) -> Contract:
        return load_contract(self.files["contract.json"])

    def json(self, name: str) -> Any:
        return msgspec.json.decode(self.files[name])


class _Listed(msgspec.Struct):
    sha256: str
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)]


class _Manifest(msgspec.Struct):
    files: dict[str, _Listed]


class _Golden(msgspec.Struct):
    rows: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]
    scores: list[float]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.scores):
            raise ValueError(f"{len(self.scores)} scores for {len(self.rows)} rows")


class _Bins(msgspec.Struct):
    expected: list[float]
    edges: list[float] | msgspec.UnsetType = msgspec.UNSET
    levels: list[str] | msgspec.UnsetType = msgspec.UNSET


class _Profile(msgspec.Struct):
    bins: dict[str, _Bins]
    levels: dict[str, Annotated[list[str], msgspec.Meta(min_length=1)]]

    def fits(self, contract: Contract) -> None:
        """Requests are validated and counted by it, so it must speak of this contract's columns."""
        if set(self.bins) != {*contract.features, "score"}:
            raise ValueError("the bins are not those of the features and the score")
        if set(self.levels) != {name for name, feature in contract.features.items() if feature.unknown == "reject"}:
            raise ValueError("the levels are not those of the categories that reject unknown ones")
        for name, bins in self.bins.items():
            category = name in contract.features and contract.features[name].type == "category"
            cuts, other = (bins.levels, bins.edges) if category else (bins.edges, bins.levels)
            if cuts is msgspec.UNSET or other is not msgspec.UNSET:
                raise ValueError(f"{name} has bins of another type")
            if len(set(cuts)) != len(cuts) or (not category and sorted(cuts) != cuts):
                raise ValueError(f"the bins of {name} are not apart")
            if len(bins.expected) != len(cuts) + 2 or len(cuts) > _MAX_BINS:
                raise ValueError(f"the bins of {name} do not fit their shares")


def folder(model: str, digest: str) -> str:
    return f"models/{model}/bundles/{digest}"


def write(store: Store, model: str, bundle: Bundle) -> str:
    """The manifest comes last: a bundle without one does not exist, and writing it again completes it."""
    where = folder(model, bundle.digest)
    for name, data in (bundle.files | {"manifest.json": bundle.manifest}).items():
        if not store.put_new(f"{where}/{name}", data) and store.get(f"{where}/{name}") != data:
            raise Fault("bundle", f"{where}/{name}", "exists with other bytes; bundles never change, so look who wrote it")
    return bundle.digest


def read(store: Store, model: str, digest: str) -> Bundle:
    """Fetch and verify: exactly the files of the manifest, each with its size and hash, and a contract of this model."""

    def refuse(reason: str, value: object, why: str) -> Refused:
        return Refused(reason, f"bundle {digest[:12]}", value, why)

    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise refuse("digest", digest[:80], "is not a SHA-256 digest")
    where = folder(model, digest)
    manifest = _fetch(store, f"{where}/manifest.json", 64 * 1024)
    if hashlib.sha256(manifest).hexdigest() != digest:
        raise refuse("digest", "manifest.json", "does not have the digest that names the bundle")
    try:
        listed = msgspec.json.decode(manifest, type=_Manifest).files
    except (ValueError, RecursionError):
        raise refuse("manifest", "manifest.json", "is not a manifest") from None
    if set(listed) != set(FILES):
        raise refuse("files", sorted(set(listed) ^ set(FILES))[0][:80], f"listed or missing; a bundle has exactly {', '.join(FILES)}")
    stray = {key.removeprefix(f"{where}/") for key in store.keys(where)} - set(FILES) - {"manifest.json"}
    if stray:
        raise refuse("files", sorted(stray)[0], "is not listed in the manifest")
    for name, entry in listed.items():
        if name != "model.onnx" and entry.bytes > _MAX_TEXT:
            raise refuse("size", name, f"has {entry.bytes} bytes, {_MAX_TEXT} are allowed")
    files = {}
    for name, entry in listed.items():
        files[name] = _fetch(store, f"{where}/{name}", entry.bytes)
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256:
            raise refuse("hash", name, "does not have the SHA-256 of the manifest")
    bundle = Bundle(files)
    try:
        contract = bundle.contract
    except Fault as fault:
        raise refuse("contract", "contract.json", str(fault)) from None
    if contract.model != model:
        raise refuse("contract", contract.model, f"is another model's contract, not that of {model!r}")
    for name, kind in (("profile.json", _Profile), ("golden.json", _Golden), ("provenance.json", dict[str, Any])):
        try:
            found = msgspec.json.decode(files[name], type=kind)
            if isinstance(found, _Profile):
                found.fits(contract)
        except (ValueError, RecursionError) as error:
            raise refuse(name.removesuffix(".json"), name, str(error)[:200]) from None
    return bundle


def _fetch(store: Store, key: str, limit: int) -> bytes:
    data = store.get(key, limit)
    if data is None:
        raise Refused("files", "bundle", key, "is missing")
    return data


def find(store: Store, model: str, prefix: str) -> str:
    """The one digest that starts with `prefix`."""
    found = {key.split("/")[3] for key in store.keys(f"models/{model}/bundles") if key.endswith("/manifest.json")}
    matching = sorted(d for d in found if d.startswith(prefix))
    if len(matching) == 1:
        return matching[0]
    way_out = "matches " + (f"{len(matching)} bundles; write more of it" if matching else "no bundle; see `mlops status`")
    raise Fault("digest", prefix, way_out)
