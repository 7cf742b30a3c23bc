from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.contract import Contract, Window, load_contract
from mlops.errors import UserError
from tests.synthetic import contract_yaml


def _features(**changes: Any) -> dict[str, Any]:
    return contract_yaml()["features"] | changes


PROBLEMS = {
    "a task that is not there yet": ({"task": "multiclass"}, "task is 'multiclass': 'multiclass' is not supported yet"),
    "a model's name with capitals": ({"model": "Mine"}, "model is 'Mine'"),
    "no features": ({"features": {}}, "features"),
    "an unknown key": ({"tresh": 0.4}, "tresh: unknown key"),
    "a target among the features": ({"target": "size"}, "features.size: it is the target"),
    "a feature known only after": ({"after": ["size"]}, "features.size: known only after the prediction"),
    "a feature known only after, by its own word": ({"features": _features(late={"type": "number", "known_at": "after"})}, "features.late: known only after"),
    "known_at without time": ({"time": None}, "features.heat.known_at is 'heat_at': needs a 'time'"),
    "a feature of an unknown type": ({"features": _features(x={"type": "text"})}, "features.x.type is 'text'"),
    "a range upside down": ({"features": _features(x={"type": "number", "range": [2, 1]})}, "write [lowest, highest]"),
    "an endless range": ({"features": _features(x={"type": "number", "range": [0, float("inf")]})}, "features.x.range.1 is inf"),
    "a category with a range": ({"features": _features(x={"type": "category", "range": [0, 1]})}, "only a number has one"),
    "a number that rejects unknown": ({"features": _features(x={"type": "number", "unknown": "reject"})}, "only a category has unknown"),
    "a feature with the name of the answer": ({"features": _features(score={"type": "number"})}, "features.score is 'score': a name that bundles use themselves"),
    "a feature that no request can name": ({"features": _features(**{"a b": {"type": "number"}})}, "features.a b"),
    "a slice that is a number": ({"slices": ["size"]}, "slices: 'size' is not a category"),
    "a slice that is no column": ({"slices": ["where"]}, "slices: 'where' is not a category"),
    "a window upside down": ({"windows": {"train": "0.7..0.1", "holdout": "0.7..1"}}, "the start must precede the end"),
    "a window of words": ({"windows": {"train": "may", "holdout": "0.7..1"}}, "write START..END"),
    "dates without time": (
        {"time": None, "features": {"size": {"type": "number"}}, "slices": [],
         "windows": {"train": "2024-01-01..2024-02-01", "holdout": "2024-02-01..2024-03-01"}}, "dates need a 'time'",
    ),
    "a golden row of another column": ({"golden": [{"about": "x", "row": {"w": 1}, "change": {"size": 2}}]}, "golden 'x': 'w' is not"),
    "half a golden row": ({"golden": [{"about": "x", "row": {"size": 1}}]}, "give 'where' with 'expect', or 'row' with 'change'"),
    "a threshold that is no probability": ({"threshold": 1.5}, "threshold is 1.5"),
    "a latency that nobody waits for": ({"gate": {"max_latency_ms": 1e9}}, "gate.max_latency_ms"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_named_with_its_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text(yaml.safe_dump(contract_yaml(**changes)))
    with pytest.raises(UserError) as raised:
        load_contract(file)
    assert said in str(raised.value)
    assert raised.value.value == str(file)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "contract.yaml"
    features = _features(x={"type": "text"}, y={"type": "number", "range": [2, 1]})
    file.write_text(yaml.safe_dump(contract_yaml(task="multiclass", threshold=7, features=features, nonsense=1)))
    with pytest.raises(UserError) as raised:
        load_contract(file)
    for place in ("task", "threshold", "features.x.type", "features.y", "nonsense"):
        assert f"\n  {place}" in str(raised.value)


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "a: {" * 5000, "\0"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text(text)
    with pytest.raises(UserError):
        load_contract(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml.*cannot be read"):
        load_contract(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_bundle_holds_it_unchanged(task: str) -> None:
    contract = Contract.model_validate(contract_yaml(task))
    assert load_contract(contract.json_bytes()) == contract


def test_in_a_bundle_it_is_json_only() -> None:
    with pytest.raises(UserError, match="JSON"):
        load_contract(yaml.safe_dump(contract_yaml()).encode())


def test_time_and_entity_are_optional() -> None:
    contract = Contract.model_validate(
        {"model": "m", "task": "binary", "target": "y", "features": {"x": {"type": "number"}}}
    )
    assert (contract.time, contract.entity) == (None, [])


def test_columns_of_the_entity_are_context_unless_they_are_features() -> None:
    assert Contract.model_validate(contract_yaml(entity=["customer", "color"])).context == ["customer", "at"]


@pytest.mark.parametrize("text", ["0..0.5", "2024-01-01..2024-06-30"])
def test_a_window_reads_back_as_written(text: str) -> None:
    assert Window.parse(str(Window.parse(text))) == Window.parse(text)


@pytest.mark.parametrize("text", ["0..2024-01-01", "0.5..0.5", "-1..1", "0..2", "..", "a..b", "nan..1"])
def test_an_invalid_window_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="window"):
        Window.parse(text)
