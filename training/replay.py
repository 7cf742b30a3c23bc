import time
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import Any

import httpx
import numpy as np
import polars as pl

from mlops.client import Client
from mlops.contract import Contract, Window
from mlops.environment import Environment
from mlops.errors import UserError
from training import data
from training.definition import ModelDefinition

_REQUEST_ROWS = 1000


def replay_window(
    environment: Environment, definition: ModelDefinition, window: Window, speed: float, limit: int | None,
    every: float, say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Send the window's rows as requests at their moment of prediction, and each outcome when it became known.

    Rows of one moment share a request, up to a thousand of them; with `every`, those of so many seconds of data.
    `speed`: seconds of data in one second; 0: one request after the other.
    """
    contract = definition.contract
    frame = data.cut(data.prepare(environment, definition), contract, window).frame
    if contract.time:
        frame = frame.sort(contract.time.column, maintain_order=True)
    if limit and frame.height > limit:
        frame = frame[np.linspace(0, frame.height - 1, limit).astype(int)]
    rows, labels = request_rows(frame, contract), frame[contract.target].cast(pl.Float64).to_list()
    client, ids = Client(environment), [""] * len(rows)
    found: dict[str, Any] = {"requests": 0, "failed": 0, "outcomes": 0, "error": "", "model_versions": {}}
    events = _events(frame, contract)
    rounded = sorted((at - at % every if every else at, kind, position) for at, kind, position in events)
    started, first = time.monotonic(), rounded[0][0]
    for at, kind, members in _together(rounded):
        if speed > 0:
            time.sleep(max(0.0, (at - first) / speed - (time.monotonic() - started)))
        try:
            if kind == 0:
                found["requests"] += 1
                answer = client.predict([rows[position] for position in members])
                version = answer["model_version"]
                found["model_versions"][version] = found["model_versions"].get(version, 0) + len(members)
                for position, prediction in zip(members, answer["predictions"], strict=True):
                    ids[position] = prediction["id"]
            elif known := [{"id": ids[position], "value": labels[position]} for position in members if ids[position]]:
                client.outcomes(known)
                found["outcomes"] += len(known)
        except (UserError, httpx.HTTPError) as error:
            found["failed"] += 1
            found["error"] = found["error"] or str(error)
        say(f"replay: {found['requests']} requests, {found['outcomes']} outcomes")
    return found


def _events(frame: pl.DataFrame, contract: Contract) -> Iterator[tuple[float, int, int]]:
    """(moment in Unix seconds, 0 request or 1 outcome, row), unsorted. Without times: requests, then outcomes."""
    if contract.time is None:
        asked = np.arange(frame.height, dtype=float)
        known = asked + frame.height
    else:
        asked = _seconds(frame[contract.time.column]) - 60.0 * contract.time.lead_minutes
        after = contract.outcome_at or contract.time.column
        known = np.maximum(np.nan_to_num(_seconds(frame[after]), nan=asked.max()), asked)
    for position in range(frame.height):
        yield float(asked[position]), 0, position
        yield float(known[position]), 1, position


def _together(events: list[tuple[float, int, int]]) -> Iterator[tuple[float, int, list[int]]]:
    """Events of one moment and kind, as many as fit into a request."""
    for (moment, kind), group in groupby(events, key=lambda event: event[:2]):
        while members := [position for _, _, position in islice(group, _REQUEST_ROWS)]:
            yield moment, kind, members


def _seconds(column: pl.Series) -> np.ndarray:
    return column.dt.epoch("us").cast(pl.Float64).to_numpy() / 1e6


def request_rows(frame: pl.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    """Valid rows as a caller sends them: times in ISO 8601, missing values left out."""
    rows = frame.select([*contract.features, *(name for name in contract.context if name in frame.columns)])
    times = [pl.col(name) for name in rows.columns if name in contract.times]
    rows = rows.with_columns(time.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ") for time in times)
    return [{name: value for name, value in row.items() if value is not None} for row in rows.iter_rows(named=True)]
