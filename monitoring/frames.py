"""The prediction log as data frames: segments as the app wrote them, and the Parquet that they become."""

from collections.abc import Iterable
from io import BytesIO
from typing import Any, get_args

import msgspec
import polars as pl

from mlops import log_schema
from mlops.contract import Contract
from mlops.store import Store

Kind = type[log_schema.PredictionRecord] | type[log_schema.OutcomeRecord]
KINDS: dict[str, Kind] = {"predictions": log_schema.PredictionRecord, "outcomes": log_schema.OutcomeRecord}
_TYPES = {str: pl.String, float: pl.Float64, int: pl.Int64}


def _columns(kind: Kind) -> dict[str, Any]:
    """A record's fields except the features, with one type each, whatever the values are."""
    fields = msgspec.structs.fields(kind)
    types = {each.name: next(iter(set(get_args(each.type)) - {type(None)}), each.type) for each in fields}
    return {name: _TYPES[each] for name, each in types.items() if name != "features"}


COLUMNS = {kind: _columns(kind) for kind in KINDS.values()}


def features(contract: Contract, names: Iterable[str]) -> dict[str, Any]:
    """The columns of these features, with one type each; a boolean is read as true or false, in words."""
    types = {"number": pl.Float64, "category": pl.String, "boolean": pl.String}
    return {f"feature.{name}": types[contract.features[name].type] for name in names}


def parquet(rows: pl.DataFrame) -> bytes:
    content = BytesIO()
    rows.write_parquet(content, compression="zstd", statistics=True)
    return content.getvalue()


def decoded(content: bytes, kind: Kind) -> list[Any]:
    """The records of a segment. Raises msgspec.DecodeError at a foreign one."""
    decode = msgspec.json.Decoder(kind).decode
    return [decode(raw) for raw in log_schema.lines(content)]


def read(store: Store, key: str, kind: Kind, schema: dict[str, Any]) -> pl.DataFrame | None:
    """These columns of one file; `feature.NAME` is null if the file lacks it or has it in another type. None: the file is
    gone.

    Raises msgspec.DecodeError or polars' exceptions if it is damaged.
    """
    content = store.get(key)
    if content is None:
        return None
    if not key.endswith(".parquet"):
        rows = decoded(content, kind)
        columns = {name: [_value(row, name) for row in rows] for name in schema}
        return pl.DataFrame(columns, schema, strict=False)
    there = pl.read_parquet_schema(BytesIO(content))
    found = pl.read_parquet(BytesIO(content), columns=[name for name in schema if name in there])
    absent = [name for name in schema if name.startswith("feature.") and name not in there]
    found = found.with_columns(pl.lit(None).alias(name) for name in absent)
    return found.select(pl.col(name).cast(dtype, strict=name in COLUMNS[kind]) for name, dtype in schema.items())


def _value(row: Any, name: str) -> Any:
    if not name.startswith("feature."):
        return getattr(row, name)
    value = row.features.get(name.removeprefix("feature."))
    return str(value).lower() if isinstance(value, bool) else value


def hour_of_id(ids: pl.Expr) -> pl.Expr:
    """`<day>/<hour>` of a prediction, as its key in the bucket has it, from its id."""
    millis = (ids.str.slice(0, 8) + ids.str.slice(9, 4)).str.to_integer(base=16, strict=False)
    return pl.from_epoch(millis, time_unit="ms").dt.strftime("%Y-%m-%d/%H")
