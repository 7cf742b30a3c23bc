"""Nine kinds of data by the README alone: from `init` to an answered curl line without touching a line of a file, and `score`
of the user's own file gives what the API answers; what cannot be is said by `init` in one sentence, before anything is fitted.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
from sklearn import datasets

from mlops.contract import Contract, load_contract
from mlops.environment import ROOT
from tests.proofs import batch
from training.export import parity
from training.source import column_names

ENOUGH = 7
EQUAL = 1e-6
SAMPLE = 200
_WAIT_SECONDS = 1800  # five million rows on a busy machine


def medical() -> pl.DataFrame:
    found = datasets.load_breast_cancer(as_frame=True)
    return _measured(found).with_columns(Diagnosis=pl.Series(found.target_names[found.target]))


def diabetes() -> pl.DataFrame:
    found = datasets.load_diabetes(as_frame=True)
    return _measured(found).with_columns(progression=pl.Series(found.target.to_numpy()))


def wine() -> pl.DataFrame:
    found = datasets.load_wine(as_frame=True)
    return _measured(found).with_columns(
        cultivar=pl.Series(np.array(["Barolo", "Grignolino", "Barbera"])[found.target])
    )


def _measured(found: Any) -> pl.DataFrame:
    """With scikit-learn's own names of the columns, spaces and all."""
    return pl.DataFrame({str(name): found.data[name].to_numpy() for name in found.data.columns})


def sales(days: int = 730) -> pl.DataFrame:
    random, first = np.random.default_rng(2), date(2023, 1, 1)
    stores = ["Berlin Mitte", "Köln, Dom", "München-Ost", 'Hamburg "Alte Post"', "Dresden", "Bremen"]
    rows = pl.DataFrame(
        [(first + timedelta(n), place) for n in range(days) for place in stores], ["Date", "Store"], orient="row"
    )
    size = dict(zip(stores, (60, 45, 52, 38, 25, 30), strict=True))
    busy = rows["Store"].replace_strict(size).to_numpy()
    weekday, promo = rows["Date"].dt.weekday().to_numpy(), random.random(rows.height) < 0.25
    expected = busy * (1 + 0.35 * (weekday > 5) + 0.3 * promo)
    return rows.with_columns(
        pl.Series("Weekday", np.array(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])[weekday - 1]),
        pl.Series("Promo?", promo),
        pl.Series("Temperature (°C)", random.normal(11, 7, rows.height).round(1)),
        pl.Series("Units Sold", random.poisson(expected)),
    )


