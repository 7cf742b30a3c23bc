"""Batch scoring of 10 million rows: constant memory, killed and resumed to the same bytes, the answers of the API."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mlops import promotion
from mlops.environment import ROOT, Environment
from tests import synthetic
from tests.service import Service
from tests.service import environment as make_environment

REQUEST = ["size", "heat", "color", "region", "group", "member", "customer"]
MAX_RSS_MB = 600
FLAT = 1.1  # the second half of a run may need so much more than the first
_SLICE = 100_000


def released(folder: Path) -> Environment:
    environment = make_environment(folder)
    digest = synthetic.publish(environment, synthetic.build())
    promotion.release(environment.model(synthetic.MODEL), digest, "first")
    return environment


def slices(rows: int) -> Iterator[pa.Table]:
    """Requests without end or repetition; one in 500 is none: a region nobody knows, a size out of range, no color."""
    base = synthetic.frame(days=100, rows_a_day=_SLICE // 100, seed=9).select(REQUEST)
    random = np.random.default_rng(0)
    for start in range(0, rows, _SLICE):
        part = base.head(min(_SLICE, rows - start)).with_columns(
            size=pl.Series(random.normal(size=_SLICE).round(3)[: rows - start])
        )
        fault = pl.int_range(pl.len()) % 1500
        yield part.with_columns(
            region=pl.when(fault == 0).then(pl.lit("east")).otherwise("region"),
            size=pl.when(fault == 500).then(99.0).otherwise("size"),
            color=pl.when(fault == 1000).then(None).otherwise("color"),
        ).to_arrow(compat_level=pl.CompatLevel.oldest())


def write(rows: int, file: Path) -> Path:
    writer: Any = None
    for table in slices(rows):
        kind = pa.parquet.ParquetWriter if file.suffix == ".parquet" else pa.csv.CSVWriter
        writer = writer or kind(file, table.schema)
        writer.write_table(table)
    writer.close()
    return file


def start(environment: Environment, source: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "cli", "--model", synthetic.MODEL, "--json", "score", str(source), str(folder)]
    told = {"MLOPS_HOME": str(environment.home)}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | told, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def run(environment: Environment, source: Path, folder: Path) -> dict[str, Any]:
    """Score to the end; the command's result, and its memory in MB: `peak`, and that of both halves."""
    began, child, seen = time.monotonic(), start(environment, source, folder), []
    process = psutil.Process(child.pid)
    while child.poll() is None:
        scoring = bool(parts(folder))
        try:
            seen.append((scoring, process.memory_info().rss / 2**20))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    output = child.communicate()[0]
    assert child.returncode == 0, output
    steady = [rss for scoring, rss in seen if scoring and rss]
    half = len(steady) // 2
    return json.loads(output) | {
        "peak": max(rss for _, rss in seen), "first": max(steady[:half]), "second": max(steady[half:]), "seconds": time.monotonic() - began,
    }  # fmt: skip


def parts(folder: Path) -> list[Path]:
    """Those that are complete."""
    return sorted(folder.glob("part-*.parquet"))


def killed(environment: Environment, source: Path, folder: Path, after: list[int]) -> None:
    """Start, and kill -9 a little after so many parts are there; again for each."""
    for position, wanted in enumerate(after):
        child = start(environment, source, folder)
        while len(parts(folder)) < wanted and child.poll() is None:
            time.sleep(0.001)
        time.sleep(position % 5 * 0.02)  # at another place within a part each time
        child.kill()
        output = child.communicate()[0]
        assert child.returncode == -signal.SIGKILL, f"ended before it could be killed: {output}"


def fingerprints(folder: Path) -> dict[str, str]:
    """Every file in the folder but the job's, so that a leftover shows too."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "job.json"
    }


def answers(folder: Path) -> tuple[dict[int, tuple[float, float]], dict[int, str]]:
    """row → (score, prediction) and row → reason."""
    table = pl.read_parquet(parts(folder)).select("row", "score", "prediction")
    scored = {row: (score, prediction) for row, score, prediction in table.iter_rows()}
    lines = [
        json.loads(line) for file in sorted(folder.glob("refused-*.jsonl")) for line in file.read_text().splitlines()
    ]
    return scored, {line["row"]: line["reason"] for line in lines}


def differences(service: Service, source: Path, folder: Path, rows: int) -> dict[str, Any]:
    """The first `rows` of a Parquet file through the HTTP app, against what the batch made of them: the largest
    difference in `score`, differing `predictions`, and of the rows that the batch refused those `refused` and `accepted`."""
    scored, refused = answers(folder)
    table = pa.parquet.ParquetFile(source).iter_batches(batch_size=rows)
    raw = [{name: value for name, value in row.items() if value is not None} for row in next(table).to_pylist()]
    found = {"compared": 0, "score": 0.0, "predictions": 0, "refused": 0, "accepted": 0}
    good = [position for position in range(len(raw)) if position not in refused]
    for first in range(0, len(good), 1000):
        some = good[first : first + 1000]
        got = service.predict(*(raw[position] for position in some))["predictions"]
        for position, answer in zip(some, got, strict=True):
            score, prediction = scored[position]
            found["compared"] += 1
            found["score"] = max(found["score"], abs(score - answer["score"]))
            found["predictions"] += prediction != answer["prediction"]
    for position in sorted(set(range(len(raw))) & set(refused)):
        answer = service.http.post("/predict", json={"rows": [raw[position]]})
        found["refused"] += answer.status_code == 422
        found["accepted"] += answer.status_code != 422
    return found


def prove(folder: Path, rows: int = 10_000_000) -> dict[str, Any]:
    environment = released(folder / "home")
    source = write(rows, folder / "rows.parquet")
    whole = run(environment, source, folder / "whole")
    points = [round(share * whole["parts"]) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    killed(environment, source, folder / "resumed", points)
    resumed = run(environment, source, folder / "resumed")
    few = write(rows // 10, folder / "rows.csv"), write(rows // 10, folder / "few.parquet")
    text, binary = (run(environment, file, folder / file.stem) for file in few)
    with Service(environment, synthetic.MODEL) as service:
        service.serves(1)
        api = differences(service, few[1], folder / "few", min(rows, 20_000))
    (scores, refused), (scores_csv, refused_csv) = answers(folder / "few"), answers(folder / "rows")
    peak, growth = (
        max(values)
        for values in zip(*((one["peak"], one["second"] / one["first"]) for one in (whole, text, binary)), strict=True)
    )
    checks = {
        "memory": peak <= MAX_RSS_MB,
        "flat": growth <= FLAT,
        "complete": whole["scored"] + whole["refused"] == rows and resumed["scored"] == whole["scored"],
        "identical after kills": fingerprints(folder / "whole") == fingerprints(folder / "resumed"),
        "CSV as Parquet": scores == scores_csv and set(refused) == set(refused_csv),
        "as the API": api["score"] <= 1e-6 and not api["predictions"] and not api["accepted"],
    }
    return {
        "rows": rows, "scored": whole["scored"], "refused": whole["refused"], "seconds_whole": round(whole["seconds"], 1),
        "rows_per_second": round(rows / whole["seconds"]), "rows_per_second_csv": round(rows / 10 / text["seconds"]),
        "peak_rss_mb": round(peak), "growth": round(growth, 3), "kills": len(points), "resumed_parts": resumed["parts"],
        "compared_with_api": api["compared"], "refused_by_both": api["refused"], "largest_difference": api["score"],
        "holds": all(checks.values()), "reason": ", ".join(name for name, holds in checks.items() if not holds),
    }  # fmt: skip
