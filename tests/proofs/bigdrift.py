"""What a look at the drift costs: twenty million logged rows of twenty features over six weeks, a half and a quarter of them,
each in a process of its own; and with an outcome for every row."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from mlops.contract import Contract
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.store import Store

ROWS, SECONDS, MEMORY_MB = 20_000_000, 60, 1024
RATIO = 2.3  # of the time for twice the rows
_DAYS, _TRAINED = 14 + 28, 120
_SINCE = datetime(2024, 6, 1, tzinfo=UTC)
_NUMBERS, _CATEGORIES = [f"x{i}" for i in range(15)], [f"c{i}" for i in range(5)]
_REPEATS = 2


def contract() -> Contract:
    features = {name: {"type": "number", "missing": True} for name in _NUMBERS}
    features |= {name: {"type": "category"} for name in _CATEGORIES}
    return Contract.model_validate({
        "model": "wide", "task": "binary", "target": "y", "time": {"column": "when"}, "features": features
    })  # fmt: skip


def prove(folder: Path, rows: int = ROWS) -> dict[str, Any]:
    found: dict[str, Any] = {"features": len(_NUMBERS) + len(_CATEGORIES), "days": _DAYS}
    for part in (4, 2, 1):
        place = folder / f"{part}"
        write(place, rows // part)
        found[f"{rows // part}"] = _look(place)
    write_outcomes(folder / "1")
    found["with outcomes"] = _look(folder / "1")
    quarter, half, whole = (found[f"{rows // part}"] for part in (4, 2, 1))
    found["ratios"] = [round(b["seconds"] / a["seconds"], 2) for a, b in ((quarter, half), (half, whole))]
    bars = {
        f"{SECONDS} s": whole["seconds"] <= SECONDS,
        f"{MEMORY_MB} MB": whole["memory_mb"] <= MEMORY_MB,
        f"twice the rows {RATIO} times the time": max(found["ratios"]) <= RATIO,
        "every row counted": all(found[f"{rows // part}"]["rows"] == rows // part for part in (4, 2, 1)),
        "every outcome joined": found["with outcomes"]["known"] == rows,
        "the shift is found, and no other": whole["alarms"] == ["x1"],
    }
    missed = [bar for bar, holds in bars.items() if not holds]
    return found | {"holds": not missed, "reason": ", ".join(missed)}


def write(place: Path, rows: int) -> None:
    """The log as it lies in the bucket after compaction, an hour a file; x1 is half a deviation higher in the last fifteen days.
    Beside it the profile of a training before."""
    from training import profile  # not in the process that is measured

    random, store = np.random.default_rng(0), Store(str(place))
    trained = _features(random, 2000 * _TRAINED).with_columns(
        when=pl.Series([_SINCE + timedelta(days=day - _TRAINED) for day in range(_TRAINED) for _ in range(2000)]),
        y=pl.Series(random.integers(0, 2, 2000 * _TRAINED)),
    )
    (place / "profile.json").write_text(json.dumps(profile.profile(contract(), trained, random.random(trained.height))))
    for hour in range(_DAYS * 24):
        n = rows * (hour + 1) // (_DAYS * 24) - rows * hour // (_DAYS * 24)
        at = _SINCE + timedelta(hours=hour)
        millis = np.sort(random.integers(0, 3_600_000, n)) + int(at.timestamp() * 1000)
        logged = _logged(millis, random)
        features = _features(random, n).with_columns(pl.col("x1") + 0.5 * (hour >= (_DAYS - 15) * 24))
        logged = logged.with_columns(features.select(pl.all().name.prefix("feature.")))
        _put(store, f"predictions/wide/{at:%Y-%m-%d/%H}", logged)


def write_outcomes(place: Path) -> None:
    """Of every row, in the hour of its prediction."""
    store, random = Store(str(place)), np.random.default_rng(1)
    for key in store.keys("predictions/wide"):
        rows = pl.read_parquet(store.get(key) or b"", columns=["id", "at", "score"])
        value = (random.random(rows.height) < rows["score"].to_numpy()).astype(float)
        told = rows.select("id", value=pl.Series(value), at=pl.col("at") + 7200)
        _put(store, key.replace("predictions", "outcomes").rpartition("/")[0], told)


def _features(random: np.random.Generator, n: int) -> pl.DataFrame:
    numbers = {name: pl.Series(random.normal(size=n).round(3)) for name in _NUMBERS}
    missing = pl.Series(random.random(n) < 0.05)
    levels = np.array([f"level {i}" for i in range(30)])
    categories = {name: pl.Series(levels[np.minimum(random.geometric(0.15, n), 30) - 1]) for name in _CATEGORIES}
    return pl.DataFrame(numbers | categories).with_columns(x0=pl.when(~missing).then("x0"))


def _logged(millis: np.ndarray, random: np.random.Generator) -> pl.DataFrame:
    from tests.proofs.judge import uuids  # which imports a training

    n, score = len(millis), random.random(len(millis))
    return pl.DataFrame({
        "id": uuids(millis, random), "at": millis / 1000, "revision": np.full(n, 1), "model_version": np.full(n, "a" * 64),
        "score": score, "prediction": (score > 0.5) * 1.0, "entity": [f"c{number}" for number in random.integers(0, 100_000, n)],
        "event": millis / 1000, "arm": pl.Series([None] * n, dtype=pl.Int64),
        **{name: pl.Series([None] * n, dtype=pl.Float64) for name in ("champion_score", "challenger_score", "challenger_seconds")},
        "fault": pl.Series([None] * n, dtype=pl.String),
    })  # fmt: skip


def _put(store: Store, folder: str, frame: pl.DataFrame) -> None:
    content = BytesIO()
    frame.write_parquet(content, compression="zstd")
    store.put(f"{folder}/00000001-0.parquet", content.getvalue())


def _look(place: Path) -> dict[str, Any]:
    runs = []
    for _ in range(_REPEATS):
        command = [sys.executable, "-m", "tests.proofs.bigdrift", str(place)]
        runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return min(runs, key=lambda run: run["seconds"])


def main(place: Path) -> None:
    from monitoring.daily import Daily
    from monitoring.drift import analyse

    bundle: Any = SimpleNamespace(contract=contract(), json=lambda name: json.loads((place / name).read_text()))
    model = RegisteredModel("wide", "local", Store(str(place)), Keyring(place / "keyring.json"))
    started = time.monotonic()
    daily = Daily(model, "a" * 64, bundle)
    days = daily.look(_SINCE, _SINCE + timedelta(days=_DAYS + 3))
    found = analyse(daily, days)
    seconds = time.monotonic() - started
    used, unit = resource.getrusage(resource.RUSAGE_SELF), 1 if sys.platform == "darwin" else 1024
    print(json.dumps({
        "seconds": round(seconds, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1), "memory_mb": used.ru_maxrss * unit // 2**20,
        "rows": int(days.quality["rows"].sum()), "known": int(days.quality["n"].sum()),
        "window": [f"{found.days[0]}", f"{found.days[-1]}"], "alarms": [each.name for each in found.alarms],
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
