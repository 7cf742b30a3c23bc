from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from mlops.bundle import MAX_ROWS
from mlops.contract import Contract, Feature
from mlops.log_schema import FLOAT32, MAX_TEXT, Number, Text
from mlops.moments import moment

_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Moment(str):
    """ISO 8601, in UTC."""

    __slots__ = ()


def _read_moment(zone: str, kind: type, value: Any) -> Any:
    if kind is not Moment or not isinstance(value, (str, date)):
        raise ValueError(f"Expected a time (ISO 8601), got `{type(value).__name__}`")
    return Moment(moment(value, zone).isoformat())


def moment_schema(_: type) -> dict[str, Any]:
    """For OpenAPI."""
    examples = ["2024-05-01T12:00:00Z", "2024-05-01"]
    return {"type": "string", "maxLength": 40, "description": "ISO 8601", "examples": examples}


def _type(feature: Feature, levels: Sequence[str]) -> Any:
    if feature.type == "boolean":
        kind: Any = bool
    elif feature.type == "number":
        low, high = (min(max(bound, -FLOAT32), FLOAT32) for bound in feature.range or (-FLOAT32, FLOAT32))
        kind = Annotated[float, msgspec.Meta(ge=low, le=high, description=feature.description or None)]
    elif feature.unknown == "reject":
        kind = Literal[tuple(levels)]  # ty: ignore[invalid-type-form]
    else:
        kind = Annotated[str, msgspec.Meta(max_length=MAX_TEXT, description=feature.description or None)]
    return kind | None if feature.missing else kind


class RowSchema:
    """A contract compiled: the type of a request, and its rows as the graph's inputs.

    The API, batch scoring and training all turn rows into arrays here, so that they cannot differ. Every column is
    bounded, and so is what the log has of a row: `log_schema` names the bounds.
    """

    def __init__(self, contract: Contract, levels: Mapping[str, Sequence[str]]):
        self.contract = contract
        self.names = [*contract.numbers, *contract.categories]
        fields: list[Any] = []
        for name in self.names:
            feature = contract.features[name]
            fields.append((name, _type(feature, levels.get(name, ())), *([None] if feature.missing else [])))
        event = contract.time.column if contract.time else ""
        fields += [
            (name, (Moment if name == event else Text | _Integer | Number) | None, None) for name in contract.context
        ]
        self.Row = msgspec.defstruct("Row", fields, kw_only=True, forbid_unknown_fields=True, omit_defaults=True)
        self._numbers = len(contract.numbers)
        self._missing = any(contract.features[name].missing for name in contract.categories)
        rows = Annotated[list[self.Row], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]  # ty: ignore[invalid-type-form]
        about = "keeps a caller with one model if the contract names no entity"
        key = Annotated[str, msgspec.Meta(max_length=MAX_TEXT, description=about)]
        more = ("key", key | None, None)
        self.Request = msgspec.defstruct("PredictRequest", [("rows", rows), more], forbid_unknown_fields=True)
        raw = Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]
        undecoded = msgspec.defstruct("PredictRequest", [("rows", raw), more], forbid_unknown_fields=True)
        self._hook = partial(_read_moment, contract.zone)
        self._decode, self._decode_row = self.decoder(undecoded).decode, self.decoder(self.Row).decode

    def decoder(self, kind: Any) -> msgspec.json.Decoder[Any]:
        """`kind`: Row, Request or lists of them."""
        return msgspec.json.Decoder(kind, dec_hook=self._hook)

    def decode(self, body: bytes | bytearray) -> tuple[Iterator[Any], str | None]:
        """A Request's rows, each decoded when it is asked for, and its key. Both raise msgspec's errors, with the path."""
        request = self._decode(body)
        return map(self._decode_nth, count(), request.rows), request.key

    def _decode_nth(self, position: int, raw: msgspec.Raw) -> Any:
        try:
            return self._decode_row(raw)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            raise msgspec.ValidationError(f"{text} - at `$.rows[{position}]{path or '`'}") from None

    def convert(self, values: Any, kind: Any) -> Any:
        return msgspec.convert(values, kind, dec_hook=self._hook, builtin_types=(date,))

    def row(self, values: Mapping[str, Any]) -> Any:
        """One row from a mapping, with the checks of the API. Raises msgspec.ValidationError naming the field."""
        return self.convert(values, self.Row)

    def arrays(self, rows: Iterable[Any]) -> dict[str, np.ndarray]:
        """The graph's inputs: `numbers` (rows, numbers) in float32, missing ones NaN; `categories` (rows, categories)
        as strings, missing ones ""; in the contract's order. An input without columns is left out."""
        first, last = self._numbers, len(self.names)
        values = [msgspec.structs.astuple(row) for row in rows]
        feed: dict[str, np.ndarray] = {}
        if first:
            feed["numbers"] = np.array([row[:first] for row in values], dtype=np.float32)  # None becomes NaN
        if last > first:
            strings = [row[first:last] for row in values]
            if self._missing:
                strings = [["" if value is None else value for value in row] for row in strings]
            feed["categories"] = np.array(strings, dtype=object)
        return feed
