"""A platform in the four states that its status page shows, with what its controller would have in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl

from mlops import replicas, rollout
from mlops.contract import Contract
from mlops.envelope import Attestation
from mlops.environment import Environment
from mlops.releases import Release, now
from mlops.retraining import Event
from mlops.verdict import Check, Verdict, check
from monitoring import alerts, status
from monitoring.daily import Days
from monitoring.drift import Analysis, Shift
from monitoring.quality import Quality, mean_by_days
from monitoring.series import Series
from monitoring.status import Snapshot
from tests import synthetic

NAME = "churn"
STATES = ("nothing", "serving", "canary", "aborted")
_FEATURES = {
    "monthly_charge": 0.012, "tenure_months": 0.031, "support_calls": 0.046, "plan": 0.018, "payment_method": 0.009,
    "region": 0.006, "data_used_gb": 0.083, "roaming_days": 0.064, "contract_type": 0.021, "age_group": 0.004, "devices": 0.015,
}  # fmt: skip
_FIRST_DAY = date.today() - timedelta(days=56)


@dataclass
class Watched:
    """In `environment`'s bucket: releases, replicas, gate verdicts and reports."""

    environment: Environment
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.model = self.environment.model(NAME)
        question = "Will this customer leave within 30 days?"
        self.contract = Contract.model_validate(synthetic.contract_yaml(model=NAME, question=question))
        self.digests = [self.random.bytes(32).hex() for _ in range(4)]
        self.gates: list[Attestation] = []

    def gate(self, digest: str, ago: timedelta, loss: float, reasons: list[str], champion: str = "none") -> None:
        details = {
            "reasons": reasons,
            "metrics": {"loss": loss, "auc": 1.27 - loss * 0.6, "ece": 0.011},
            "champion": champion,
        }
        verdict: Any = "refused" if reasons else "passed"
        at = now() - ago
        self.gates.append(Attestation(kind="gate", model=NAME, digest=digest, verdict=verdict, at=at, details=details))
        for name in ("report", "card", "data"):
            page = f"<link rel=icon href='data:,'><h1>{name} of {digest[:12]}</h1>"
            self.model.store.put(f"{self.model.folder}/reports/{digest}/{name}.html", page.encode())

    def release(self, digest: str, why: str, ago: timedelta, **more: Any) -> Release:
        return rollout.write(self.model, digest, why, at=now() - ago, **more)

    def shown(self, **more: Any) -> Snapshot:
        reports = {key.split("/")[3] for key in self.model.store.keys(f"{self.model.folder}/reports")}
        common: dict[str, Any] = {"contract": self.contract, "gates": self.gates, "reports": reports}
        for name in ("serving-6d9f-k2x7p", "serving-6d9f-m4wqz"):
            last = self.model.releases.log.last()
            replicas.report(self.model, name, serving=last, ready=True, loaded=[])
        return status.snapshot(self.model, self.environment, **common | more)


