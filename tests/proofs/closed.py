"""What is missing or broken promotes nobody: each fault thirty times before a controller that would otherwise take a step."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from mlops import bundle as bundles
from mlops import releases, trials
from mlops.bundle import Bundle
from mlops.releases import Release
from mlops.store import Store
from monitoring.controller import Controller
from tests.service import environment
from tests.synthetic import build
from tests.trial_log import Log, Rows

TIMES = 30
_WEIGHT = 0.5


class Trial:
    """An environment with a champion and a challenger on trial, as far as the controller is concerned."""

    def __init__(self, folder: Path, bundle: Bundle, weight: float | None = None):
        folder.mkdir(parents=True)
        self.environment, self.model = environment(folder), bundle.contract.model
        self.store = self.environment.store
        self.digests = [bundles.write(self.store, self.model, bundle), "b" * 64]
        releases.append(self.store, self.model, self.digests[0], "first")
        mode: releases.Mode = "canary" if weight else "shadow"
        trials.put(self.store, self.model, *self.digests, "try", mode=mode, weight=weight)
        self.controller = Controller(self.environment, self.model)

    @property
    def now(self) -> Release:
        found = releases.serving(releases.read(self.store, self.model), releases.now())
        assert found
        return found


def prove(folder: Path, times: int = TIMES) -> dict[str, Any]:
    found, bundle = {}, build()
    for name, fault in FAULTS.items():
        promoted = 0
        for number in range(times):
            trial = Trial(folder / f"{name} {number}", bundle, _WEIGHT)
            before = trial.now
            with fault(trial, number):
                for _ in range(3):
                    with suppress(Exception, Killed):
                        trial.controller.judge()
            promoted += _went_on(trial, before)
        found[name] = promoted
    control = Trial(folder / "control", bundle, _WEIGHT)
    Log(control.store).write(control.now, _rows())
    control.controller.judge()
    went_on = control.now.weight == 1.0
    promoted = sum(found.values())
    reason = f"{promoted} promoted" if promoted else "" if went_on else "the one without a fault was not promoted either"
    return {"attempts": times * len(FAULTS), "promoted": found, "without_a_fault_promoted": went_on, "holds": not reason, "reason": reason}


def _went_on(trial: Trial, before: Release) -> bool:
    return any(
        (each.weight or 0) > (before.weight or 0) or each.champion != before.champion
        for each in releases.read(trial.store, trial.model)[2:]
    )


def _rows() -> Rows:
    """Whole, these are enough for a step."""
    return Rows(days=16, a_day=100)


Fault = Callable[[Trial, int], Any]
FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Callable[[Trial, int], Generator[None]]], None]:
    def register(plant: Callable[[Trial, int], Generator[None]]) -> None:
        FAULTS[name] = contextmanager(plant)

    return register


@fault("log missing")
def _(trial: Trial, number: int) -> Generator[None]:
    for key in Log(trial.store).write(trial.now, _rows()):
        if key.startswith("predictions"):
            trial.store.delete(key)
    yield


@fault("outcomes missing")
def _(trial: Trial, number: int) -> Generator[None]:
    Log(trial.store).write(trial.now, _rows(), outcomes=False)
    yield


@fault("empty window")
def _(trial: Trial, number: int) -> Generator[None]:
    earlier = trial.now.model_copy(update={"epoch": 1})
    Log(trial.store).write(earlier, _rows())
    yield


@fault("no numbers")
def _(trial: Trial, number: int) -> Generator[None]:
    rows = _rows()
    rows.challenger[number::31] = float("nan")
    Log(trial.store).write(trial.now, rows)
    yield


@fault("wrong schema")
def _(trial: Trial, number: int) -> Generator[None]:
    keys = Log(trial.store).write(trial.now, _rows())
    body = [b'{"id": 1}', b"[]", b'{"foreign": true}'][number % 3]
    trial.store.put(keys[number % 2].replace(".log", "x.log"), b"%08x %s\n" % (zlib.crc32(body), body))
    if number % 2:
        trial.store.put(keys[0].replace(".log", "x.parquet"), b"PAR1 no")
    yield


@fault("clock skew")
def _(trial: Trial, number: int) -> Generator[None]:
    skew = timedelta(minutes=10 + 20 * number) * (1 if number % 2 else -1)
    log = Log(trial.store, at=releases.now() + skew)
    if number % 2:
        log.write(trial.now, _rows())
    else:  # behind: before the trial began, so it is not of it
        log.write(trial.now.model_copy(update={"epoch": 1}), _rows())
    yield


@fault("bucket down")
def _(trial: Trial, number: int) -> Generator[None]:
    Log(trial.store).write(trial.now, _rows())
    with mock.patch.object(Store, ("get", "keys", "put", "put_new")[number % 4], side_effect=OSError("the bucket is away")):
        yield


@fault("half a segment")
def _(trial: Trial, number: int) -> Generator[None]:
    key = Log(trial.store).write(trial.now, _rows())[number % 2]
    content = trial.store.get(key) or b""
    trial.store.put(key, content[: len(content) // (3 + number)])
    yield


class Killed(BaseException):
    pass


@fault("controller killed, outcomes missing")
def _(trial: Trial, number: int) -> Generator[None]:
    Log(trial.store).write(trial.now, _rows(), outcomes=False)
    with _dying_after(number):
        yield


@fault("controller killed, half the rows")
def _(trial: Trial, number: int) -> Generator[None]:
    Log(trial.store).write(trial.now, Rows(days=16, a_day=25))
    with _dying_after(number):
        yield


@contextmanager
def _dying_after(touches: int) -> Generator[None]:
    """At its touch of the bucket with that number."""
    left = [touches + 1]
    with ExitStack() as stack:
        for name in ("get", "put", "put_new", "keys"):
            stack.enter_context(mock.patch.object(Store, name, _dying(getattr(Store, name), left)))
        yield


def _dying(original: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def method(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*given, **named)

    return method
