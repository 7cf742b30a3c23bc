"""Whatever a contract is, and whatever a caller sends: what is accepted fits into the log, and is not long."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batch import Batch
from app.prediction_log import _record
from mlops import log_schema
from mlops.contract import Contract
from mlops.log_schema import FLOAT32
from mlops.rows import RowSchema
from tests.ids import LOG_KEY, new_id

LINE_BYTES = 2_000 + 1600 * 8  # of a row of eight features, in whatever script
RANGES = [None, [0, 1], [-1e300, 1e300], [0, 1e39], [1e39, 1e300]]

types = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["number", "category", "boolean"]),
        "missing": st.booleans(),
        "log": st.sampled_from(["keep", "hash"]),
    }
)
texts = st.one_of(
    st.text(max_size=250), st.sampled_from(["x" * 200, "x" * 201, "\x1b" * 200, "𐍈" * 200, "x" * 7_000_000])
)
times = st.sampled_from(
    ["2024-05-01", "2199-12-31T23:59:59-01:00", "1970-01-01T00:00:00+14:00", "9999-12-31", "0001-01-01"]
)
numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([2**63, -(2**64), 10**400, FLOAT32, 1e39, -1e300]))
values = st.one_of(texts, times, numbers, st.booleans(), st.none())


@st.composite
def contracts(draw: Any) -> Contract:
    features = {f"f{number}": draw(types) for number in range(draw(st.integers(1, 8)))}
    for feature in features.values():
        if feature["type"] == "number":
            feature["range"] = draw(st.sampled_from(RANGES))
    kept = [name for name, feature in features.items() if feature["log"] == "keep"]
    return Contract.model_validate({
        "model": "m", "task": "binary", "target": "y", "features": features, "time": {"column": "at", "zone": draw(st.sampled_from(["UTC", "Pacific/Kiritimati"]))},
        "entity": ["who", *kept[:2], "where"],
    })  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_column_of_any_contract_takes_a_value_beyond_the_bounds_of_the_log(data: Any) -> None:
    contract = data.draw(contracts())
    schema = RowSchema(contract, {})
    sent = {name: data.draw(values) for name in (*contract.features, *contract.context)}
    for read in (lambda: schema.row(sent), lambda: next(schema.decode(json.dumps({"rows": [sent]}).encode())[0])):
        try:
            row = read()
        except (msgspec.MsgspecError, UnicodeError):
            continue
        model = cast("Any", SimpleNamespace(digest="a" * 64, contract=contract))
        live = cast("Any", SimpleNamespace(model=model, release=SimpleNamespace(revision=1), challenger=None))
        batch = Batch(live, 1.7e9, [new_id()], [row], [0.5], caller="shop")
        assert len(log_schema.line(_record(batch, 0, LOG_KEY.hashed, *batch.answered()))) < LINE_BYTES


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_rows_that_are_decoded_one_by_one_are_what_they_are_in_one_piece(data: Any) -> None:
    contract = data.draw(contracts())
    schema = RowSchema(contract, {})
    columns = [*contract.features, *contract.context, "odd"]
    rows = data.draw(st.lists(st.dictionaries(st.sampled_from(columns), values) | values, max_size=3))
    request = {"rows": rows} | data.draw(st.sampled_from([{}, {"key": "k"}]))
    if data.draw(st.booleans()):
        request = data.draw(st.sampled_from([{}, {"rows": 1}, {"rows": []}, {"rows": [], "odd": 1}, [], None]))

    def one_by_one(body: bytes) -> Any:
        found, key = schema.decode(body)
        return schema.Request([*found], key)

    def told(decode: Any) -> Any:
        try:
            return decode(json.dumps(request).encode())
        except msgspec.ValidationError as error:
            return str(error)
        except (msgspec.DecodeError, UnicodeError) as error:
            return type(error)

    assert told(one_by_one) == told(schema.decoder(schema.Request).decode)


CONTEXT = {"model": "m", "task": "binary", "target": "y", "features": {"size": {"type": "number"}}, "entity": ["who"]}


@pytest.mark.parametrize("who", ["x" * 201, "x" * 7_000_000, 2**63, -(2**63) - 1, 1e39, -1e300, float("inf"), [], {}])
def test_what_an_entity_can_be_is_bounded(who: Any) -> None:
    schema = RowSchema(Contract.model_validate(CONTEXT), {})
    for sent in ("x" * 200, 2**63 - 1, 1.5, None):
        assert schema.row({"size": 1, "who": sent}).who == sent
    with pytest.raises(msgspec.ValidationError):
        schema.row({"size": 1, "who": who})


@pytest.mark.parametrize("how", ["hash", "drop"])
def test_an_entity_that_the_log_is_not_to_keep_is_refused_and_the_error_says_what_to_do(how: str) -> None:
    features = {"who": {"type": "category", "log": how}, "size": {"type": "number"}}
    with pytest.raises(ValueError, match=r"features\.who\.log is .*an id.*or keep it"):
        Contract.model_validate(CONTEXT | {"features": features})
    with pytest.raises(ValueError, match="at most 4"):
        Contract.model_validate(CONTEXT | {"entity": ["a", "b", "c", "d", "e"]})
