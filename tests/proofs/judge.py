"""What a look of the judge costs: twenty million logged rows with outcomes, and half of them, each in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mlops.contract import Contract
from mlops.store import Store
from tests.synthetic import MODEL, contract_yaml

ROWS, SECONDS, MEMORY_MB, RATIO = 20_000_000, 30, 1024, 2.2
_DAYS = 28
_SINCE = datetime(2024, 6, 1, tzinfo=UTC)
_REPEATS = 3


def prove(folder: Path) -> dict[str, Any]:
    whole, half = folder / "whole", folder / "half"
    write(Store(str(whole)), ROWS)
    write(Store(str(half)), ROWS // 2)
    found: dict[str, Any] = {"rows": ROWS}
    for name, place in (("whole", whole), ("half", half)):
        runs = [_look(place) for _ in range(_REPEATS)]
        found[name] = min(runs, key=lambda run: run["seconds"])
    found["ratio"] = round(found["whole"]["seconds"] / found["half"]["seconds"], 2)
    bars = {
        f"{SECONDS} s": found["whole"]["seconds"] <= SECONDS,
        f"{MEMORY_MB} MB": found["whole"]["memory_mb"] <= MEMORY_MB,
        f"twice the rows {RATIO} times the time": found["ratio"] <= RATIO,
        "all rows judged": found["whole"]["judged"] == ROWS,
    }
    missed = [bar for bar, holds in bars.items() if not holds]
    return found | {"holds": not missed, "reason": ", ".join(missed)}


def write(store: Store, rows: int) -> None:
    """As it lies in the bucket after compaction: an hour a file, outcomes in the hour of their prediction."""
    random = np.random.default_rng(0)
    hours = _DAYS * 24
    for hour in range(hours):
        n = rows * (hour + 1) // hours - rows * hour // hours
        at = _SINCE + timedelta(hours=hour)
        millis = np.sort(random.integers(0, 3_600_000, n)) + int(at.timestamp() * 1000)
        ids = uuids(millis, random)
        logit = random.normal(size=n)
        champion, challenger = (1 / (1 + np.exp(-(logit + 0.3 * random.normal(size=n)))) for _ in range(2))
        folder = f"{MODEL}/{at:%Y-%m-%d/%H}/00000002-0.parquet"
        _put(store, f"predictions/{folder}", pl.DataFrame({
            "id": ids, "at": millis / 1000, "revision": np.full(n, 2), "model_version": np.full(n, "a" * 64), "score": champion, "prediction": (champion > 0.5) * 1.0,
            "entity": [f"c{number}" for number in random.integers(0, 100_000, n)], "event": millis / 1000, "arm": (random.random(n) < 0.5).astype(int),
            "champion_score": champion, "challenger_score": challenger, "challenger_seconds": np.full(n, 0.0001),
            "fault": pl.Series([None] * n, dtype=pl.String), "feature.color": random.choice(["red", "green", "blue"], n),
            "feature.region": random.choice(["north", "south"], n), "feature.size": logit,
        }))  # fmt: skip
        known = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(float)
        _put(store, f"outcomes/{folder}", pl.DataFrame({"id": ids, "value": known, "at": millis / 1000 + 7200}))


def uuids(millis: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """UUIDv7s as text, shape (rows,)."""
    raw = random.integers(0, 256, (len(millis), 16), dtype=np.uint8)
    raw[:, :6] = millis.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 2:]
    raw[:, 6], raw[:, 8] = 0x70 | raw[:, 6] & 0xF, 0x80 | raw[:, 8] & 0x3F
    digits = np.frombuffer(raw.tobytes().hex().encode(), np.uint8).reshape(-1, 32)
    dashed = np.insert(digits, (8, 12, 16, 20), ord("-"), axis=1)
    return np.ascontiguousarray(dashed).view("S36").ravel().astype(str)


def _put(store: Store, key: str, frame: pl.DataFrame) -> None:
    content = BytesIO()
    frame.write_parquet(content, compression="zstd")
    store.put(key, content.getvalue())


def _look(place: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.proofs.judge", str(place)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    from mlops.keys import Keyring
    from mlops.registered_model import RegisteredModel
    from mlops.releases import Release
    from monitoring.evidence import Evidence
    from monitoring.judge import judge
    from monitoring.sums import Measures

    contract = Contract.model_validate(contract_yaml())
    model = RegisteredModel(MODEL, "local", Store(sys.argv[1]), Keyring(Path(sys.argv[1], "keyring.json")))
    fields: dict[str, Any] = {"at": _SINCE, "by": "", "why": "", "nonce": "0", "mode": "canary", "weight": 0.5}
    release = Release(revision=2, champion="a" * 64, challenger="b" * 64, rollout="x", **fields)
    started = time.monotonic()
    sums = Evidence(model, Measures(contract)).look(2, _SINCE, _SINCE + timedelta(days=_DAYS + 2))
    verdict = judge(contract, release, sums)
    seconds = time.monotonic() - started
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
    found = {"seconds": round(seconds, 1), "memory_mb": memory, "judged": verdict.rows, "decision": verdict.decision}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
