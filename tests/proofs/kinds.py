"""Nine kinds of data by the README alone: `init` to an answered curl without touching a line, and `score` of the same file equal
to the API."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
from sklearn import datasets

from mlops.environment import ROOT
from tests.proofs import batch
from training.source import read

SAMPLE = 200
_RANDOM = np.random.default_rng(7)


def medical() -> pl.DataFrame:
    bundled = datasets.load_breast_cancer(as_frame=True)
    words = ["malignant" if each == 0 else "benign" for each in bundled.target]
    return pl.DataFrame({name: bundled.data[name].to_numpy() for name in bundled.data.columns} | {"Diagnosis": words})


def diabetes() -> pl.DataFrame:
    table = datasets.load_diabetes(as_frame=True).frame
    return pl.DataFrame({name: table[name].to_numpy() for name in table.columns})


def sales() -> pl.DataFrame:
    days, stores = 365, ["Berlin Mitte", "Köln", "München-Ost", "Hamburg"]
    rows = [
        (f"2024-{1 + day // 31 % 12:02d}-{1 + day % 28:02d}", store, day % 7, (day * 7 + i) % 5 == 0)
        for day in range(days)
        for i, store in enumerate(stores)
    ]
    units = [
        round(40 + 25 * (weekday > 4) + 18 * promo + 9 * stores.index(store) + _RANDOM.normal(scale=9), 1)
        for _, store, weekday, promo in rows
    ]
    names = ("Date", "Store", "Weekday", "Promo?")
    return pl.DataFrame({name: [row[i] for row in rows] for i, name in enumerate(names)} | {"Units Sold": units})


def penguins() -> pl.DataFrame:
    n = 344
    male, species = _RANDOM.random(n) < 0.5, _RANDOM.integers(0, 3, n)
    bill = (38 + 4 * species + 2 * male + _RANDOM.normal(scale=3, size=n)).round(1)
    mass = (3500 + 500 * (species == 2) + 350 * male + _RANDOM.normal(scale=420, size=n)).round(-1)
    return pl.DataFrame({
        "species": np.array(["Adelie", "Chinstrap", "Gentoo"])[species], "island": _RANDOM.choice(["Biscoe", "Dream", "Torgersen"], n),
        "bill_length_mm": pl.Series(bill).scatter(_RANDOM.choice(n, 9, replace=False), None),
        "body_mass_g": pl.Series(mass).scatter(_RANDOM.choice(n, 9, replace=False), None),
        "sex": pl.Series(np.where(male, "male", "female")).scatter(_RANDOM.choice(n, 11, replace=False), None),
    })  # fmt: skip


def wide() -> pl.DataFrame:
    values = _RANDOM.normal(size=(3000, 500)).round(3)
    answer = (values[:, :8].sum(1) + _RANDOM.normal(scale=2, size=3000) > 0).astype(int)
    return pl.DataFrame({f"f{i}": values[:, i] for i in range(500)} | {"label": answer})


def fraud(rows: int = 200_000) -> pl.DataFrame:
    amount, foreign, night = (
        _RANDOM.gamma(1.2, 60, rows).round(2),
        _RANDOM.random(rows) < 0.1,
        _RANDOM.random(rows) < 0.3,
    )
    signal = -6.6 + 0.006 * amount + 1.4 * foreign + 0.8 * night
    return pl.DataFrame({
        "Amount": amount, "Foreign": foreign, "Night": night, "Merchant": _RANDOM.choice(["food", "travel", "web", "other"], rows),
        "Is Fraud": (_RANDOM.random(rows) < 1 / (1 + np.exp(-signal))).astype(int),
    })  # fmt: skip


def big(rows: int = 5_000_000) -> pl.DataFrame:
    a, b = _RANDOM.normal(size=rows).round(3), _RANDOM.normal(size=rows).round(3)
    kind = _RANDOM.choice(["x", "y", "z"], rows)
    answer = _RANDOM.random(rows) < 1 / (1 + np.exp(-(a - 0.5 * b + (kind == "x") - 0.5)))
    return pl.DataFrame({"a": a, "b": b, "kind": kind, "c": _RANDOM.integers(0, 50, rows), "y": answer.astype(int)})


def tickets() -> pl.DataFrame:
    n, words = 3000, ["printer", "network", "password", "slow", "broken", "please", "urgent"]
    priority, waiting = _RANDOM.choice(["low", "normal", "high"], n), _RANDOM.integers(0, 72, n)
    late = _RANDOM.random(n) < 1 / (1 + np.exp(1.5 - 0.03 * waiting - 0.9 * (priority == "low")))
    text = [" ".join(_RANDOM.choice(words, 40)) for _ in range(n)]
    return pl.DataFrame(
        {"Text": text, "Priority": priority, "Hours Waiting": waiting, "Escalated": np.where(late, "yes", "no")}
    )


def wine() -> pl.DataFrame:
    bundled = datasets.load_wine(as_frame=True)
    cultivars = [f"cultivar {'ABC'[each]}" for each in bundled.target]
    return pl.DataFrame({name: bundled.data[name].to_numpy() for name in bundled.data.columns} | {"class": cultivars})


@dataclass(frozen=True)
class Kind:
    """`options`: what the user knows; `asked`: what `init` may ask for, by a word of its sentence."""

    table: Callable[[], pl.DataFrame]
    target: str
    options: list[str] = field(default_factory=list)
    asked: dict[str, list[str]] = field(default_factory=dict)


_STRONG = {"--strong": ["--strong", "measured before the question is asked"]}
KINDS = {
    "medical": Kind(medical, "Diagnosis", ["--positive", "malignant"], _STRONG), "diabetes": Kind(diabetes, "target", [], _STRONG),
    "sales": Kind(sales, "Units Sold", ["--time", "Date"], _STRONG), "penguins": Kind(penguins, "sex", [], _STRONG),
    "wide": Kind(wide, "label", [], _STRONG), "fraud": Kind(fraud, "Is Fraud", [], _STRONG), "tickets": Kind(tickets, "Escalated", [], _STRONG),
    "wine": Kind(wine, "class", [], {"--positive": ["--positive", "cultivar B"], **_STRONG}), "big": Kind(big, "y", [], _STRONG),
}  # fmt: skip


def brought(kind: Kind, folder: Path) -> dict[str, Any]:
    """What a new user does, and how it ended."""
    folder.mkdir()
    file, started = folder / "data.csv", time.monotonic()
    kind.table().write_csv(file)
    told = os.environ | {
        "MLOPS_HOME": str(folder / "home"),
        "MLOPS_MODELS": str(folder / "models"),
        "PYTHONUNBUFFERED": "1",
    }

    def mlops(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "cli", *words], cwd=ROOT, env=told, capture_output=True, text=True)

    words, said = ["init", str(file), "--target", kind.target, *kind.options], ""
    for _ in range(3):
        if (done := mlops(*words)).returncode == 0:
            break
        said = done.stderr.strip()
        more = next((options for word, options in kind.asked.items() if word in said and word not in words), None)
        if more is None:
            return {"answered": False, "said": said[-300:]}
        words += more
    found = {"asked": said[-200:], "lines_touched": 0, **_served(told, folder, mlops, file)}
    return found | {"seconds": round(time.monotonic() - started)}


def _served(
    told: dict[str, str], folder: Path, mlops: Callable[..., subprocess.CompletedProcess[str]], file: Path
) -> dict[str, Any]:
    output = folder / "run.out"
    with output.open("wb") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "cli", "run"], cwd=ROOT, env=told, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while "Ctrl-C ends it" not in (text := output.read_text("utf-8")) and run.poll() is None:
            time.sleep(0.5)
        line = re.findall(r"^curl .*/predict.*$", text, re.MULTILINE)
        if not line:
            return {"answered": False, "said": text[-600:]}
        answer = json.loads(subprocess.run(["sh", "-c", line[0]], capture_output=True, text=True, check=True).stdout)
        done = mlops("--json", "score", str(file), str(folder / "scores"))
        scored = json.loads(done.stdout.splitlines()[-1])
        return {
            "answered": "predictions" in answer,
            "scored": scored.get("scored", 0),
            "refused": scored.get("refused", -1),
            "difference": _difference(line[0], folder, file),
        }
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(60)


def _difference(curl: str, folder: Path, file: Path) -> float:
    """The largest between the file's scores and the API's answers to the same values, as a caller writes them in JSON."""
    url, key = re.findall(r"http://\S+", curl)[0], re.findall(r"Bearer (\S+)'", curl)[0]
    scores, _ = batch.answers(folder / "scores")
    contract = httpx.get(url.replace("/predict", "/model"), headers={"authorization": f"Bearer {key}"}).json()[
        "contract"
    ]

    table, worst = read(str(file)), 0.0
    for position in np.linspace(0, table.height - 1, min(SAMPLE, table.height)).astype(int).tolist():
        row: dict[str, Any] = {}
        for name, feature in contract["features"].items():
            if (cell := table[name][position]) is not None:
                row[name] = (
                    float(cell)
                    if feature["type"] == "number"
                    else cell == "true"
                    if feature["type"] == "boolean"
                    else cell
                )
        [answer] = httpx.post(url, json={"rows": [row]}, headers={"authorization": f"Bearer {key}"}).json()[
            "predictions"
        ]
        worst = max(worst, abs(answer["score"] - scores[position][0]) / max(1.0, abs(answer["score"])))
    return worst


def prove(folder: Path) -> dict[str, Any]:
    kinds = {name: brought(kind, folder / name) for name, kind in KINDS.items()}
    good = [
        name
        for name, end in kinds.items()
        if end.get("answered") and end.get("refused") == 0 and end["difference"] <= 1e-5
    ]
    return {
        "holds": len(good) >= 7,
        "good": len(good),
        "kinds": kinds,
        "reason": f"only {good}" if len(good) < 7 else "",
    }
