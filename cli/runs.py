"""Trainings of a model: what MLflow has of each, and what makes two of their versions differ."""

import json
import re
from typing import Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from cli.terminal import state
from mlops import attestations
from mlops import bundle as bundles
from mlops.bundle import Bundle
from mlops.moments import shown
from mlops.promotion import narrower
from mlops.registered_model import RegisteredModel

_NONE = "–"


def runs(limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20) -> None:
    """The model's trainings, with what became of each."""
    from mlops.tracking import Tracking, require_reachable

    require_reachable(url := state.environment.tracking)
    found = Tracking(url).runs(state.model_name, limit)
    table = Table("at", "digest", "gate", "loss", "train", "hold-out", "by", "commit")
    for run in found:
        gate, loss = run["gate"] or run["status"].lower(), _figure(run["loss"])
        commit, _, changed = (run["commit"] or _NONE).partition("-")
        texts = ((run["digest"] or _NONE)[:12], gate, loss, run["train"], run["holdout"], run["by"])
        code = f"{commit[:8]}{' changed' if changed else ''}"
        table.add_row(shown(run["at"]), *(escape(text or _NONE) for text in texts), escape(code))
    state.result({"runs": found}, table if found else state.pasteable("no training yet; the first: mlops train"))


class _Row(NamedTuple):
    name: str
    a: Any
    b: Any
    differs: bool


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A bundle's digest, or its beginning.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Two versions side by side: data, parameters, metrics, gate, contract; what differs is marked."""
    model = state.model
    both = [bundles.read(model, bundles.find(model, prefix)) for prefix in (first, second)]
    old, new = (each.contract for each in both)
    common = set(old.features) & set(new.features)
    a, b = (
        _flat(each.json("provenance.json") | _attested(model, each.digest) | _settings(each, common)) for each in both
    )
    names = [name for name in sorted(a | b) if a.get(name) != b.get(name) or not name.startswith("contract.")]
    rows = [_Row(name, a.get(name), b.get(name), a.get(name) != b.get(name)) for name in names]
    contract = {
        "added": sorted(set(new.features) - common),
        "removed": sorted(set(old.features) - common),
        "narrower": narrower(new, old),
    }
    same_rows = all(a.get(name) == b.get(name) for name in ("windows.holdout", "data.holdout_rows"))
    note = "" if same_rows else "Measured on different rows: their metrics cannot be compared."
    table = Table("", "", f"A {both[0].digest[:12]}", f"B {both[1].digest[:12]}", caption=note)
    for row in rows:
        mark, style = ("≠", "bold") if row.differs else ("", "dim")
        table.add_row(mark, *map(escape, (row.name, _figure(row.a), _figure(row.b))), style=style)
    for what, names in contract.items():
        table.add_row("≠" if names else "", f"request, {what} in B", "", escape("; ".join(names) or _NONE))
    value = {"a": both[0].digest, "b": both[1].digest, "same_rows": same_rows, "contract": contract}
    state.result(value | {"rows": [row._asdict() for row in rows]}, table)


def _attested(model: RegisteredModel, digest: str) -> dict[str, Any]:
    """What the newest valid attestations say; a bundle without a verdict has the reason instead."""
    good, bad = attestations.read(model, digest)
    newest = {each.kind: each for each in good}
    built, gate = newest.get("built"), newest.get("gate")
    if gate is None:
        return {"gate": str(bad[0]) if bad else "no signed verdict"}
    checks = {each["name"]: f"{each['outcome']} {_figure(each['estimate'])}" for each in gate.details.get("checks", [])}
    return {
        "built": built.details if built else {},
        "metrics": gate.details.get("metrics", {}),
        "gate": {"verdict": gate.verdict, "at": shown(gate.at), "champion": gate.details.get("champion")},
        "check": checks,
    }


def _settings(bundle: Bundle, features: set[str]) -> dict[str, Any]:
    contract = json.loads(bundle.files["contract.json"])
    return {"contract": contract | {"features": {name: contract["features"][name] for name in features}}}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        path: each for key, inner in value.items() for path, each in _flat(inner, f"{name}.{key}".lstrip(".")).items()
    }


def _figure(value: Any) -> str:
    """For a terminal: a SHA-256 by its beginning."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return _NONE if value is None else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))
