"""What needs a person now, as Alertmanager has it, or as the controller itself knows."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from mlops.client import http
from mlops.envelope import Attestation
from mlops.retraining import Event, newest_result
from monitoring.drift import Analysis, describe


@dataclass(frozen=True)
class Alert:
    name: str
    severity: str  # page: now; ticket: in working hours
    text: str
    since: datetime | None = None


class _Firing(msgspec.Struct):
    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: datetime  # noqa: N815 (Alertmanager's name)


def firing(alertmanager: str) -> list[Alert]:
    """Neither silenced nor inhibited. Raises httpx.HTTPError or msgspec.DecodeError if it does not answer."""
    unmuted = {"active": "true", "silenced": "false", "inhibited": "false"}
    answer = http(alertmanager, timeout=3).get("/api/v2/alerts", params=unmuted).raise_for_status()
    found = [
        Alert(each.labels.get("alertname", ""), each.labels.get("severity", ""), _text(each.annotations), each.startsAt)
        for each in msgspec.json.decode(answer.content, type=list[_Firing])
    ]
    return sorted((each for each in found if each.severity != "none"), key=lambda each: (each.severity, each.name))


def _text(annotations: dict[str, str]) -> str:
    return " ".join(annotations[name] for name in ("summary", "description") if name in annotations)


def known(
    up: dict[str, bool], analysis: Analysis | None, retrainings: list[Event], gates: Iterable[Attestation]
) -> list[Alert]:
    """What the controller can say without Alertmanager."""
    found = [
        Alert("DependencyDown", "ticket", f"{name} does not answer") for name, answers in up.items() if not answers
    ]
    found += [Alert("DataDrift", "ticket", describe(shift)) for shift in analysis.alarms] if analysis else []
    if (last := newest_result(retrainings)) and last.event != "passed":
        found.append(
            Alert("RetrainingFailed", "ticket", f"{last.action} {last.event}, run {last.run}: {last.why}", last.at)
        )
    newest = max(gates, key=lambda gate: gate.at, default=None)
    if newest and newest.verdict == "refused":
        reasons = "; ".join(map(str, newest.details.get("reasons", [])))
        found.append(Alert("GateRefusing", "ticket", f"the newest model, {newest.digest[:12]}: {reasons}", newest.at))
    return found
