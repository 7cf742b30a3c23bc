"""What the prediction log says of a model now: drift of its data, quality of what serves; and whether it is time for a
new one."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

import polars as pl

from mlops import promotion
from mlops.bundle import Bundle
from mlops.contract import Contract, Window
from mlops.registered_model import RegisteredModel
from mlops.releases import now
from mlops.retraining import Action, Event, newest_result, pause
from monitoring.daily import Daily, Days
from monitoring.drift import Analysis, analyse
from monitoring.judge import mature
from monitoring.quality import Quality, all_versions, quality

_LOOK_BACK = timedelta(days=62)  # the window, and the weeks before it


@dataclass(frozen=True)
class Watched:
    """`matured`: the days of the log whose outcomes count; `rollout`: one is in progress."""

    at: datetime
    champion: Bundle
    days: Days
    matured: list[date]
    drift: Analysis
    quality: Quality
    rollout: bool = False

    @property
    def contract(self) -> Contract:
        return self.champion.contract

    @property
    def today(self) -> date | None:
        """The log's own: the day after the newest one that has matured."""
        return self.matured[-1] + timedelta(days=1) if self.matured else None

    @property
    def unseen(self) -> list[date]:
        """The matured days that the champion was not trained on: another model can be compared with it on these alone."""
        seen = self._until("train")
        return [day for day in self.matured if seen is None or day >= seen]

    @property
    def trained(self) -> date | None:
        """The day after the newest one of which the champion's training knew."""
        return self._until("holdout")

    def _until(self, window: Literal["train", "holdout"]) -> date | None:
        end = self.champion.window(window).end
        return end if isinstance(end, date) else None


class Watch:
    """Reads the log once, and then what is new."""

    def __init__(self, model: RegisteredModel):
        self._model = model
        self._daily: Daily | None = None
        self._drift: tuple[list[date], str, Analysis] | None = None

    def look(self, window: Window | None = None, since: datetime | None = None) -> Watched | None:
        """None while nothing is released. `since`: of arrival, if more than the last two months are to be read."""
        champion = promotion.champion(self._model)
        if champion is None:
            return None
        at, digest = now(), champion.digest
        if self._daily is None or self._daily.digest != digest:
            self._daily, self._drift = Daily(self._model, digest, champion), None
        contract = champion.contract
        back = max(_LOOK_BACK, timedelta(days=max(contract.retraining.every_days, contract.recalibration_days) + 14))
        if window and isinstance(window.start, date):
            since = datetime.combine(window.start, time(), UTC) - back
        days = self._daily.look(since or at - back, at)
        matured = mature(contract, all_versions(days), pl.col("n"), by_rows=True)["day"].to_list()
        found = self._analysed(self._daily, days, window)
        unit = self._daily.measures.unit
        current, serves = self._model.releases.current(), quality(contract, days, digest, unit)
        return Watched(at, champion, days, matured, found, serves, current is not None and current.in_rollout)

    def _analysed(self, daily: Daily, days: Days, window: Window | None) -> Analysis:
        """Dealing days out anew takes its time: once for each set of days."""
        key = list(days.counts)[:-1], f"{window} {days.unreadable}"
        if self._drift is None or self._drift[:2] != key:
            self._drift = (*key, analyse(daily, days, window))
        return self._drift[2]


def due(watched: Watched, events: list[Event]) -> tuple[Action, str] | None:
    """What the contract says to do today, and why; None: nothing, or not yet. First the champion is recalibrated, which is
    cheap; if it was, or the gate or the judge would not have that, a model is trained. A challenger is decided on before
    there is another: a new one would begin at no evidence."""
    rules, today, gap = watched.contract.retraining, watched.today, watched.quality.gap
    if today is None or watched.rollout or pause(rules, events, today):
        return None
    if len(watched.unseen) < watched.contract.gate.min_days:
        return None
    if gap and watched.quality.beyond(watched.contract):
        why = f"scores lie {gap.mean:+.3f} from outcomes (z = {gap.z:+.1f}) over {watched.quality.window} days"
        newest = newest_result(events)
        again = newest is not None and newest.action == "recalibrate" and newest.digest is not None
        again = again or "recalibration" in watched.champion.json("provenance.json")
        if again:
            return "retrain", f"{why}; a recalibration was not enough"
        if watched.contract.time is None or len(watched.unseen) >= watched.contract.recalibration_days:
            return "recalibrate", why
    trained = [event.day for event in events if event.action == "retrain" and event.event == "passed"]
    last = max(day for day in (*trained, watched.trained, watched.matured[0]) if day and day <= today)
    if rules.every_days and (age := (today - last).days) >= rules.every_days:
        return "retrain", f"{age} days since the last training, every {rules.every_days} days there is one"
    return None
