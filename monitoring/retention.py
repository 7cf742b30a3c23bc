"""What is deleted: days of the log that are older than the contract keeps; and the rows of an entity that is to be
forgotten, from the log and from the snapshot of the training data."""

import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from io import BytesIO
from types import SimpleNamespace

import polars as pl
from pydantic import AwareDatetime, BaseModel, ValidationError

from mlops import snapshot
from mlops.append_log import AppendLog
from mlops.contract import Contract
from mlops.errors import VerificationError, explain
from mlops.log_schema import Kind, records
from mlops.registered_model import RegisteredModel
from mlops.releases import author, now
from monitoring.files import listed, put, read
from monitoring.frames import KINDS, parquet

SPOOLED = timedelta(hours=1)  # so long the app may hold rows that the bucket does not have yet
_IDS = 50_000  # that fit into a record


class Forgotten(BaseModel):
    """A run for one entity, which is here as a salted hash, and how much it found. The `ids` are hashes too: of its
    predictions, whose outcomes may come later; what does not fit is in further records of the same moment. `complete`:
    nothing was left when the app could not have had any more either."""

    at: AwareDatetime
    by: str
    why: str
    salt: str  # of all records of the model
    entity: str
    found: dict[str, int]  # rows of predictions, outcomes and snapshot, and files; damaged ones, which may have more
    complete: bool
    ids: list[str] = []


def expire(model: RegisteredModel, kind: str, days: int, at: datetime) -> int:
    """Delete the days of the log that ended more than `days` before `at`; returns the number of objects."""
    folders = [f"{kind}/{model.name}", f"damaged/{kind}/{model.name}"]
    first_kept = f"{at - timedelta(days=days):%Y-%m-%d}"
    old = [key for folder in folders for key in model.store.keys(folder) if key < f"{folder}/{first_kept}"]
    for key in old:
        model.store.delete(key)
    return len(old)


def forgotten(model: RegisteredModel) -> Callable[[pl.Expr], pl.Expr]:
    """Whether no training may see the rows of an entity: `rows.filter(~forgotten(model)(pl.col("entity")))` in the log,
    `rows.filter(~forgotten(model)(entity_of(contract)))` in a snapshot."""
    records = _records(model)
    return _among(records[0].salt if records else "", {each.entity for each in records})


def entity_of(contract: Contract) -> pl.Expr:
    """Of rows with a request's columns: their entity, as the log has it."""
    numbers = [name for name, feature in contract.features.items() if feature.type == "number"]
    columns = [pl.col(name).cast(pl.Float64) if name in numbers else pl.col(name) for name in contract.entity]
    return pl.struct(columns).map_elements(lambda row: contract.entity_of(SimpleNamespace(**row)), pl.String)


