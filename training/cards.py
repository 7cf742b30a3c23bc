"""The model card of a version, and the data card of its rows: what to know before one relies on either."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops.contract import Contract
from mlops.report import render
from training import data
from training.data import Split
from training.gate import Evidence
from training.intervals import Group

_TEMPLATES = Path(__file__).parent / "templates"
_LEVELS = 6


def model_card(contract: Contract, evidence: Evidence, groups: list[Group], **shown: Any) -> str:
    """HTML. `shown`: what the gate's report shows too."""
    protected = [name for name, feature in contract.features.items() if feature.protected]
    rates = {name: fairlearn(contract, evidence, [g for g in groups if g.column == name]) for name in protected}
    return render(_TEMPLATES / "card.html", contract=contract, groups=groups, fairlearn=rates, **shown)


def fairlearn(contract: Contract, evidence: Evidence, groups: list[Group]) -> dict[str, Any] | None:
    """Rates by group as Fairlearn defines them, where it is installed (the extra `fairness`) and they can be compared."""
    enough = [group for group in groups if group.figures]
    if contract.task != "binary" or len(enough) < 2 or find_spec("fairlearn") is None:
        return None
    metrics = import_module("fairlearn.metrics")
    of = evidence.groups[enough[0].column]
    rows = np.isin(of, [group.value for group in enough])
    truth, predicted = evidence.y[rows] > 0.5, evidence.score[rows] >= contract.threshold
    names = ("selection_rate", "true_positive_rate", "false_positive_rate")
    frame = metrics.MetricFrame(
        metrics={name.replace("_", " "): getattr(metrics, name) for name in names},
        y_true=truth, y_pred=predicted, sensitive_features=of[rows],
    )  # fmt: skip
    odds = metrics.equalized_odds_difference(truth, predicted, sensitive_features=of[rows])
    return {"groups": frame.by_group.to_dict("index"), "difference": frame.difference().to_dict(), "odds": float(odds)}


def data_card(contract: Contract, split: Split, quarantine: Path, **shown: Any) -> str:
    """HTML. Of the training rows, but the months are those of the held-out ones too."""
    rows = pl.concat([split.train.frame, split.holdout.frame])
    parts = {"train": split.train, "hold-out": split.holdout}
    return render(
        _TEMPLATES / "data.html", contract=contract, columns=_columns(contract, split.train.frame),
        parts={name: (part, len(np.unique(data.days(part.frame, contract)))) for name, part in parts.items()},
        months=_months(rows, contract) if contract.time else [],
        quarantined=pl.read_csv(quarantine, infer_schema=False).height if quarantine.exists() else 0, **shown,
    )  # fmt: skip


def _columns(contract: Contract, frame: pl.DataFrame) -> list[dict[str, Any]]:
    roles = dict.fromkeys(contract.features, "feature") | {contract.target: "target"}
    for role, names in (("time", contract.times), ("entity", contract.entity)):
        roles = dict.fromkeys(names, role) | roles
    return [
        {
            "name": name, "role": role, "type": str(frame[name].dtype.base_type()), "missing": frame[name].null_count() / frame.height,
            "distinct": frame[name].drop_nulls().n_unique(), "values": _values(contract, frame[name].drop_nulls(), role),
        }
        for name, role in roles.items()
    ]  # fmt: skip


def _values(contract: Contract, column: pl.Series, role: str) -> str:
    """Lowest, median, highest; or the commonest. Nothing of a person: what the prediction log does not keep."""
    feature = contract.features.get(column.name)
    if role == "entity" or (feature and feature.log != "keep"):
        return "not shown"
    if column.dtype.is_numeric() or column.dtype.is_temporal():
        shown = (column.min(), column.median(), column.max()) if len(column) else ()
        return " … ".join(
            f"{each:.6g}" if isinstance(each, float | int) else f"{each:%Y-%m-%d %H:%M}" for each in shown
        )
    counts = column.cast(pl.String).alias("level").value_counts().sort(["count", "level"], descending=[True, False])
    levels = [f"{level} {count / len(column):.1%}" for level, count in counts.head(_LEVELS).iter_rows()]
    return ", ".join([*levels, "…"] if counts.height > _LEVELS else levels)


def _months(rows: pl.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    month = data.local_dates(rows, contract).dt.strftime("%Y-%m").alias("month")
    means = rows.select(month, pl.col(contract.target).cast(pl.Float64)).group_by("month")
    return means.agg(pl.len().alias("rows"), pl.col(contract.target).mean().alias("mean")).sort("month").to_dicts()