def snapshot(environment: Environment, state: str) -> Snapshot:
    watched = Watched(environment)
    first, second, worse, challenger = watched.digests
    watched.gate(first, timedelta(days=64, hours=1), 0.741, [])
    if state == "nothing":
        return watched.shown(contract=None)
    watched.release(first, "first model", timedelta(days=64))
    watched.gate(
        worse, timedelta(days=39), 0.803, ["loss: rises by +0.0621 [+0.0483, +0.0760], upper bound ≤ 0.04"], first
    )
    watched.gate(second, timedelta(days=38), 0.712, [], first)
    watched.release(
        first, "retrained on 90 days", timedelta(days=37), mode="shadow", challenger=second, rollout="5f0c77aa"
    )
    watched.release(
        second,
        "advanced: no evidence of harm; the loss changes by -0.0291 [-0.0412, -0.0170] over 14 days, against 0.04",
        timedelta(days=36),
    )
    found: dict[str, Any] = {"quality": quality(second), "analysis": analysis(), "retrainings": retrainings(second)}
    if state == "serving":
        return watched.shown(days=days([first, second], [20, 49]), **found)
    watched.gate(challenger, timedelta(minutes=190), 0.705, [], second)
    record = watched.release(
        second,
        "support calls by week",
        timedelta(minutes=152),
        mode="shadow",
        challenger=challenger,
        rollout="c41d9e02",
    )
    series = Series(watched.model, record)
    harmful = state == "aborted"
    steps = ((None, 20), (0.01, 10), (0.05, 40), (0.25, 50)) if not harmful else ((None, 15), (0.01, 10), (0.05, 20))
    for weight, looks in steps:
        if weight:
            why = f"advanced: no evidence of harm; outcomes of {len(series.points) // 9} days, 7 are needed"
            ago = timedelta(minutes=150 - len(series.points))
            about: Any = {"mode": "canary", "weight": weight, "challenger": challenger, "rollout": "c41d9e02"}
            record = watched.release(second, why, ago, **about)
        for _ in range(looks):
            n = len(series.points)
            verdict = look(watched.random, n, harmful and weight == 0.05, weight)
            series.add(now() - timedelta(minutes=150 - n), record, verdict)
    series.save(at_once=True)
    rollout.save_verdict(watched.model, record, verdict)
    found |= {"series": series, "days": days([first, second, challenger], [20, 45, 49])}
    if harmful:
        watched.release(second, f"aborted: {'; '.join(verdict.reasons)}", timedelta(minutes=150 - len(series.points)))
        drifted = analysis(support_calls=0.241)
        firing = alerts.known({"tracking": False, "bucket": True}, drifted, [], watched.gates)
        return watched.shown(**found | {"analysis": drifted, "alerts": firing})
    return watched.shown(verdict=verdict, **found)