def forget(model: RegisteredModel, contract: Contract | None, entity: str, why: str) -> Forgotten:
    """Delete the rows of an entity. What was found is recorded first: from then on no training sees them, and what a run
    that is killed leaves behind the next one finds. Damaged files stay as they are, and are counted. Raises
    ConflictError if another run wrote its record meanwhile."""
    records = _records(model)
    salt = records[0].salt if records else secrets.token_hex(16)
    earlier = [each for each in records if each.entity == _hash(salt, entity)]
    predictions, damaged = _holding(model, "predictions", pl.col("entity") == entity)
    ids = sorted(set[str]().union(*predictions.values()))
    known = _among(salt, {one for each in earlier for one in each.ids})
    outcomes, more = _holding(model, "outcomes", pl.col("id").is_in(ids) | known(pl.col("id")))
    kept, gone = _snapshot(model, contract, entity)
    found = {"predictions": len(ids), "outcomes": sum(map(len, outcomes.values())), "snapshot": gone}
    found |= {"files": len(predictions) + len(outcomes) + (gone > 0), "damaged": damaged + more}
    last = max((each.at for each in earlier if each.found["files"] or each is earlier[0]), default=now())
    complete = found["files"] + found["damaged"] == 0 and now() - last >= SPOOLED
    done = Forgotten(
        at=now(), by=author(), why=why, salt=salt, entity=_hash(salt, entity), found=found, complete=complete
    )
    for start in range(0, max(len(ids), 1), _IDS):
        part = done.model_copy(update={"ids": [_hash(salt, each) for each in ids[start : start + _IDS]]})
        _log(model).append(lambda _, part=part: part.model_dump_json().encode(), len(records) + start // _IDS)
    for key, those in (outcomes | predictions).items():
        _rewrite(model, key, those)
    if gone:
        snapshot.put(model.store, model.name, parquet(kept))
    return done


def _log(model: RegisteredModel) -> AppendLog:
    return AppendLog(model.store, f"{model.folder}/forgotten")


def _records(model: RegisteredModel) -> list[Forgotten]:
    """Raises VerificationError if one is damaged: without it nobody knows whose rows no training may see."""
    try:
        return [Forgotten.model_validate_json(raw) for _, raw in _log(model).tail()]
    except ValidationError as error:
        raise VerificationError("record", f"{model.folder}/forgotten", "damaged", explain(error)[0][:300]) from None


def _hash(salt: str, text: str) -> str:
    return hashlib.blake2b(text.encode(), key=salt.encode(), digest_size=8).hexdigest()


def _among(salt: str, hashes: set[str]) -> Callable[[pl.Expr], pl.Expr]:
    """Whether texts are among those of which these are the hashes."""

    def among(texts: pl.Series) -> pl.Series:
        distinct = texts.drop_nulls().unique().to_list() if hashes else []
        return texts.is_in([text for text in distinct if _hash(salt, text) in hashes]).fill_null(False)

    return lambda texts: texts.map_batches(among, pl.Boolean)


def _holding(model: RegisteredModel, kind: str, which: pl.Expr) -> tuple[dict[str, set[str]], int]:
    """The ids of such rows, by file of the log, and the number of damaged files. It is listed until nothing is new: a file
    that is gone was compacted."""
    schema = dict.fromkeys(["id", "entity"] if kind == "predictions" else ["id"], pl.String)
    found, seen, damaged = dict[str, set[str]](), set[str](), 0
    while new := [key for key in listed(model.store, f"{kind}/{model.name}") if key not in seen]:
        seen |= set(new)
        for key in new:
            file = read(model.store, key, schema)
            damaged += file is not None and file.lost > 0
            if file and not file.lost and (rows := file.rows.filter(which)).height:
                found[key] = set(rows["id"])
    return found, damaged + len(listed(model.store, f"damaged/{kind}/{model.name}"))


def _rewrite(model: RegisteredModel, key: str, ids: set[str]) -> None:
    """What is left, by its new name. An empty file stays: its name says which release answered, and rollback asks for that."""
    file = read(model.store, key)
    if file is None or file.lost:  # compacted meanwhile: the next run finds what it became
        return
    folder, _, name = key.rpartition("/")
    suffix = name.rpartition(".")[2]
    if suffix == "parquet":
        kept = parquet(file.rows.filter(~pl.col("id").is_in(list(ids))))
    else:  # of a line that was cut short nobody knows whose it is: it goes too
        lines = (model.store.get(key) or b"").splitlines(keepends=True)
        kept = b"".join(each for each in lines if not _ids(each, KINDS[key.partition("/")[0]]) <= ids)
    if put(model.store, f"{folder}/{name[:8]}", kept, suffix) != key:
        model.store.delete(key)


def _ids(line: bytes, kind: Kind) -> set[str]:
    return {each.id for each in records(line, kind)[0]}


def _snapshot(model: RegisteredModel, contract: Contract | None, entity: str) -> tuple[pl.DataFrame, int]:
    """Its other rows, and how many are the entity's."""
    rows = pl.read_parquet(BytesIO(snapshot.get(model.store, model.name) or parquet(pl.DataFrame())))
    if contract is None or not contract.entity or set(contract.entity) - set(rows.columns):
        return rows, 0
    kept = rows.filter(entity_of(contract).eq_missing(entity).not_())
    return kept, rows.height - kept.height
