from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from app.batch import Batch, Live
from app.bins import Bins
from app.metrics import Metrics
from app.prediction_log import PredictionLog
from app.settings import Settings
from mlops import log_schema, promotion
from mlops.bundle import Bundle
from mlops.environment import ROOT, Environment
from mlops.model import Model
from monitoring.files import read
from tests import synthetic
from tests.ids import new_id
from tests.proofs import log
from tests.service import LOG_SECRET, Service


@pytest.fixture
def served(environment: Environment, first_bundle: Bundle) -> Environment:
    promotion.release(environment.model(synthetic.MODEL), synthetic.publish(environment, first_bundle), "test")
    return environment


def test_every_scored_row_is_in_the_log_once_with_its_values(served: Environment) -> None:
    with log.running(served) as service:
        found = log.every_row_once(service, 600, 400)
    assert found == {
        "requests": 600,
        "failed": 0,
        "rows": 600,
        "damaged": 0,
        "missing": 0,
        "twice": 0,
        "wrong": 0,
        "foreign": 0,
    }


def test_a_request_of_many_rows_is_logged_row_by_row(served: Environment) -> None:
    with log.running(served) as service:
        answer = service.predict(*[synthetic.request(customer=f"c{number}", size=number / 10) for number in range(200)])
        service.stop()
    rows = {row.id: row for row in log.logged(served)[0]}
    assert [rows[each["id"]].entity for each in answer["predictions"]] == [f"c{number}" for number in range(200)]
    assert [rows[each["id"]].score for each in answer["predictions"]] == [
        each["score"] for each in answer["predictions"]
    ]


def test_the_log_hashes_what_the_contract_protects(served: Environment) -> None:
    with log.running(served) as service:
        service.predict(synthetic.request(group="a"), synthetic.request(group="a"), synthetic.request(group="b"))
        service.stop()
    groups = [row.features["group"] for row in log.logged(served)[0]]
    assert len(set(groups)) == 2
    assert all(len(str(group)) == 16 for group in groups)
    assert not any(b'"a"' in (served.store.get(key) or b"") for key in served.store.keys("predictions/synthetic"))


def test_after_kill_9_only_the_last_rows_are_missing_and_a_successor_uploads_the_rest(served: Environment) -> None:
    with log.running(served, segment_seconds=30) as service:  # so that all of it is still in the spool
        found = log.kill(service, 2.5, 100)
    assert found["segments_left"] >= 1
    assert found["rows_adopted"] > 50
    assert found["lost"] < found["answered"] / 2
    assert (found["damaged"], found["twice"], found["wrong"]) == (0, 0, 0)


def test_a_torn_last_line_of_a_dead_process_costs_that_line_alone(served: Environment) -> None:
    spool = served.home / "spool"
    spool.mkdir()
    record = log_schema.PredictionRecord(new_id(), 1.0, 1, "m", 0.5, 1, {"size": 1.0})
    whole, torn = log_schema.line(record), log_schema.line(record)[:-20]
    key = log_schema.segment_key("predictions", synthetic.MODEL, 1.0, 1, "dead")
    (spool / f"{quote(key, safe='')}.open").write_bytes(whole + torn)
    with log.running(served) as service:
        service.until(lambda: not any(spool.glob("*.log")))
    named = key.replace("dead", hashlib.sha256(whole + torn).hexdigest())
    assert served.store.get(named) == whole + torn
    found = read(served.store, named)
    assert found
    assert found.lost == 0
    assert len(log.logged(served)[0]) == 1


def test_segments_are_named_by_their_content(served: Environment) -> None:
    with log.running(served) as service:
        for _ in range(3):
            service.predict(synthetic.request())
            time.sleep(0.7)
        service.stop()
    keys = served.store.keys("predictions")
    assert len(keys) > 1
    for key in keys:
        assert re.fullmatch(r"00000001-[0-9a-f]{64}\.log", key.rpartition("/")[2])
        assert log_schema.intact(key, served.store.get(key) or b"")
        assert not log_schema.intact(key, (served.store.get(key) or b"") + b"\n")


