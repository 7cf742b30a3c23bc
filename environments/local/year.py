"""`make year`: the rest of the example's year through the running platform, a day in some two seconds: drift where it is, each
model that the platform makes by itself, and what callers get compared with what they would have got otherwise."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from environments.local.demo import FIRST, Demo, console
from environments.local.platform import Platform
from environments.local.traffic import wait
from mlops import bundle as bundles
from mlops import environment
from mlops.client import Client, http
from mlops.contract import Contract, Window
from mlops.environment import ROOT, Environment
from mlops.model import Model
from mlops.releases import Release, describe, now
from mlops.retraining import Event, RetrainingLog, newest_result, running
from monitoring.daily import Daily
from monitoring.drift import Analysis, analyse
from training import data, estimator, evaluation, features, recalibration
from training.definition import ModelDefinition, load_definition
from training.replay import request_rows

WAYS = {
    "loop": "what callers got",
    "frozen": "the first model, untouched",
    "recalibrated": "the first model, an intercept each day from the last 14 days of outcomes",
    "monthly": "trained on all days before, each month, without gate or rollout",
    "constant": "the first base rate",
}
_DAY_SECONDS = 1.5  # then a day's rows are in the bucket
_INTERCEPT_DAYS = 14
_RESAMPLES = 2000


@dataclass(frozen=True)
class Year:
    """`rows`: day, y, and by way its scores."""

    rows: pl.DataFrame
    events: list[Event]
    releases: list[Release]
    drift: list[Analysis]


def live(demo: Demo, definition: ModelDefinition) -> Year:
    contract = definition.contract
    first = demo.train(FIRST)["digest"]
    demo.mlops("release", first, "--why", "year: the first model")
    wait(lambda: not http(demo.environment.endpoint).get("/readyz").json()["reason"], "the first model does not answer")
    every = data.prepare(demo.environment, definition)
    every = every.with_columns(day=data.local_dates(every, contract), y=pl.col(contract.target).cast(pl.Float64))
    seen = data.cut(every, contract, Window.parse(FIRST)).window
    rows = every.filter(pl.col("day") >= seen.end).sort("day", maintain_order=True)
    client, log = Client(demo.environment), RetrainingLog(demo.model)
    scores: list[float] = []
    for (day,), part in rows.group_by("day", maintain_order=True):
        started = time.monotonic()
        for request in part.iter_slices(1000):
            answers = client.predict(request_rows(request, contract))["predictions"]
            scores += [answer["score"] for answer in answers]
            pairs = zip(answers, request["y"], strict=True)
            client.outcomes([{"id": answer["id"], "value": value} for answer, value in pairs])
        time.sleep(max(0.0, _DAY_SECONDS - (time.monotonic() - started)))
        wait(lambda: _settled(demo, log), "a training did not end, or its model was not released")
        console.print(f"{day}  {describe(demo.serving())}")
    rows = rows.with_columns(loop=pl.Series(scores))
    with console.status("what callers would have got otherwise"):
        rows = _otherwise(demo, definition, every, rows, first)
    return Year(rows, log.read(), demo.model.releases.read(), _drift(demo, rows, first))


def _settled(demo: Demo, log: RetrainingLog) -> bool:
    """A day takes two seconds, a training takes as long as ever: the days wait for it, and for its release."""
    events, records = log.read(), demo.model.releases.read()
    newest, known = newest_result(events), {each.challenger for each in records}
    brought = newest is not None and newest.event == "passed" and newest.digest not in known
    return running(events) is None and not (brought and not demo.serving().in_rollout)


def _otherwise(
    demo: Demo, definition: ModelDefinition, every: pl.DataFrame, rows: pl.DataFrame, first: str
) -> pl.DataFrame:
    contract, y = definition.contract, rows["y"].to_numpy()
    model = Model(bundles.read(demo.model, first), first)
    frozen = model.score_arrays(features.arrays(rows, contract)).astype(float)
    day, recalibrated, monthly = rows["day"].to_numpy(), frozen.copy(), frozen.copy()
    for today in np.unique(day):
        matured = (day < today - np.timedelta64(1, "D")) & (day >= today - np.timedelta64(_INTERCEPT_DAYS + 1, "D"))
        if matured.any():
            intercept = recalibration.fit_intercept(contract, frozen[matured], y[matured])
            recalibrated[day == today] = recalibration.shifted(contract, frozen[day == today], intercept)
    months = rows["day"].dt.truncate("1mo").to_numpy()
    for month in np.unique(months)[1:]:
        before = every.filter(pl.col("day") < month)
        pipeline = estimator.fit(definition.pipeline(contract, definition.parameters, 0), before, contract)
        monthly[months == month] = estimator.score(pipeline, rows.filter(pl.Series(months == month)), contract)
    seen = data.cut(every, contract, Window.parse(FIRST)).frame["y"].to_numpy()
    constant = np.full(len(y), seen.mean() if contract.task == "binary" else np.median(seen))
    ways = {"frozen": frozen, "recalibrated": recalibrated, "monthly": monthly, "constant": constant}
    return rows.with_columns(pl.Series(name, values) for name, values in ways.items())


def _drift(demo: Demo, rows: pl.DataFrame, first: str) -> list[Analysis]:
    """Of each two weeks, against the training of the first model."""
    daily = Daily(demo.model, first, bundles.read(demo.model, first))
    days, starts = daily.look(datetime(1970, 1, 1, tzinfo=UTC), now()), rows["day"].unique().sort().to_list()[::14]
    return [analyse(daily, days, Window(start=start, end=start + timedelta(days=14))) for start in starts[:-1]]


def losses(contract: Contract, rows: pl.DataFrame) -> pl.DataFrame:
    """By day: n, and the sum of each way's loss (log-loss, or absolute error)."""
    y = rows["y"].to_numpy()
    each = {way: pl.Series(evaluation.loss(contract, y, rows[way].to_numpy())) for way in WAYS}
    return rows.select("day", **each).group_by("day").agg(pl.len().alias("n"), pl.col(list(WAYS)).sum()).sort("day")


