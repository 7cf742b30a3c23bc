"""What the status page shows, put together from memory and a few small objects of the bucket: never from the log."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import takewhile

from mlops import replicas
from mlops.contract import Contract
from mlops.envelope import Attestation
from mlops.environment import Environment
from mlops.registered_model import RegisteredModel
from mlops.releases import Release, now, serving
from mlops.replicas import Replica
from mlops.retraining import Event
from mlops.verdict import Verdict
from monitoring import charts
from monitoring.alerts import Alert
from monitoring.charts import Line
from monitoring.daily import Days
from monitoring.drift import Analysis, Shift
from monitoring.quality import Quality
from monitoring.series import Figure, Series

_RELEASES, _GATES, _RUNS = 50, 8, 10
_TRAFFIC_DAYS, _QUALITY_DAYS = 42, 120
_HEADS = ("loss", "split")


@dataclass(frozen=True)
class Rollout:
    """The one in progress, or the newest; `ended` is the record that ended it. `steps`: name → done, now, ahead. `figures` of
    the judge's last look, and `lines` over all looks, by name."""

    release: Release
    began: Release
    ended: Release | None
    steps: dict[str, str]
    figures: list[Figure]
    lines: dict[str, Line | None]


@dataclass(frozen=True)
class Traffic:
    """`rows`: by version and day, `most` on one of them; `paths`: of the bars."""

    days: list[date]
    rows: dict[str, list[int]]
    most: int
    paths: list[str]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """`since`: the record that made the champion; lists have the newest first. `reports`: digests that have pages."""

    at: datetime
    model: str
    environment: str
    tracking: str
    contract: Contract | None
    release: Release | None
    since: Release | None
    replicas: list[Replica]
    rollout: Rollout | None
    verdict: Verdict | None
    traffic: Traffic | None
    analysis: Analysis | None
    features: dict[str, tuple[Shift, Line | None]]
    quality: Quality | None
    lines: dict[str, Line | None]
    runs: list[tuple[Event, Event]]
    alerts: list[Alert]
    gates: list[Attestation]
    history: list[Release]
    older: int
    reports: frozenset[str]


def snapshot(
    model: RegisteredModel, environment: Environment, *, contract: Contract | None = None, verdict: Verdict | None = None,
    series: Series | None = None, days: Days | None = None, analysis: Analysis | None = None, quality: Quality | None = None,
    retrainings: Iterable[Event] = (), alerts: Iterable[Alert] = (), gates: Iterable[Attestation] = (),
    reports: Iterable[str] = (),
) -> Snapshot:  # fmt: skip
    """`contract` is the champion's; `series` that of the newest rollout."""
    log, at = model.releases.read(), now()
    release = serving(log, at)
    runs: dict[str, tuple[Event, Event]] = {}
    for event in retrainings:
        runs[event.run] = runs.get(event.run, (event,))[0], event
    return Snapshot(
        at, model.name, environment.name, environment.tracking, contract, release,
        since=_since(log, release) if release else None,
        replicas=replicas.alive(model), rollout=_rollout(log, contract, series), verdict=verdict,
        traffic=_traffic(days, release) if days else None,
        analysis=analysis, features=_features(analysis) if analysis else {},
        quality=quality, lines=_lines(quality, contract) if quality else {},
        runs=list(runs.values())[: -_RUNS - 1 : -1], alerts=list(alerts),
        gates=list({gate.digest: gate for gate in sorted(gates, key=lambda gate: gate.at)}.values())[: -_GATES - 1 : -1],
        history=log[: -_RELEASES - 1 : -1], older=max(len(log) - _RELEASES, 0), reports=frozenset(reports),
    )  # fmt: skip


