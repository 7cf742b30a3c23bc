import hashlib
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec

from mlops.contract import Contract, Window, load_contract
from mlops.errors import UserError, VerificationError
from mlops.registered_model import RegisteredModel

FILES = ("model.onnx", "contract.json", "profile.json", "golden.json", "card.md", "provenance.json")
MAX_BYTES = 256 * 1024 * 1024  # of the model
_MAX_TEXT = 4 * 1024 * 1024  # of each other file: the process that serves parses them
_MAX_CONTRACT = 512 * 1024  # of contract.json, whose every fault is told: that takes a thousand times its bytes
MAX_ROWS = 10_000  # of a request
MAX_WATCHED = 40
_MAX_BINS = 100  # a feature: each is a series


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class Bundle:
    """A model and all that serving needs, addressed by the SHA-256 of its manifest, which lists that of each file."""

    files: dict[str, bytes]

    @classmethod
    def unpacked(cls, folder: Path) -> Self:
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

    def window(self, name: Literal["train", "holdout"]) -> Window:
        return Window.parse(self.json("provenance.json")["windows"][name])


class _Entry(msgspec.Struct):
    sha256: str
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)]


class _Manifest(msgspec.Struct):
    files: dict[str, _Entry]


class _Golden(msgspec.Struct):
    rows: list[dict[str, str | float | bool | None]]
    scores: list[float]


class _Provenance(msgspec.Struct):
    windows: dict[str, str] = {}


class _Bins(msgspec.Struct):
    expected: list[float]
    edges: list[float] | msgspec.UnsetType = msgspec.UNSET
    levels: list[str] | msgspec.UnsetType = msgspec.UNSET


class _Profile(msgspec.Struct):
    bins: dict[str, _Bins]
    watched: Annotated[list[str], msgspec.Meta(max_length=MAX_WATCHED)]  # features whose bins are served as metrics
    levels: dict[str, Annotated[list[str], msgspec.Meta(min_length=1)]]
    days: dict[date, dict[str, list[int]]] = {}  # rows of the training by day, watched feature and bin

    def fits(self, contract: Contract) -> None:
        """Requests are validated and counted by it, so it must be about this contract's columns."""
        if set(self.bins) != {*contract.features, "score"}:
            raise ValueError("the bins are not those of the features and the score")
        if set(self.watched) - set(contract.features):
            raise ValueError("not all that is watched is a feature")
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
        counted = {name: len(self.bins[name].expected) for name in (*self.watched, "score")}
        for day, rows in self.days.items():
            if {name: len(counts) for name, counts in rows.items()} != counted:
                raise ValueError(f"the rows of {day} do not fit the bins")


def folder(model: RegisteredModel, digest: str) -> str:
    return f"{model.folder}/bundles/{digest}"


def write(model: RegisteredModel, bundle: Bundle) -> str:
    """The manifest comes last: a bundle without one does not exist, and writing it again completes it."""
    where, store = folder(model, bundle.digest), model.store
    for name, data in (bundle.files | {"manifest.json": bundle.manifest}).items():
        if not store.put_new(f"{where}/{name}", data) and store.get(f"{where}/{name}") != data:
            hint = "exists with other bytes; bundles never change: find out who wrote it"
            raise UserError("bundle", f"{where}/{name}", hint)
    return bundle.digest


def read(model: RegisteredModel, digest: str) -> Bundle:
    """Fetch and verify: exactly the files of the manifest, each with its size and hash, and a contract of this model."""

    def refusal(reason: str, value: object, why: str) -> VerificationError:
        return VerificationError(reason, f"bundle {digest[:12]}", value, why)

    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise refusal("digest", digest[:80], "is not a SHA-256 digest")
    where = folder(model, digest)
    manifest = _fetch(model, f"{where}/manifest.json", 64 * 1024)
    if hashlib.sha256(manifest).hexdigest() != digest:
        raise refusal("digest", "manifest.json", "does not have the digest that names the bundle")
    try:
        entries = msgspec.json.decode(manifest, type=_Manifest).files
    except (ValueError, RecursionError):
        raise refusal("manifest", "manifest.json", "is not a manifest") from None
    if odd := sorted(set(entries) ^ set(FILES)):
        raise refusal("files", odd[0][:80], f"is not listed, or not expected; a bundle has exactly {', '.join(FILES)}")
    if stray := {key.removeprefix(f"{where}/") for key in model.store.keys(where)} - {*FILES, "manifest.json"}:
        raise refusal("files", sorted(stray)[0][:80], "is not listed in the manifest")
    for name, entry in entries.items():
        limit = {"model.onnx": MAX_BYTES, "contract.json": _MAX_CONTRACT}.get(name, _MAX_TEXT)
        if entry.bytes > limit:
            raise refusal("size", name, f"has {entry.bytes} bytes, {limit} are allowed")
    files = {}
    for name, entry in entries.items():
        files[name] = _fetch(model, f"{where}/{name}", entry.bytes)
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256:
            raise refusal("hash", name, "does not have the SHA-256 of the manifest")
    bundle = Bundle(files)
    try:
        contract = bundle.contract
    except UserError as error:
        raise refusal("contract", "contract.json", str(error)) from None
    if contract.model != model.name:
        raise refusal("contract", contract.model, f"is another model's contract, not that of {model.name!r}")
    kinds: dict[str, Any] = {"profile": _Profile, "golden": _Golden, "provenance": _Provenance}
    for name, kind in kinds.items():
        try:
            found = msgspec.json.decode(files[f"{name}.json"], type=kind)
            if isinstance(found, _Profile):
                found.fits(contract)
        except (ValueError, RecursionError) as error:
            raise refusal(name, f"{name}.json", str(error)[:200]) from None
    return bundle


def _fetch(model: RegisteredModel, key: str, limit: int) -> bytes:
    data = model.store.get(key, limit)
    if data is None:
        raise VerificationError("files", "bundle", key, "is missing")
    return data


def digests(model: RegisteredModel) -> list[str]:
    keys = model.store.keys(f"{model.folder}/bundles")
    return sorted(key.split("/")[3] for key in keys if key.endswith("/manifest.json"))


def find(model: RegisteredModel, prefix: str) -> str:
    """The one digest that starts with `prefix`."""
    matching = [digest for digest in digests(model) if digest.startswith(prefix)]
    if len(matching) == 1:
        return matching[0]
    hint = f"matches {len(matching)} bundles; write more of it" if matching else "matches no bundle; see `mlops status`"
    raise UserError("digest", prefix, hint)