def penguins(rows: int = 344) -> pl.DataFrame:
    random = np.random.default_rng(3)
    species, male = random.integers(0, 3, rows), random.random(rows) < 0.5
    measures = {
        "bill_length_mm": (np.array([38, 48, 46.5])[species] + 3 * male + random.normal(0, 2, rows)).round(1),
        "bill_depth_mm": (np.array([17.6, 17.6, 14.3])[species] + 1.4 * male + random.normal(0, 0.8, rows)).round(1),
        "flipper_length_mm": (np.array([188, 192, 213])[species] + 6 * male + random.normal(0, 5, rows)).round(),
        "body_mass_g": (np.array([3370, 3530, 4680])[species] + 650 * male + random.normal(0, 280, rows)).round(-1),
    }  # fmt: skip
    sex = np.where(male, "male", "female")

    def gaps(values: np.ndarray) -> pl.Series:
        return pl.Series(values).scatter(random.choice(rows, rows // 40, replace=False), None)

    places = {"species": np.array(["Adelie", "Chinstrap", "Gentoo"])[species]}
    places |= {"island": random.choice(["Biscoe", "Dream", "Torgersen"], rows)}
    kept = {name: gaps(values) for name, values in (measures | {"sex": sex}).items()}
    return pl.DataFrame(places | kept | {"year": random.integers(2007, 2010, rows)})


def wide(rows: int = 3_000, columns: int = 500) -> pl.DataFrame:
    random = np.random.default_rng(4)
    values = random.normal(size=(rows, columns)).round(3)
    answer = values[:, :8].sum(1) + random.normal(0, 2, rows) > 0
    return pl.DataFrame({f"Sensor {n}": values[:, n] for n in range(columns)} | {"failed": answer.astype(int)})


def fraud(rows: int = 200_000) -> pl.DataFrame:
    """0.5 % are positive, and a linear signal ranks them with AUC 0.8; booleans as three programs would write them."""
    random = np.random.default_rng(5)
    amount, hour = random.lognormal(3.5, 1, rows).round(2), random.integers(0, 24, rows)
    abroad, night, present = random.random(rows) < 0.1, hour < 6, random.random(rows) < 0.7
    signal = 0.005 * amount.clip(0, 500) + 1.9 * abroad + 0.9 * night - 1.4 * present
    return pl.DataFrame({
        "Amount": amount,
        "Hour": hour,
        "Abroad": abroad,
        "Night": night.astype(int),
        "Card present": np.where(present, "Y", "N"),
        "Merchant": random.choice(["food", "travel", "web", "fuel"], rows),
        "Is Fraud": (random.random(rows) < 1 / (1 + np.exp(5.75 - signal))).astype(int),
    })  # fmt: skip


def tickets(rows: int = 5_000) -> pl.DataFrame:
    random = np.random.default_rng(6)
    priority, waiting = random.choice(["low", "normal", "high"], rows), random.integers(0, 72, rows)
    escalated = random.random(rows) < 1 / (1 + np.exp(3.5 - 0.06 * waiting - 1.8 * (priority == "high")))
    words = ["printer", "network", "password", "slow,", "broken;", '"urgent"', "please\n", "again", "crème", "invoice"]
    return pl.DataFrame({
        "Subject": random.choice(["Printer", "Network", "Account", "Invoice"], rows),
        "Description": [" ".join(random.choice(words, 60)) for _ in range(rows)],
        "Priority": priority,
        "Hours waiting": waiting,
        "Outcome": np.where(escalated, "escalated", "solved"),
    })  # fmt: skip


def big(rows: int = 5_000_000) -> pl.DataFrame:
    random = np.random.default_rng(7)
    amount, age = random.gamma(2, 30, rows).round(2), random.integers(18, 90, rows)
    channel, member = random.choice(["shop", "web", "phone", "partner"], rows), random.random(rows) < 0.4
    signal = 0.012 * amount - 0.02 * age + 0.8 * (channel == "web") + 0.9 * member
    return pl.DataFrame({
        "amount": amount,
        "age": age,
        "channel": channel,
        "member": member,
        "visits": random.poisson(4, rows),
        "returned": (random.random(rows) < 1 / (1 + np.exp(0.8 - signal))).astype(int),
    })  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """`given`: what the user says unasked; `known`: the words for an option that `init` asks for."""

    table: Callable[[], pl.DataFrame]
    target: str
    given: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=lambda: {"--strong": "measured before the question is asked"})


KINDS = {
    "medical": Kind(medical, "Diagnosis"),
    "diabetes": Kind(diabetes, "progression"),
    "sales": Kind(sales, "Units Sold", ("--time", "Date")),
    "penguins": Kind(penguins, "sex"),
    "wide": Kind(wide, "failed"),
    "fraud": Kind(fraud, "Is Fraud"),
    "tickets": Kind(tickets, "Outcome"),
    "wine": Kind(wine, "cultivar", known={"--positive": "Barolo", "--strong": "measured before it is tasted"}),
    "big": Kind(big, "returned"),
}  # fmt: skip


def write(table: pl.DataFrame, file: Path) -> Path:
    table.write_csv(file, null_value="NA")
    return file


def brought(name: str, kind: Kind, folder: Path) -> dict[str, Any]:
    """What a new user does, and how it ended: `said` is empty, or what stopped it."""
    folder.mkdir()
    file, models, started = write(kind.table(), folder / f"{name}.csv"), folder / "models", time.monotonic()
    told = os.environ | {"MLOPS_HOME": str(folder / "home"), "MLOPS_MODELS": str(models), "PYTHONUNBUFFERED": "1"}

    def mlops(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *words]
        return subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)

    found: dict[str, Any] = {"rows": 0, "seconds": 0, "commands": 0, "lines_touched": 0, "asked": [], "explained": True}
    found |= {"answered": False, "scored": 0, "refused": 0, "said": ""}
    words = ["init", str(file), "--target", kind.target, *kind.given]
    while True:
        done = mlops(*words)
        found["commands"] += 1
        if done.returncode == 0:
            break
        # One sentence, exit code 2, and nothing is left behind, so nothing was fitted in vain.
        one = done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and not models.exists()
        found["explained"] &= one
        option = next((each for each in kind.known if each in done.stderr and each not in words), None)
        if option is None:
            return found | {"said": _shown(done.stderr, folder), "seconds": round(time.monotonic() - started)}
        found["asked"].append(_shown(done.stderr, folder))
        words += [option, kind.known[option]]
    before = _fingerprints(models)
    found |= _served(name, told, mlops, file)
    found["lines_touched"] = sum(before[each] != now for each, now in _fingerprints(models).items())
    found["commands"] += 3
    return found | {"seconds": round(time.monotonic() - started)}


