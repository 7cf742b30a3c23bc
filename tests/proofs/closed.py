"""What is missing or broken never advances a rollout: each fault thirty times before a controller that would otherwise do so."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from mlops import bundle as bundles
from mlops import releases
from mlops.bundle import Bundle
from mlops.releases import Mode, Release
from mlops.rollout import begin
from mlops.store import Store
from tests.control import Control
from tests.rollout_log import Log, Rows
from tests.service import environment
from tests.synthetic import build

TIMES = 30
_WEIGHT = 0.5


class Rollout:
    """An environment with a champion and a challenger in a rollout, as far as the controller is concerned."""

    def __init__(self, folder: Path, bundle: Bundle, weight: float | None = None):
        folder.mkdir(parents=True)
        here = environment(folder)
        self.store, self.model = here.store, here.model(bundle.contract.model)
        self.digests = [bundles.write(self.model, bundle), "b" * 64]
        self.model.releases.append(self.digests[0], "first")
        mode: Mode = "canary" if weight else "shadow"
        begin(self.model, *self.digests, "test", mode=mode, weight=weight)
        self.control = Control(here, self.model.name)

    @property
    def now(self) -> Release:
        found = self.model.releases.current()
        assert found
        return found


def prove(folder: Path, times: int = TIMES) -> dict[str, Any]:
    found, bundle = {}, build()
    for name, fault in FAULTS.items():
        advanced = 0
        for number in range(times):
            rollout = Rollout(folder / f"{name} {number}", bundle, _WEIGHT)
            before = rollout.now
            with fault(rollout, number):
                for _ in range(3):
                    with suppress(Exception, Killed):
                        rollout.control.judge()
            advanced += _advanced(rollout, before)
        found[name] = advanced
    control = Rollout(folder / "control", bundle, _WEIGHT)
    Log(control.store).write(control.now, _rows())
    control.control.judge()
    control_advanced = control.now.weight == 1.0
    advanced = sum(found.values())
    reason = (
        f"{advanced} advanced" if advanced else "" if control_advanced else "nor did the one without a fault advance"
    )
    return {
        "attempts": times * len(FAULTS),
        "promoted": found,
        "without_a_fault_promoted": control_advanced,
        "holds": not reason,
        "reason": reason,
    }


def _advanced(rollout: Rollout, before: Release) -> bool:
    return any(
        (each.weight or 0) > (before.weight or 0) or each.champion != before.champion
        for each in rollout.model.releases.read()[2:]
    )


def _rows() -> Rows:
    """Whole, these are enough for a step."""
    return Rows(days=16, a_day=100)


Plant = Callable[[Rollout, int], Any]
FAULTS: dict[str, Plant] = {}


def fault(name: str) -> Callable[[Callable[[Rollout, int], Generator[None]]], None]:
    def register(plant: Callable[[Rollout, int], Generator[None]]) -> None:
        FAULTS[name] = contextmanager(plant)

    return register


@fault("log missing")
def _(rollout: Rollout, number: int) -> Generator[None]:
    for key in Log(rollout.store).write(rollout.now, _rows()):
        if key.startswith("predictions"):
            rollout.store.delete(key)
    yield


@fault("outcomes missing")
def _(rollout: Rollout, number: int) -> Generator[None]:
    Log(rollout.store).write(rollout.now, _rows(), outcomes=False)
    yield


@fault("empty window")
def _(rollout: Rollout, number: int) -> Generator[None]:
    earlier = rollout.now.model_copy(update={"revision": 1})
    Log(rollout.store).write(earlier, _rows())
    yield


@fault("no numbers")
def _(rollout: Rollout, number: int) -> Generator[None]:
    rows = _rows()
    rows.challenger[number::31] = float("nan")
    Log(rollout.store).write(rollout.now, rows)
    yield


@fault("wrong schema")
def _(rollout: Rollout, number: int) -> Generator[None]:
    keys = Log(rollout.store).write(rollout.now, _rows())
    body = [b'{"id": 1}', b"[]", b'{"foreign": true}'][number % 3]
    rollout.store.put(keys[number % 2].replace(".log", "x.log"), b"%08x %s\n" % (zlib.crc32(body), body))
    if number % 2:
        rollout.store.put(keys[0].replace(".log", "x.parquet"), b"PAR1 no")
    yield


@fault("clock skew")
def _(rollout: Rollout, number: int) -> Generator[None]:
    skew = timedelta(minutes=10 + 20 * number) * (1 if number % 2 else -1)
    log = Log(rollout.store, at=releases.now() + skew)
    if number % 2:
        log.write(rollout.now, _rows())
    else:  # behind: before the rollout began, so it is not of it
        log.write(rollout.now.model_copy(update={"revision": 1}), _rows())
    yield


@fault("bucket down")
def _(rollout: Rollout, number: int) -> Generator[None]:
    Log(rollout.store).write(rollout.now, _rows())
    method = ("get", "keys", "put", "put_new")[number % 4]
    with mock.patch.object(Store, method, side_effect=OSError("the bucket is away")):
        yield


@fault("half a segment")
def _(rollout: Rollout, number: int) -> Generator[None]:
    key = Log(rollout.store).write(rollout.now, _rows())[number % 2]
    content = rollout.store.get(key) or b""
    rollout.store.put(key, content[: len(content) // (3 + number)])
    yield


class Killed(BaseException):
    pass


@fault("controller killed, outcomes missing")
def _(rollout: Rollout, number: int) -> Generator[None]:
    Log(rollout.store).write(rollout.now, _rows(), outcomes=False)
    with _dying_after(number):
        yield


@fault("controller killed, half the rows")
def _(rollout: Rollout, number: int) -> Generator[None]:
    Log(rollout.store).write(rollout.now, Rows(days=16, a_day=25))
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