@pytest.mark.parametrize("limit", ["the cap of the spool", "the disk"])
def test_what_does_not_fit_is_dropped_and_counted_and_no_request_notices(served: Environment, limit: str) -> None:
    with log.running(
        served, **({"spool_bytes": 1} if limit == "the cap of the spool" else {"segment_seconds": 60})
    ) as service:
        if limit == "the disk" and not log.little_files(service, 6_000):
            service.spool.chmod(0o500)  # the next best: no new segment can be made
        found = log.disk_full(service, 300, 300)
    assert found["dropped"] > 0
    assert {found[name] for name in ("failed", "unaccounted", "damaged", "twice", "wrong", "foreign")} == {0}


def test_two_replicas_never_share_a_spool(served: Environment) -> None:
    told = {
        "env": "local",
        "model": synthetic.MODEL,
        "bucket": served.bucket,
        "keyring": served.keyring,
        "spool": served.home / "spool",
        "log_key": LOG_SECRET,
    }
    with log.running(served):
        second = subprocess.run(
            [sys.executable, "-m", "app"],
            cwd=ROOT,
            env=os.environ | {f"MLOPS_{name.upper()}": str(value) for name, value in told.items()},
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert second.returncode != 0
    assert second.stderr.startswith("MLOPS_SPOOL")
    assert "another replica writes there" in second.stderr


def test_a_terminated_replica_leaves_nothing_in_its_spool(served: Environment) -> None:
    with log.running(served, segment_seconds=60) as service:
        service.predict(synthetic.request())
        service.stop()
        assert [path.name for path in service.spool.iterdir()] == ["lock"]
    assert len(log.logged(served)[0]) == 1


@pytest.fixture
def prediction_log(served: Environment, first_bundle: Bundle) -> tuple[PredictionLog, Metrics, Callable[..., Batch]]:
    metrics, model = Metrics(), Model(first_bundle, first_bundle.digest)
    here = served.model(synthetic.MODEL)
    [release] = here.releases.read()
    told = {"env": "local", "model": synthetic.MODEL, "bucket": served.bucket, "keyring": served.keyring}
    settings = Settings.model_validate(told | {"spool": served.home / "spool", "log_key": LOG_SECRET})

    def batch(rows: int, **changes: Any) -> Batch:
        asked = [model.schema.row(synthetic.request()) for _ in range(rows)]
        made = Batch(Live(release, model), time.time(), [new_id() for _ in asked], asked, [0.5] * rows)
        return replace(made, **changes)

    return PredictionLog(settings, here, metrics, Bins(metrics.registry)), metrics, batch


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"scores": [0.5, 0.5]}, 1),  # fewer than rows
        ({"answers": {7: 0.5}}, 3),  # of a row that is not there
        ({"scores": [0.5, float("nan"), 0.5]}, 1),
        ({"scores": [0.5, 1e300, 0.5]}, 1),
    ],
)
def test_what_cannot_be_written_of_one_request_costs_no_other_callers_rows(
    served: Environment, prediction_log: Any, broken: dict[str, Any], lost: int
) -> None:
    made, metrics, batch = prediction_log
    for item in (batch(471), batch(3, **broken), batch(471)):
        made.add(item)
    made.start()
    made.stop()
    rows = log.logged(served)[0]
    assert len(rows) == 945 - lost
    assert (metrics.registry.get_sample_value("mlops_log_dropped_rows_total", {"reason": "error"}) or 0) == lost


@pytest.mark.parametrize("thread", ["_write", "_upload"])
def test_a_thread_that_dies_ends_the_process(served: Environment, thread: str) -> None:
    """So does a panic of a library in another language, which is no Exception."""
    code = f"""
from app import prediction_log
class Panic(BaseException): pass
def panic(*_, **__): raise Panic
prediction_log.PredictionLog.{thread} = panic
import app.__main__
"""
    with Service(served, synthetic.MODEL) as service:
        service.stop()
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | service._settings, cwd=ROOT, timeout=50)
    assert done.returncode == 1