def summary(contract: Contract, year: Year) -> dict[str, object]:
    """Mean monthly loss of each way, and of the loop less each other way with a 95 % interval over blocks of weeks."""
    days = losses(contract, year.rows).with_columns(month=pl.col("day").dt.truncate("1mo"))
    week = ((days["day"] - days["day"].min()).dt.total_days() // 7).to_numpy()
    months, weeks = days["month"].to_numpy(), np.arange(week.max() + 1)
    n, sums = days["n"].to_numpy(), {way: days[way].to_numpy() for way in WAYS}

    def monthly(way: str, weight: np.ndarray) -> float:
        each = [(sums[way] * weight)[own].sum() / (n * weight)[own].sum() for month in np.unique(months)
                if (n * weight)[own := months == month].sum()]  # fmt: skip
        return float(np.mean(each))

    one, random = np.ones(len(n)), np.random.default_rng(0)
    drawn = [np.bincount(random.choice(weeks, len(weeks)), minlength=len(weeks))[week] for _ in range(_RESAMPLES)]
    found: dict[str, object] = {"loss": {way: round(monthly(way, one), 4) for way in WAYS}}
    differences = {}
    for way in list(WAYS)[1:]:
        draws = [monthly("loop", weight) - monthly(way, weight) for weight in drawn]
        point = monthly("loop", one) - monthly(way, one)
        differences[way] = [round(float(value), 4) for value in (point, *np.quantile(draws, [0.025, 0.975]))]
    results = [event for event in year.events if event.event != "started"]
    found |= {"loop less": differences, "runs": [f"{e.day} {e.action}: {e.event}; {e.why}"[:200] for e in results]}
    found["releases"] = len(year.releases)
    found["drift"] = {str(each.days[0]): [s.name for s in each.alarms] for each in year.drift if each.alarms}
    return found


def picture(contract: Contract, year: Year, file: Path) -> Path:
    """Loss by month of each way, and PSI by feature every two weeks; trainings as lines."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    above, below = figure.subplots(2, height_ratios=[3, 2])
    days = losses(contract, year.rows).group_by_dynamic("day", every="14d").agg(pl.col("n", *WAYS).sum())
    styles = {"loop": "-", "frozen": "--", "recalibrated": ":", "monthly": "-."}
    for way, style in styles.items():
        above.plot(
            days["day"],
            days[way] / days["n"],
            style,
            label=f"{way}: {WAYS[way]}",
            linewidth=2.2 if way == "loop" else 1.2,
        )
    for event in year.events:
        if event.event != "started":
            colour = {"passed": "tab:green", "refused": "tab:orange"}.get(event.event, "tab:red")
            above.axvline(event.day, color=colour, linewidth=0.8)
            above.text(event.day, above.get_ylim()[1], f" {event.action}", rotation=90, va="top", fontsize=7)
    above.set_ylabel("loss")
    above.legend(fontsize=8)
    if year.drift:
        _heat(figure, below, year.drift)
    figure.savefig(file, dpi=110)
    return file


def _heat(figure: Figure, ax: Axes, drift: list[Analysis]) -> None:
    by_feature = [{shift.name: shift.effect for shift in each.shifts} for each in drift]
    names = [shift.name for shift in drift[-1].shifts if shift.aspect == "distribution"]
    strength = np.array([[found.get(name, np.nan) for found in by_feature] for name in names])
    shown = ax.imshow(np.clip(strength, 0, 1), aspect="auto", cmap="Blues")
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.set_xticks(range(len(drift)), [f"{each.days[0]:%d %b}" for each in drift], fontsize=7, rotation=45)
    figure.colorbar(shown, ax=ax, label="PSI against training")


def run(home: Path, say: Callable[[str], object] = console.print) -> tuple[Contract, Year]:
    """A year in a folder of its own."""
    shutil.rmtree(home, ignore_errors=True)
    os.environ |= {"MLOPS_HOME": str(home), "MLOPS_SEGMENT_SECONDS": "1", "MLOPS_ANALYSIS_SECONDS": "3"}
    name = os.environ.get("MLOPS_MODEL") or environment.only_model()
    definition = load_definition(name)
    with Platform(Environment.load("local"), name) as platform:
        platform.wait_for_tracking()
        year = live(Demo(platform), definition)
    say(f"{len(year.rows)} rows")
    return definition.contract, year


def main() -> int:
    home = ROOT / ".mlops" / "year"
    contract, year = run(home)
    found, file = summary(contract, year), picture(contract, year, home / "year.png")
    print(json.dumps(found, indent=1))
    console.print(f"the picture: [bold]{file}[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