def age(since: timedelta) -> str:
    """In the largest unit of which there are two."""
    for unit, seconds in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(since.total_seconds() // seconds)) >= 2:
            return f"{count} {unit}s"
    return f"{max(int(since.total_seconds()), 0)} s"


def _since(log: list[Release], release: Release) -> Release:
    before = takewhile(lambda each: each.champion == release.champion, reversed(log[: log.index(release) + 1]))
    return list(before)[-1]


def newest_rollout(log: list[Release]) -> Release | None:
    """Its last record, whether or not it is in progress."""
    return next((each for each in reversed(log) if each.in_rollout), None)


def _rollout(log: list[Release], contract: Contract | None, series: Series | None) -> Rollout | None:
    release = newest_rollout(log)
    if release is None:
        return None
    own = [each for each in log if each.in_rollout and each.rollout == release.rollout]
    ended = next((each for each in log if each.revision > release.revision), None)
    names = ["shadow", *(f"{weight:.0%}" for weight in contract.judge.weights), "champion"] if contract else []
    reached = [each.mode if each.weight is None else f"{each.weight:.0%}" for each in own]
    reached += ["champion"] if ended and ended.champion == release.challenger else []
    steps: dict[str, str] = {name: "done" if name in reached else "ahead" for name in names}
    steps = steps | {reached[-1]: "now"} if reached[-1] in names else {}
    points = series.points if series else ()
    figures = sorted(points[-1].figures if points else (), key=lambda each: each.name not in _HEADS)
    looks: dict[str, list[charts.Spot]] = defaultdict(list)
    for point in points:
        for each in point.figures:
            looks[each.name].append((point.at.timestamp(), each.estimate, each.low, each.high))
    bounds = {each.name: [each.bound] if isinstance(each.bound, float | int) else [] for each in figures}
    lines = {name: charts.line(looks[name], *bounds[name]) for name in bounds if "=" not in name}
    return Rollout(release, own[0], ended, steps, figures, lines)


def _traffic(days: Days, release: Release | None) -> Traffic | None:
    """Of the champion and the challenger by name; the `others` together."""
    named = [each for each in (release.champion, release.challenger) if each] if release else []
    seen = days.quality["day"].unique().to_list()
    if not seen:
        return None
    first = max(min(seen), max(seen) - timedelta(_TRAFFIC_DAYS - 1))
    shown = [first + timedelta(i) for i in range((max(seen) - first).days + 1)]
    rows = {name: [0] * len(shown) for name in (*named, "others")}
    for day, version, count in days.quality.select("day", "model_version", "rows").iter_rows():
        if day >= first:
            rows[version if version in named else "others"][(day - shown[0]).days] += count
    rows = {name: counts for name, counts in rows.items() if name in named or any(counts)}
    return Traffic(shown, rows, max(map(sum, zip(*rows.values(), strict=True))), charts.bars(list(rows.values())))


def _features(analysis: Analysis) -> dict[str, tuple[Shift, Line | None]]:
    """The shift of each feature's distribution, and that by day; alarms first, then by effect."""
    alarming = {shift.feature for shift in analysis.alarms}
    shifts = [each for each in analysis.shifts if each.aspect == "distribution"]
    return {
        each.feature: (each, charts.line([(i, value, None, None) for i, value in enumerate(each.by_day)], each.bound))
        for each in sorted(shifts, key=lambda each: (each.feature not in alarming, -each.effect))
    }


def _lines(quality: Quality, contract: Contract | None) -> dict[str, Line | None]:
    """Loss, gap and AUC by day, with the estimates of the newest days."""
    days, found = quality.days.tail(_QUALITY_DAYS), {}
    gaps = (0.0, contract.retraining.max_gap, -contract.retraining.max_gap) if contract else (0.0,)
    for name, estimate, bounds in (("loss", quality.loss, ()), ("gap", quality.gap, gaps), ("auc", None, ())):
        spots = []
        for i, (day, value) in enumerate(days.select("day", name).iter_rows()):
            known = estimate if i >= days.height - quality.window else None
            spots.append((day.toordinal(), value, known.low if known else None, known.high if known else None))
        found[name] = charts.line(spots, *bounds)
    return found
