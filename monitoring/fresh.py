"""Rows to train on from the prediction log and its outcomes, and why they must not be trusted."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import polars as pl

from mlops.contract import Contract
from mlops.log_schema import PredictionRecord
from mlops.registered_model import RegisteredModel
from mlops.releases import now
from monitoring.frames import COLUMNS, features
from monitoring.partitions import OUTCOMES, Partitions, arrival
from monitoring.retention import forgotten
from monitoring.sums import Measures

_LOGGED = {name: COLUMNS[PredictionRecord][name] for name in ("id", "at", "event", "entity", "caller", "score")}
_MIN_KNOWN = 0.5  # of the predictions: those without an outcome are not like the others
_MAX_CHANGED = 0.01  # of the outcomes
_MAX_BURST = 0.5  # of the rows by one caller, whose share on most days is less than half of that
_MAX_ENTITY = 0.2  # of the rows about one entity
_MAX_EVEN = 10  # times its even share, if there are so few that this is more


@dataclass(frozen=True)
class Fresh:
    """`rows`: with the contract's columns, as load() returns them; `problems`: why no model may be trained on them."""

    rows: pl.DataFrame
    problems: list[str]


def read_fresh(model: RegisteredModel, contract: Contract, days: list[date]) -> Fresh:
    """`days`: of the events, those whose outcomes have matured."""
    if lacking := [name for how in ("hash", "drop") for name in contract.logged[how]]:
        why = f"the log lacks values of {', '.join(lacking)} (log: hash or drop, in the contract)"
        return Fresh(pl.DataFrame(), [why])
    rows = _complete(contract, _read(model, contract, days))
    known = rows.filter(pl.col("value").is_not_null())
    return Fresh(_as_loaded(contract, known), list(_problems(contract, rows, known)))


def _read(model: RegisteredModel, contract: Contract, days: list[date]) -> pl.DataFrame:
    day, gone = Measures(contract).day, forgotten(model)

    def reduce(rows: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
        rows = rows.with_columns(day=day).filter(pl.col("day").is_in(days), ~gone(pl.col("entity")))
        return rows.join(outcomes.select("id", "value", "changed"), on="id", how="left")

    schema = _LOGGED | features(contract, contract.features)
    nothing = reduce(pl.DataFrame(schema=schema), pl.DataFrame(schema=OUTCOMES))
    since = arrival(contract, min(days)) if days else now()
    return pl.concat([nothing, *Partitions(model, schema, reduce).look(since, now())]).sort("day", "id")


def _complete(contract: Contract, rows: pl.DataFrame) -> pl.DataFrame:
    """The days since requests have had all that is required now: a model before this one may have asked for less."""
    required = [name for name, feature in contract.features.items() if not feature.missing]
    lacking = pl.any_horizontal(pl.lit(value=False), *(pl.col(f"feature.{name}").is_null() for name in required))
    before = rows.filter(lacking)["day"].max()
    return rows.filter(pl.col("day") > before) if before else rows


def _problems(contract: Contract, rows: pl.DataFrame, known: pl.DataFrame) -> Iterator[str]:
    least = contract.retraining.min_rows
    if known.height < least:
        yield f"{known.height} rows have an outcome, {least} are needed (retraining.min_rows)"
        return
    if (found := known["day"].n_unique()) < contract.gate.min_days:
        yield f"{found} days have matured, {contract.gate.min_days} are needed to judge the result (gate.min_days)"
    if known.height < _MIN_KNOWN * rows.height:
        yield f"{known.height} of {rows.height} predictions have an outcome, half are needed"
    if (changed := known["changed"].mean()) > _MAX_CHANGED:  # ty: ignore[unsupported-operator]
        yield f"{changed:.1%} of the outcomes were changed after they were first received, {_MAX_CHANGED:.0%} are allowed"
    if (bad := known.filter(_impossible(contract)).height) > contract.quarantine_limit * known.height:
        yield f"{bad} of {known.height} rows are impossible by the contract, {contract.quarantine_limit:.0%} are allowed"
    yield from _one_dominates(known)
    if known["value"].n_unique() < 2:
        yield f"all outcomes are {known['value'][0]:g}"
    elif (found := known.select(pl.corr("score", "value", method="spearman")).item()) < 0:
        yield f"the scores that were served rank the outcomes backwards (correlation {found:.2f}): are they of this target?"


def _impossible(contract: Contract) -> pl.Expr:
    value = pl.col("value")
    found = [~value.is_in([0.0, 1.0]) if contract.task == "binary" else ~value.is_finite()]
    ranges = {name: feature.range for name, feature in contract.features.items() if feature.range}
    found += [~pl.col(f"feature.{name}").is_between(*allowed) for name, allowed in ranges.items()]
    return pl.any_horizontal(each.fill_null(value=False) for each in found)


def _one_dominates(rows: pl.DataFrame) -> Iterator[str]:
    callers = rows.filter(pl.col("caller").is_not_null())
    by_day = callers.group_by("caller", "day").len().with_columns(share=pl.col("len") / pl.col("len").sum().over("day"))
    usual = by_day.group_by("caller").agg(pl.col("len").sum(), usual=pl.col("share").sum() / by_day["day"].n_unique())
    for caller, n, share in usual.iter_rows():
        if n > _MAX_BURST * callers.height and share < _MAX_BURST / 2:
            yield f"API key {caller} sent {n / callers.height:.0%} of the rows, on a usual day it sends {share:.0%}"
    entities = rows["entity"].drop_nulls()
    most = entities.value_counts().select(pl.col("count").max()).item() or 0
    limit = max(_MAX_ENTITY, _MAX_EVEN / max(entities.n_unique(), 1))
    if most > limit * len(entities):
        yield f"{most / len(entities):.0%} of the rows are about one entity, {limit:.0%} are allowed"


def _as_loaded(contract: Contract, rows: pl.DataFrame) -> pl.DataFrame:
    """What was known when is known of rows that were requests: at the prediction at the latest."""
    columns = {name: pl.col(f"feature.{name}") for name in contract.features}
    parts = pl.col("entity").str.split("|")
    for position, name in enumerate(contract.entity):
        split = pl.when(parts.list.len() == len(contract.entity)).then(parts.list.get(position, null_on_oob=True))
        columns.setdefault(name, split)
    columns |= dict.fromkeys(contract.times, pl.lit(None, pl.Datetime("us", "UTC")))
    if contract.time:
        event = (pl.coalesce("event", "at") * 1e6).round().cast(pl.Int64)
        columns[contract.time.column] = pl.from_epoch(event, time_unit="us").dt.replace_time_zone("UTC")
    value = pl.col("value")
    return rows.select(**columns, **{contract.target: value})
