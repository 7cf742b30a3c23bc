"""Live PSI is right: over three replicas, twenty features and the score, what a real Prometheus records is to 1e-6 the PSI
of the counts it holds, and to 0.02 that of the rows served in the hour.

Also where replicas restart, come and go, traffic is uneven, inputs shift within the hour, Prometheus was away, or a model is
released: then the rows are the new model's. The hour is not waited for: Prometheus starts with what the app exposed at each
of its past scrapes, and goes on scraping.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np
import polars as pl
import yaml
from prometheus_client import start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest

from app.bins import Bins
from app.metrics import Metrics
from environments.local.platform import free_port
from mlops import profile
from mlops.contract import Contract
from mlops.environment import ROOT
from mlops.model import Model
from tests import synthetic

OF_COUNTS, OF_ROWS = 1e-6, 0.02
_RULES = ROOT / "monitoring" / "prometheus" / "rules" / "drift.yaml"
_HOUR, _SCRAPE = 3600, 15
_LEVELS = {"c0": 30, "c1": 3, "c2": 4, "c3": 5, "c4": 6, "c5": 8, "c6": 12}  # the profile keeps 19
_MISSING = ("x1", "x5", "c0", "c3", "b2")
_FEATURES = [*(f"x{i}" for i in range(8)), *_LEVELS, *(f"b{i}" for i in range(5))]


@dataclass(frozen=True)
class Life:
    """Of a replica: rows a minute; minutes before the end."""

    name: str
    rows: float = 100
    since: float = 120
    until: float = 0
    restart: float | None = None


@dataclass(frozen=True)
class Scenario:
    """Minutes before the end."""

    lives: tuple[Life, ...]
    shift: float = 120  # since then rows are others than in training
    release: float | None = None  # of the second model
    away: tuple[float, float] = (0, 0)  # Prometheus scrapes nothing between them


_OLD, _RESTARTED, _LATE = Life("a"), Life("b", restart=30), Life("c", since=20)
SCENARIOS = {
    "even": Scenario((_OLD, _RESTARTED, _LATE)),
    "uneven": Scenario((Life("a", rows=250), Life("b", rows=45, restart=30), Life("c", rows=5, since=20))),
    "shift": Scenario((_OLD, _RESTARTED, _LATE), shift=30),
    "all restart": Scenario(tuple(Life(name, restart=30) for name in "abc"), shift=30),
    "all replaced": Scenario(
        (*(Life(name, until=30) for name in "abc"), *(Life(name, since=30) for name in "def")), shift=30
    ),
    "late, and restarted": Scenario((_OLD, Life("b"), Life("c", since=40, restart=20)), shift=20),
    "away": Scenario(tuple(Life(name, since=180) for name in "abc"), shift=60, away=(70, 59)),
    "release": Scenario((_OLD, _RESTARTED, _LATE, Life("d", until=30)), release=25),
}


class Served(NamedTuple):
    at: float
    model: Model
    row: Any
    score: float


class Replica:
    """A process: its counters start at zero."""

    def __init__(self, name: str):
        self.labels = {"namespace": "test", "service": "serving", "instance": f"{name}:8080"}
        self.metrics = Metrics()
        self._bins = Bins(self.metrics.registry)

    def serve(self, model: Model, rows: list[Any]) -> list[float]:
        self.metrics.info.clear()
        self.metrics.info.labels(model.contract.model, model.digest).set(1)
        if not rows:
            return []
        scores = model.score(rows)
        self._bins.observe(model, [msgspec.structs.astuple(row) for row in rows], scores)
        return scores

    def collect(self) -> Iterator[Metric]:
        """Only what the rules read."""
        read = ("mlops_feature", "mlops_model_info")
        return (family for family in self.metrics.registry.collect() if family.name.startswith(read))

    def scraped(self, at: float) -> str:
        """As Prometheus keeps it."""
        labels = "{" + ",".join(f'{name}="{value}"' for name, value in (self.labels | {"job": "serving"}).items()) + ","
        lines = generate_latest(self).decode().splitlines()
        return "".join(f"{line.replace('{', labels, 1)} {at:.3f}\n" for line in lines if not line.startswith("#"))


def frame(n: int, shift: float, seed: int) -> pl.DataFrame:
    """`shift`: 0 as in training; how far the most distant feature moves, others move by parts of it."""
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for i in range(8):
        columns[f"x{i}"] = random.normal(shift * i / 7, 1 + shift * (i % 2) / 2, n)
    for i, (name, levels) in enumerate(_LEVELS.items()):
        shares = np.arange(1.0, levels + 1) ** -(1.2 - shift * i / 7)
        columns[name] = [f"l{level}" for level in random.choice(levels, n, p=shares / shares.sum())]
    for i in range(5):
        columns[f"b{i}"] = random.random(n) < 0.1 + 0.15 * i + shift * i / 20
    signal = columns["x0"] + columns["x7"] + columns["b4"]
    for i, name in enumerate(_MISSING):
        gone = random.random(n) < 0.02 + shift * i / 20
        columns[name] = pl.Series(columns[name]).scatter(np.flatnonzero(gone), None)
    return pl.DataFrame(columns | {"y": (random.random(n) < 1 / (1 + np.exp(-signal))).astype(int)})


def model(shift: float = 0) -> Model:
    """Trained on such rows; another `shift` gives other bins."""
    kinds = {"x": "number", "c": "category", "b": "boolean"}
    features = {name: {"type": kinds[name[0]], "missing": name in _MISSING} for name in _FEATURES}
    contract = Contract.model_validate({"model": "wide", "task": "binary", "target": "y", "features": features})
    bundle = synthetic.build(contract, frame(4000, shift, seed=1), max_iter=5)
    return Model(bundle, bundle.digest)


def past(scenario: Scenario, models: list[Model], end: float, file: Path) -> tuple[list[Replica], list[Served]]:
    """Writes all scrapes until `end`. Returns the replicas that live on, and what all have served: the last rows of each
    after its last scrape."""
    random = np.random.default_rng(2)
    schema = models[0].schema
    pools = [[schema.row(row) for row in frame(5000, shift, 3).select(schema.names).to_dicts()] for shift in (0, 0.8)]
    living, served = [], []
    with file.open("w") as text:
        for number, life in enumerate(scenario.lives):
            replica, before, last = Replica(life.name), end - 60 * life.since, end - 60 * life.until
            for at in [*np.arange(before + 1 + 3 * number, last, _SCRAPE).tolist(), last]:
                ago, ago_before = (end - at) / 60, (end - before) / 60
                if life.restart is not None and ago <= life.restart < ago_before:
                    replica = Replica(life.name)
                answering = models[-1] if scenario.release is not None and ago < scenario.release else models[0]
                pool = pools[1] if ago < scenario.shift else pools[0]
                moments = np.sort(random.uniform(before, at, random.poisson(life.rows * (ago_before - ago)))).tolist()
                rows = [pool[position] for position in random.integers(0, len(pool), len(moments))]
                scores = replica.serve(answering, rows)
                served += [
                    Served(moment, answering, *each) for moment, *each in zip(moments, rows, scores, strict=True)
                ]
                if at < last and not scenario.away[0] > ago > scenario.away[1]:
                    text.write(replica.scraped(at))
                before = at
            living += [] if life.until else [replica]
        text.write("# EOF\n")
    return living, served


@contextmanager
def prometheus(folder: Path, replicas: list[Replica]) -> Generator[str]:
    """With the scrapes in `folder`/past.txt. It evaluates each second, and a minute stands for the week."""
    importing = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "past.txt", "data"]
    subprocess.run(importing, cwd=folder, check=True, capture_output=True)
    rules = re.sub(r"\n +interval: .*", "", _RULES.read_text()).replace("[7d:1h]", "[1m:1s]")
    (folder / "rules.yaml").write_text(rules)
    address = f"127.0.0.1:{free_port(19700 + os.getpid() % 97)}"
    with ExitStack() as stack:
        targets = []
        for replica in replicas:
            server, _ = start_http_server(0, "127.0.0.1", replica.metrics.registry)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            targets.append({"targets": [f"127.0.0.1:{server.server_port}"], "labels": replica.labels})
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "serving", "static_configs": targets}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        words = ["--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
        log = stack.enter_context((folder / "prometheus.log").open("wb"))
        process = stack.enter_context(subprocess.Popen(["prometheus", *words], cwd=folder, stdout=log, stderr=log))
        stack.callback(process.terminate)
        yield f"http://{address}"


def ask(url: str, query: str) -> list[dict[str, Any]]:
    try:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=10)
    except httpx.TransportError:
        return []
    return answer.json()["data"]["result"] if answer.is_success else []


def recorded(url: str, replicas: int, features: int) -> tuple[float, dict[str, dict[tuple[str, str], float]]]:
    """An evaluation after the first scrapes: its moment, and values by rule, feature and bin."""
    deadline, scraped = time.monotonic() + 120, 0.0
    while time.monotonic() < deadline:
        if not scraped and ask(url, f"sum(up) == {replicas}"):
            scraped = time.time()
        found: dict[float, dict[str, dict[tuple[str, str], float]]] = {}
        for series in ask(url, '{__name__=~"mlops:feature_.*"}[10s]') if scraped else ():
            labels = series["metric"]
            for at, value in series["values"]:
                by_rule = found.setdefault(at, {}).setdefault(labels["__name__"], {})
                by_rule[labels["feature"], labels.get("bin", "")] = float(value)
        for at, values in sorted(found.items()):
            if at > scraped and len(values.get("mlops:feature_psi:7d", ())) == features:
                return at, values
        time.sleep(0.1)
    raise TimeoutError("Prometheus records no PSI")


def measure(scenario: Scenario, models: list[Model], folder: Path) -> dict[str, Any]:
    """The largest differences over all features."""
    folder.mkdir()
    answering = models[-1] if scenario.release is not None else models[0]
    bins, watched = answering.profile["bins"], [*answering.profile["watched"], "score"]
    replicas, served = past(scenario, models, time.time(), folder / "past.txt")
    with prometheus(folder, replicas) as url:
        at, values = recorded(url, len(replicas), len(watched))
    hour = [each for each in served if at - _HOUR < each.at <= at and each.model is answering]
    of_counts, of_rows, truths = [], [], []
    for name in watched:
        expected, counts, counts_7d = (
            np.array([values[f"mlops:feature_bin_{what}"][name, label] for label in profile.names(bins[name])])
            for what in ("expected", "rows:1h", "rows:7d")
        )
        psi, psi_7d = (values[rule][name, ""] for rule in ("mlops:feature_psi", "mlops:feature_psi:7d"))
        of_counts += [abs(psi - profile.psi(expected, counts)), abs(psi_7d - profile.psi(expected, counts_7d))]
        column = [each.score if name == "score" else getattr(each.row, name) for each in hour]
        truths.append(profile.psi(bins[name]["expected"], profile.count(bins[name], column)))
        of_rows.append(abs(psi - truths[-1]))
    return {
        "rows": len(hour),
        "features": len(watched),
        "largest_psi": round(float(np.max(truths)), 3),
        "off_counts": float(np.max(of_counts)),
        "off_rows": round(float(np.max(of_rows)), 5),
    }


def prove(folder: Path) -> dict[str, Any]:
    models = [model(), model(shift=0.3)]
    found = {name: measure(scenario, models, folder / name) for name, scenario in SCENARIOS.items()}
    missed = [
        name for name, each in found.items() if not (each["off_counts"] <= OF_COUNTS and each["off_rows"] <= OF_ROWS)
    ]
    return {"scenarios": found, "holds": not missed, "reason": ", ".join(missed)}
