"""A rollout as a person asks about it: how long it takes, its verdict now, and the result as a page."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl

from mlops import bundle as bundles
from mlops import rollout
from mlops.contract import Contract
from mlops.log_schema import PredictionRecord
from mlops.registered_model import RegisteredModel
from mlops.releases import Release, describe, now
from mlops.report import render
from mlops.verdict import Verdict
from monitoring.evidence import Evidence
from monitoring.frames import COLUMNS
from monitoring.judge import differences, judge, mature
from monitoring.outcomes import join_outcomes, read_log
from monitoring.sums import Measures

_ENTITIES = {name: COLUMNS[PredictionRecord][name] for name in ("id", "entity")}
_FEW = 5
_PAST = timedelta(days=60)
_PAGE = Path(__file__).parent / "templates" / "rollout.html"


def evidence_for(model: RegisteredModel, champion: str) -> tuple[Contract, Evidence]:
    """The champion's contract, and evidence in units of its loss."""
    bundle = bundles.read(model, champion)
    unit = float(bundle.json("profile.json")["target"]["scale"])
    return bundle.contract, Evidence(model, Measures(bundle.contract, unit))


def examine(model: RegisteredModel) -> tuple[Release, Verdict]:
    """The rollout in progress, judged now. Raises UserError if there is none."""
    release = rollout.current(model)
    return release, judge_now(model, release, *evidence_for(model, release.champion))


def looks(model: RegisteredModel, seconds: float = 2.0) -> Iterator[tuple[Release, Verdict]]:
    """The rollout in progress, judged again and again until it ends. Raises UserError if there is none."""
    release: Release | None = rollout.current(model)
    began, found = release.rollout, evidence_for(model, release.champion)
    while release and release.in_rollout and release.rollout == began:
        yield release, judge_now(model, release, *found)
        time.sleep(seconds)
        release = model.releases.current()


def judge_now(model: RegisteredModel, release: Release, contract: Contract, evidence: Evidence) -> Verdict:
    first = rollout.first_record(model.releases.read(), release)
    return judge(contract, release, evidence.look(first.revision, first.at, now()))


def daily_std(model: RegisteredModel, prefix: str) -> tuple[float | None, str]:
    """Standard deviation of a day's difference of the two losses, and its source: an earlier rollout of the two; or else,
    as an upper limit, the champion's own loss by day. None, and why, if the log has neither."""
    serving = model.releases.current()
    if serving is None:
        return None, "nothing is released"
    contract, evidence = evidence_for(model, serving.champion)
    log, pair = model.releases.read(), (serving.champion, bundles.find(model, prefix))
    for record in reversed(log):
        if record.in_rollout and (record.champion, record.challenger) == pair:
            first = rollout.first_record(log, record)
            by_day = differences(mature(contract, evidence.look(first.revision, first.at, now()).days))
            if len(by_day) > 2:
                return float(by_day.std(ddof=1)), f"{len(by_day)} days of rollout {record.rollout}"
    return _champion_daily_std(model, evidence)


def _champion_daily_std(model: RegisteredModel, evidence: Evidence) -> tuple[float | None, str]:
    rows = join_outcomes(model, since=now() - _PAST).rows.filter(pl.col("value").is_not_null())
    by_day = rows.group_by(day=evidence.measures.day).agg(loss=evidence.measures.loss(pl.col("score")).mean())["loss"]
    if by_day.len() < 3:
        return None, f"the log has outcomes of {by_day.len()} days; run a shadow release first"
    source = f"at most: from the champion's own loss on {by_day.len()} days"
    return float(by_day.std()), source  # ty: ignore[invalid-argument-type]


def few_entities(model: RegisteredModel, weight: float) -> str:
    """A warning if the entities of the last day are too few for a share of `weight`, or ''."""
    n = read_log(model, "predictions", now() - timedelta(days=1), _ENTITIES).rows["entity"].n_unique()
    if not 0 < n * weight < _FEW:
        return ""
    shares = ", ".join(f"{position / n:.0%}" for position in range(min(n, 4)))
    return f"a share of {weight:.0%} of the last day's {n} entities is a matter of chance: it may be {shares}, …"


def page_of(model: RegisteredModel, rollout_id: str | None) -> str | None:
    """Its verdicts and releases, as HTML; None if there was no such rollout."""
    log = [each for each in model.releases.read() if each.rollout == rollout_id]
    if not log:
        return None
    return render(_PAGE, release=log[-1], log=log, verdicts=rollout.read_verdicts(model, rollout_id), describe=describe)


def write_page(model: RegisteredModel, release: Release) -> str:
    """Returns its key in the bucket."""
    key = f"{model.folder}/verdicts/{release.rollout}/result.html"
    model.store.put(key, (page_of(model, release.rollout) or "").encode())
    return key
