"""Trainings that the platform starts by itself: one at a time, with pauses between them, each recorded in the bucket."""

import os
import secrets
import socket
from contextlib import suppress
from datetime import date, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from mlops.append_log import AppendLog
from mlops.contract import Retraining
from mlops.errors import ConflictError, Line, UserError
from mlops.processes import exists
from mlops.registered_model import RegisteredModel
from mlops.releases import author, now

Action = Literal["recalibrate", "retrain"]
Result = Literal["passed", "refused", "failed"]
_LEASE = timedelta(hours=6)  # a training takes no longer; one that was killed elsewhere is given up then
_AGAIN_DAYS, _YEAR = 7, 365  # days: after one that brought no model; that the budget is for


class Event(BaseModel):
    """`started`, or how it ended: `passed` or `refused` by the gate (then with a digest), `refused` for its rows, `failed`.
    `day` is the log's own at the start: pauses are counted in days of data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    event: Literal["started", "passed", "refused", "failed"]
    action: Action
    day: date
    at: AwareDatetime
    by: Line
    why: Line
    host: Line
    pid: int
    digest: str | None = None


class RetrainingLog:
    """For one thread. A record never changes, so each read fetches only what is new."""

    def __init__(self, model: RegisteredModel):
        self._log = AppendLog(model.store, f"{model.folder}/retrainings")
        self._events: list[Event] = []
        self._revision = 0

    def read(self) -> list[Event]:
        """Oldest first; an unreadable record counts as never written."""
        for revision, raw in self._log.tail(self._revision):
            self._revision = revision
            with suppress(ValidationError):
                self._events.append(Event.model_validate_json(raw))
        return list(self._events)

    def begin(self, rules: Retraining, action: Action, why: str, day: date) -> Event:
        """Raises UserError if one is running or the pause is not over, ConflictError if another began at this moment."""
        if problem := pause(rules, self.read(), day):
            raise UserError("retraining", action, problem)
        who: dict[str, Any] = {"by": author(), "host": socket.gethostname(), "pid": os.getpid(), "at": now()}
        event = Event(run=secrets.token_hex(4), event="started", action=action, day=day, why=why[:1000], **who)
        self._append(event)
        return event

    def end(self, started: Event, result: Result, why: str, digest: str | None = None) -> None:
        """What has ended meanwhile stays as it ended."""
        changes = {"event": result, "why": why[:1000], "digest": digest, "at": now(), "by": author()}
        while running(self.read()) == started:
            with suppress(ConflictError):
                self._append(started.model_copy(update=changes))

    def give_up(self) -> None:
        """Record the end of one that was killed."""
        event = running(self.read())
        if event and not _may_live(event):
            self.end(event, "failed", "it was killed before it ended")

    def _append(self, event: Event) -> None:
        self._log.append(lambda _: event.model_dump_json(exclude_none=True).encode(), self._revision)


def running(events: list[Event]) -> Event | None:
    return events[-1] if events and events[-1].event == "started" else None


def newest_result(events: list[Event]) -> Event | None:
    return next((event for event in reversed(events) if event.event != "started"), None)


def pause(rules: Retraining, events: list[Event], day: date) -> str:
    """Why none may start on that day of the log; '' if one may."""
    if active := running(events):
        return f"run {active.run} is in progress since {active.at:%Y-%m-%d %H:%M} UTC, on {active.host}"
    runs = [event for event in events if event.event != "started"]
    if sum((day - event.day).days < _YEAR for event in runs) >= rules.max_a_year:
        return f"{rules.max_a_year} runs within a year are allowed (retraining.max_a_year)"
    if runs:
        days = rules.cooldown_days if runs[-1].event == "passed" else min(_AGAIN_DAYS, rules.cooldown_days)
        if day < (over := runs[-1].day + timedelta(days)):
            return f"run {runs[-1].run} {runs[-1].event} on {runs[-1].day}; the next may start on {over}"
    return ""


def _may_live(event: Event) -> bool:
    return now() - event.at < _LEASE and (event.host != socket.gethostname() or exists(event.pid))