def _shown(text: str, folder: Path) -> str:
    """Without the folder's name, which is another each time; its end says why something failed."""
    return text.strip().replace(f"{folder}/", "")[-500:]


def _fingerprints(models: Path) -> dict[Path, str]:
    files = [path for path in models.rglob("*") if path.suffix in (".py", ".yaml")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _served(
    name: str, told: dict[str, str], mlops: Callable[..., subprocess.CompletedProcess[str]], file: Path
) -> dict[str, Any]:
    """`mlops run`, what `make up` does, then the curl line that it prints, then `mlops score`."""
    output, deadline = file.parent / "run.out", time.monotonic() + _WAIT_SECONDS
    with output.open("wb") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "cli", "run"], cwd=ROOT, env=told | {"MLOPS_MODEL": name}, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        while "Ctrl-C ends it" not in output.read_text("utf-8") and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        said = output.read_text("utf-8")
        lines = re.findall(r"^curl .*/predict .*$", said, re.MULTILINE)
        if not lines:
            return {"explained": False, "said": _shown(said, file.parent)}
        answer = subprocess.run(["sh", "-c", lines[0]], capture_output=True, text=True).stdout
        done = mlops("--json", "--model", name, "score", str(file), str(file.parent / "scores"))
        if done.returncode or "predictions" not in answer:
            return {"explained": False, "said": _shown(f"{answer} {done.stderr}", file.parent)}
        scored = json.loads(done.stdout.splitlines()[-1])
        contract = load_contract(file.parent / "models" / name / "contract.yaml")
        words = shlex.split(lines[0])
        url, header = next(word for word in words if word.startswith("http")), words[words.index("-H") + 1]
        with httpx.Client(
            headers=dict([header.split(": ")]), timeout=60, trust_env=False
        ) as http:  # past proxies, as curl
            found = difference(lambda row: _ask(http, url, row), contract, file, file.parent / "scores")
        return {"answered": True, "scored": scored["scored"], "refused": scored["refused"], **found}
    except AssertionError as error:  # the API refused a row that was scored
        return {"explained": False, "said": str(error)[:500]}
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(120)


def _ask(http: httpx.Client, url: str, row: dict[str, Any]) -> float:
    answer = http.post(url, json={"rows": [row]})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]["score"]


def difference(ask: Callable[[dict[str, Any]], float], contract: Contract, file: Path, scores: Path) -> dict[str, Any]:
    """Of sampled rows, the largest between the file's scores and the API's (relative where they exceed 1). The values are
    read by Polars, not by us: what a caller who has the same file would send."""
    with file.open(encoding="utf-8", newline="") as text:
        names = column_names(next(csv.reader(text)))
    table = pl.read_csv(file, null_values="NA", infer_schema_length=None, new_columns=names)
    found = pl.read_parquet(batch.parts(scores)).select("row", "score").sort("row")
    wanted = [name for name in (*contract.features, *contract.context) if name in table.columns]
    chosen = found[np.linspace(0, found.height - 1, min(SAMPLE, found.height)).astype(int)]
    rows = table.select(wanted)[chosen["row"]].to_dicts()
    got = [ask({name: value for name, value in row.items() if value is not None}) for row in rows]
    largest = parity(np.array(got), chosen["score"].to_numpy())
    return {"rows": table.height, "compared": len(got), "largest_difference": largest}


def good(found: dict[str, Any]) -> bool:
    """Answered, every row scored, and equal, with no line touched."""
    whole = found["answered"] and found["scored"] == found["rows"] and not found["refused"]
    return whole and not found["lines_touched"] and found["largest_difference"] <= EQUAL


def prove(folder: Path) -> dict[str, Any]:
    kinds = {name: brought(name, kind, folder / name) for name, kind in KINDS.items()}
    held = [name for name, found in kinds.items() if good(found)]
    wrong = [name for name, found in kinds.items() if not found["explained"]]
    return {
        "holds": len(held) >= ENOUGH and not wrong,
        "good": len(held),
        "kinds": kinds,
        "reason": "" if len(held) >= ENOUGH and not wrong else f"good: {held}, without a sentence from init: {wrong}",
    }
