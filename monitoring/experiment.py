"""What a person asks of a trial: how long it takes, how it stands, and what came out, as a page."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader

from mlops import bundle as bundles
from mlops import releases, trials
from mlops.contract import Contract
from mlops.environment import Environment
from mlops.releases import Release
from mlops.store import Store
from monitoring.evidence import Evidence
from monitoring.joined import joined
from monitoring.judge import Verdict, differences, judge, mature

_PAST = timedelta(days=60)


def evidence_for(store: Store, model: str, champion: str) -> tuple[Contract, Evidence]:
    """The champion's contract, and the evidence in units of its loss."""
    bundle = bundles.read(store, model, champion)
    unit = 1.0 if bundle.contract.task == "binary" else float(bundle.json("profile.json")["target"]["scale"])
    return bundle.contract, Evidence(store, bundle.contract, unit)


def examine(environment: Environment, model: str) -> tuple[Release, Verdict]:
    """The trial that is on, judged now. Raises Fault if there is none."""
    store = environment.store
    release = trials.current(store, model)
    first = trials.started(releases.read(store, model), release)
    contract, evidence = evidence_for(store, model, release.champion)
    return release, judge(contract, release, evidence.look(first.epoch, first.at, releases.now()))


def spread_of_a_day(environment: Environment, model: str, prefix: str) -> tuple[float | None, str]:
    """Standard deviation of a day's difference of the two losses, and where it is from: an earlier trial of the two; or else,
    as an upper limit, the champion's own loss by day. None, and why, where the log has neither."""
    store = environment.store
    log = releases.read(store, model)
    serving = releases.serving(log, releases.now())
    if serving is None:
        return None, "nothing is released"
    contract, evidence = evidence_for(store, model, serving.champion)
    digest = bundles.find(store, model, prefix)
    for record in reversed(log):
        if record.tried and (record.champion, record.challenger) == (serving.champion, digest):
            first = trials.started(log, record)
            by_day = differences(mature(contract, evidence.look(first.epoch, first.at, releases.now()).days))
            if len(by_day) > 2:
                return float(by_day.std(ddof=1)), f"{len(by_day)} days of trial {record.experiment}"
    return _champions_own(store, model, evidence)


def _champions_own(store: Store, model: str, evidence: Evidence) -> tuple[float | None, str]:
    rows = joined(store, model, since=releases.now() - _PAST).rows.filter(pl.col("value").is_not_null())
    day = pl.from_epoch(pl.coalesce("event", "at").cast(pl.Int64)).dt.date()
    by_day = rows.group_by(day=day).agg(loss=evidence.loss(pl.col("score")).mean())["loss"]
    if by_day.len() < 3:
        return None, f"the log has outcomes of {by_day.len()} days; a shadow release would tell"
    return float(by_day.std()), f"at most: from the champion's own loss on {by_day.len()} days"  # ty: ignore[invalid-argument-type]


def page(store: Store, model: str, release: Release) -> str:
    """Its key in the bucket."""
    templates = Templates(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    log = [each for each in releases.read(store, model) if each.experiment == release.experiment]
    told = trials.verdicts(store, model, release.experiment)
    content = templates.get_template("experiment.html").render(release=release, log=log, verdicts=told, described=releases.described)
    key = f"models/{model}/verdicts/{release.experiment}/result.html"
    store.put(key, content.encode())
    return key