def look(random: np.random.Generator, n: int, harmful: bool, weight: float | None = None) -> Verdict:
    """The judge's n-th on a challenger; later ones know more."""
    rows, checks = 400 * (n + 1), list[Check]()
    faults = int(rows * 0.00012) + (8 * (n - 24) if harmful else 0)
    for when, part in (("since the start", 1.0), ("lately", 0.3)):
        seen, bad = max(int(rows * part), 1), int(faults * (1 if harmful else part))
        half, slow = (
            1.5 / seen + 2 * math.sqrt(bad + 1) / seen,
            0.011 + 0.006 * float(random.random()) / math.sqrt(n + 1),
        )
        rate, why = bad / seen, f"{bad} of {seen} requests failed {when}, against 0.10%"
        checks.append(
            check(
                f"faults {when}",
                rate - half < 0.001,
                rate,
                0.001,
                why,
                n=seen,
                low=max(rate - half, 0),
                high=rate + half,
            )
        )
        width = 0.03 / math.sqrt(n * part + 1)
        checks.append(check(f"slow {when}", True, slow, 0.05, "", n=seen, low=slow - width / 3, high=slow + width))
        for name, value, bound in (("spread", 1.04, 0.1), ("correlation", 0.93, 0.1), ("shift", 0.06, 2.0)):
            value += 0.1 * float(random.normal()) / math.sqrt(n * part + 2)
            half = 0.5 / math.sqrt(n * part + 2)
            checks.append(check(f"{name} {when}", True, value, bound, "", n=seen, low=value - half, high=value + half))
    if weight:
        share, half = weight + 0.02 * float(random.normal()) / (n + 1), 0.3 / math.sqrt(rows)
        checks.append(check("split", True, share, weight, "", n=rows // 3, low=share - half, high=share + half))
    known, needed = n // 9, f"outcomes of {n // 9} days, 7 are needed"
    if known >= 7:
        loss, half = -0.012 + 0.03 * float(random.normal()) / (known + 2), 0.22 / math.sqrt(known)
        needed = (
            f"the loss changes by {loss:+.4f} [{loss - half:+.4f}, {loss + half:+.4f}] over {known} days, against 0.04"
        )
        checks.append(Check("loss", "inconclusive", loss, 0.04, needed, known, loss - half, loss + half))
    for name, value in (("plan=basic", -0.021), ("plan=family", -0.004), ("region=north", 0.009)):
        checks.append(check(name, True, value, 0.04, "", n=known, low=value - 0.1, high=value + 0.1))
    if harm := [each.why for each in checks if each.failed]:
        return Verdict("abort", harm, checks, [], rows)
    return Verdict("inconclusive", [needed], checks, [], rows)


def days(versions: list[str], starts: list[int]) -> Days:
    """Eight weeks of traffic; each version begins at its day, the last one with a quarter."""
    random, rows = np.random.default_rng(1), list[dict[str, Any]]()
    for i in range(56):
        day = _FIRST_DAY + timedelta(i)
        whole = int((9000 if day.weekday() < 5 else 5200) * (1 + 0.1 * random.normal()))
        begun = [version for version, start in zip(versions, [0, *starts], strict=False) if i >= start]
        share = 0.25 if len(begun) == 3 else 0.0
        for version, part in ((begun[-1], share), (begun[-2] if share else begun[-1], 1 - share)):
            rows += [{"day": day, "model_version": version, "rows": int(whole * part)}] if part else []
    return Days({}, pl.DataFrame(rows), pl.DataFrame())


def analysis(**drifted: float) -> Analysis:
    random, shifts = np.random.default_rng(2), list[Shift]()
    for name, psi in (_FEATURES | drifted | {"score": 0.024}).items():
        tier = "score" if name == "score" else "season" if name in ("data_used_gb", "roaming_days") else "integrity"
        rise = np.clip(np.linspace(0.4, 1.4, 14), 0, None) if name in drifted else np.ones(14)
        by_day = [float(value) for value in psi * rise * (1.2 + 0.4 * random.random(14))]
        p = 0.0004 if name in drifted else float(random.uniform(0.05, 0.9))
        shifts.append(Shift(name, "distribution", tier, psi, 0.1, p, psi * 0.4, by_day, name in drifted))
        for aspect in (
            ("missing", "unknown") if name in ("plan", "region", "payment_method", "contract_type") else ("missing",)
        ):
            effect = 0.001 * float(random.normal())
            shifts += [Shift(name, aspect, "integrity", effect, 0.02, 0.6, effect, by_day)] if name != "score" else []
    alarms = [f"{name}: PSI {psi:.2f}, against 0.1" for name, psi in drifted.items()]
    window = [_FIRST_DAY + timedelta(i) for i in range(42, 56)]
    why = "; ".join(alarms) or "no alarm"
    return Analysis("drift" if alarms else "quiet", why, window, 112_418, "90 days of training", shifts, ["fax_lines"])


def quality(version: str) -> Quality:
    random, n = np.random.default_rng(3), 32
    rows = random.integers(5000, 9500, n)
    frame = pl.DataFrame({
        "day": [_FIRST_DAY + timedelta(20 + i) for i in range(n)],
        "rows": rows,
        "n": rows,
        "loss": 0.715 + 0.02 * random.normal(size=n),
        "gap": 0.006 + 0.008 * random.normal(size=n),
        "auc": 0.842 + 0.008 * random.normal(size=n),
    })  # fmt: skip
    newest = frame.tail(14)
    sums = {name: (newest[name] * newest["n"]).to_numpy() for name in ("loss", "gap")}
    counts = newest["n"].to_numpy().astype(float)
    return Quality(version, frame, 14, mean_by_days(sums["loss"], counts), mean_by_days(sums["gap"], counts), 0.843)


def retrainings(digest: str) -> list[Event]:
    common = {"by": "controller", "host": "controller-0", "pid": 1}
    told: list[tuple[str, str, int, str, str | None]] = [
        ("9a1f03c2", "started", 68, "31 days since the last training (every_days)", None),
        ("9a1f03c2", "refused", 68, "1480 rows with an outcome, 2000 are needed", None),
        ("b27e5510", "started", 38, "61 days since the last training (every_days)", None),
        ("b27e5510", "passed", 38, "loss 0.7120", digest),
    ]
    return [
        Event.model_validate(common | {
            "run": run, "event": event, "action": "retrain", "day": date.today() - timedelta(ago), "why": why, "digest": found,
            "at": now() - timedelta(days=ago, minutes=-11 * (event != "started")),
        })
        for run, event, ago, why, found in told
    ]  # fmt: skip
