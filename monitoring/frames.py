"""The columns of the prediction log, and their bounds: those of its records."""

from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any

import msgspec
import polars as pl
from msgspec import inspect

from mlops import log_schema
from mlops.contract import Contract
from mlops.log_schema import FLOAT32, MAX_TEXT, Kind

KINDS: dict[str, Kind] = {"predictions": log_schema.PredictionRecord, "outcomes": log_schema.OutcomeRecord}
FEATURE = "feature."
_TYPES = {inspect.StrType: pl.String, inspect.FloatType: pl.Float64, inspect.IntType: pl.Int64}
_UTF8 = 4  # bytes of a character, at most
Schema = dict[str, Any]


def _fields(kind: Kind) -> dict[str, tuple[Any, bool]]:
    """A record's fields except the features: type with bounds, and whether there may be none."""
    found = {}
    for field in msgspec.structs.fields(kind):
        of = inspect.type_info(field.type)
        optional = isinstance(of, inspect.UnionType)
        found[field.name] = next(each for each in of.types if type(each) in _TYPES) if optional else of, optional
    found.pop("features", None)
    return found


_FIELDS = {kind: _fields(kind) for kind in KINDS.values()}
COLUMNS: dict[Kind, Schema] = {
    kind: {name: _TYPES[type(of)] for name, (of, _) in fields.items()} for kind, fields in _FIELDS.items()
}


def may_lack(kind: Kind, name: str) -> bool:
    """Whether a file may be without this column: features, and what was not logged before."""
    return name.startswith(FEATURE) or _FIELDS[kind][name][1]


def within(kind: Kind, schema: Schema) -> Iterator[pl.Expr]:
    """Whether a row with these columns could be a record."""
    for name, dtype in schema.items():
        value, (of, optional) = pl.col(name), _FIELDS[kind].get(name, (None, True))
        if dtype == pl.String:
            fits = value.str.len_bytes() <= _UTF8 * (of.max_length if of else MAX_TEXT)
        elif dtype == pl.Boolean:
            continue
        elif of is None:
            fits = value.is_between(-FLOAT32, FLOAT32)
        else:
            fits = (value >= of.ge) & (value < of.lt if of.le is None else value <= of.le)
        yield fits.fill_null(optional)


def features(contract: Contract, names: Iterable[str]) -> Schema:
    """The columns of these features, with one type each; a boolean is read as true or false, in words."""
    types = {"number": pl.Float64, "category": pl.String, "boolean": pl.String}
    return {f"{FEATURE}{name}": types[contract.features[name].type] for name in names}


def parquet(rows: pl.DataFrame) -> bytes:
    content = BytesIO()
    rows.write_parquet(content, compression="zstd", statistics=True)
    return content.getvalue()


def hour_of_id(ids: pl.Expr) -> pl.Expr:
    """`<day>/<hour>` of a prediction, as its key in the bucket has it, from its id."""
    return pl.from_epoch(millis_of_id(ids), time_unit="ms").dt.strftime("%Y-%m-%d/%H")


def millis_of_id(ids: pl.Expr) -> pl.Expr:
    """When a prediction was made, in milliseconds since 1970; null if its id does not say."""
    return (ids.str.slice(0, 8) + ids.str.slice(9, 4)).str.to_integer(base=16, strict=False)
