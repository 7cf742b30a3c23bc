"""The trainings of a model, and two of its versions side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from mlops import bundle as bundles
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.errors import UserError
from tests import synthetic
from training.registry import Registry

Run = Callable[..., Result]


def command(environment: Environment, monkeypatch: pytest.MonkeyPatch, model: str) -> Run:
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(environment, name)))
    monkeypatch.setenv("MLOPS_MODEL", model)
    monkeypatch.setattr("cli.terminal.out.width", 250)
    return lambda *words: CliRunner().invoke(app, words, catch_exceptions=False)


def train(registry: Registry, folder: Path, digest: str, gate: str, loss: float) -> None:
    """As the pipeline tells MLflow of it."""
    origin = {"data": {"fingerprint": "f" * 64, "train_rows": 8, "holdout_rows": 2}, "windows": {"train": "0..0.8"}}
    (folder / "report.html").write_text("report")
    with registry.run(origin, "local") as run:
        registry.log(run, {"train": "0..0.8", "holdout": "0.8..1"}, {"loss": loss}, digest, gate, str(folder))


def test_trainings_are_listed_with_what_became_of_them(
    tracked: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command(tracked, monkeypatch, "listed")
    assert "no training yet" in run("runs").output
    monkeypatch.setenv("MLOPS_BY", "[red]Ada")
    registry = Registry(tracked.tracking, "listed")
    assert json.loads(run("--json", "runs").output) == {"runs": []}
    train(registry, tmp_path, "a" * 64, "passed", 0.5)
    train(registry, tmp_path, "b" * 64, "refused", 0.875)
    with pytest.raises(ZeroDivisionError), registry.run({"data": {"fingerprint": "f", "train_rows": 8, "holdout_rows": 2},
                                                         "windows": {"train": "0..0.8"}}, "local"):  # fmt: skip
        _ = 1 / 0
    found = json.loads(run("--json", "runs").output)["runs"]
    assert [(each["digest"], each["gate"], each["loss"]) for each in found] == [
        (None, None, None), ("b" * 64, "refused", 0.875), ("a" * 64, "passed", 0.5),
    ]  # fmt: skip
    assert [each["status"] for each in found] == ["FAILED", "FAILED", "FINISHED"]
    assert {(each["by"], each["commit"]) for each in found} == {("[red]Ada", registry.commit)}
    assert (found[1]["train"], found[1]["holdout"]) == ("0..0.8", "0.8..1")
    newest, second = (line.split("│") for line in run("runs", "--limit", "2").output.splitlines() if "[red]Ada" in line)
    assert [cell.strip() for cell in newest[2:5]] == ["–", "failed", "–"]
    assert [cell.strip() for cell in second[2:8]] == ["b" * 12, "refused", "0.875", "0..0.8", "0.8..1", "[red]Ada"]


def test_without_mlflow_the_error_has_a_hint(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="make up"):
        command(environment, monkeypatch, synthetic.MODEL)("runs")


def published(environment: Environment, bundle: Bundle, verdict: str = "passed", loss: float = 0.5) -> str:
    model = environment.model(synthetic.MODEL)
    digest = bundles.write(model, bundle)
    attest(model, "built", digest, details={"commit": f"c{loss}"})
    checks = [{"name": "loss", "outcome": "pass" if verdict == "passed" else "fail", "estimate": loss - 0.5}]
    details = {"metrics": {"loss": loss, "auc": 0.75}, "champion": "none", "checks": checks}
    attest(model, "gate", digest, verdict=verdict, details=details)
    return digest


@pytest.fixture
def narrow() -> Bundle:
    """Another request: `heat` is gone, `size` has a narrower range, `age` is new."""
    raw = synthetic.contract_yaml(windows={"train": "0..0.5", "holdout": "0.5..1.0"})
    raw["features"].pop("heat")
    raw["features"]["size"] = {"type": "number", "range": [-40, 50]}
    raw["features"]["age"] = {"type": "number", "missing": True}
    rows = synthetic.frame()
    return synthetic.build(Contract.model_validate(raw), rows.with_columns(age=rows["size"] * 2))


def test_what_differs_between_two_versions_is_marked(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    run = command(environment, monkeypatch, synthetic.MODEL)
    a, b = published(environment, first_bundle), published(environment, second_bundle, "refused", 0.625)
    found = json.loads(run("--json", "compare", a[:8], b[:8]).output)
    assert (found["a"], found["b"], found["same_rows"]) == (a, b, True)
    assert found["contract"] == {"added": [], "removed": [], "narrower": []}
    rows = {row["name"]: (row["a"], row["b"]) for row in found["rows"]}
    assert {row["name"]: row["differs"] for row in found["rows"]} == {name: x != y for name, (x, y) in rows.items()}
    assert rows["seed"] == (1, 2)
    assert rows["parameters.learning_rate"] == (None, 0.2)
    assert rows["metrics.loss"] == (0.5, 0.625)
    assert rows["gate.verdict"] == ("passed", "refused")
    assert rows["check.loss"] == ("pass 0", "fail 0.125")
    assert rows["built.commit"] == ("c0.5", "c0.625")
    same = {row["name"] for row in found["rows"] if not row["differs"]}
    assert same >= {"data.fingerprint", "metrics.auc", "parameters.max_iter", "libraries.numpy"}
    shown = run("compare", a, b).output
    marked = {line.split("│")[2].strip() for line in shown.splitlines() if line.startswith("│ ≠")}
    assert marked == {row["name"] for row in found["rows"] if row["differs"]}
    assert "cannot be compared" not in shown


def test_another_request_and_other_rows_are_named(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, first_bundle: Bundle, narrow: Bundle
) -> None:
    run = command(environment, monkeypatch, synthetic.MODEL)
    a, b = published(environment, first_bundle), published(environment, narrow)
    found = json.loads(run("--json", "compare", a, b).output)
    assert found["contract"] == {
        "added": ["age"], "removed": ["heat"],
        "narrower": ["heat is gone", "size has the narrower range [-40.0, 50.0]"],
    }  # fmt: skip
    settings = {row["name"]: (row["a"], row["b"]) for row in found["rows"] if row["name"].startswith("contract.")}
    assert settings["contract.features.size.range"] == ([-50, 50], [-40, 50])
    assert {name.split(".")[2] for name in settings if name.startswith("contract.features.")} == {"size"}
    assert found["same_rows"] is False
    assert "cannot be compared" in run("compare", a, b).output


def test_a_verdict_that_does_not_verify_is_none(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    a, b = published(environment, first_bundle), bundles.write(environment.model(synthetic.MODEL), second_bundle)
    store = environment.store
    for key in store.keys(f"models/{synthetic.MODEL}/attestations/{a}"):
        store.put(f"models/{synthetic.MODEL}/attestations/{b}/{key.rsplit('/', 1)[-1]}", store.get(key) or b"")
    run = command(environment, monkeypatch, synthetic.MODEL)
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(run("--json", "compare", a, b).output)["rows"]}
    assert "about synthetic" in rows["gate"]["b"]
    assert (rows["gate.verdict"]["a"], rows["gate.verdict"]["b"]) == ("passed", None)
    assert rows["metrics.loss"]["b"] is None
