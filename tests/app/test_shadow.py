"""A request whose rows are split between champion and challenger, whatever the challenger makes of its rows."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from app.assignment import gets_challenger
from app.batch import Live, Scores
from app.bins import Bins
from app.metrics import Metrics
from app.predict import Predict
from app.prediction_log import PredictionLog
from app.settings import Settings
from app.shadow import Shadow
from mlops import log_schema, releases
from mlops.bundle import Bundle
from mlops.keys import Keyring
from mlops.log_schema import PredictionRecord
from mlops.model import Model
from mlops.registered_model import RegisteredModel
from mlops.releases import Release
from mlops.store import Store
from tests import synthetic
from tests.service import LOG_SECRET

CHAMPION, CHALLENGER, SCORE = "a" * 64, "b" * 64, 0.875
ROWS = [synthetic.request(customer=f"c{number}", size=number / 10) for number in range(12)]
RELEASE = Release(
    revision=7, at=releases.now(), by="me", why="", nonce="0", mode="canary", champion=CHAMPION, challenger=CHALLENGER,
    weight=0.5, rollout="s",
)  # fmt: skip


class Scripted:
    """A challenger that does as it is told: first with the rows of the caller who waits, then with the others."""

    digest = CHALLENGER

    def __init__(self, bundle: Bundle, script: Sequence[str], breaker_open: bool):
        self.contract, self.breaker = bundle.contract, SimpleNamespace(open=breaker_open)
        self.asked: list[list[str]] = []
        self._script = iter(script)

    def budget(self, rows: int) -> float:
        return 1.0

    async def score(self, requests: Sequence[Sequence[Any]], seconds: float) -> list[Scores]:
        self.asked += [[row.customer for row in rows] for rows in requests]
        return [self._scores(len(rows), next(self._script)) for rows in requests]

    def _scores(self, rows: int, told: str) -> Scores:
        if told in ("scored", "late"):
            return Scores([SCORE] * rows, 0.25, "slow" if told == "late" else None)
        return Scores(fault=told)

    def down(self) -> bool:
        return False


async def ask(predict: Predict, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return json.loads(await predict.answer(bytearray(json.dumps({"rows": rows}).encode()), "caller"))


@pytest.mark.parametrize(
    ("assigned", "others"),
    [
        ("scored", "scored"), ("late", "scored"), ("slow", "scored"), ("busy", "scored"), ("error", "nan"),
        ("scored", "died"), ("scored", "dropped"), ("busy", "dropped"), ("breaker open", "scored"), ("breaker open", "dropped"),
    ],
)  # fmt: skip
def test_each_row_is_answered_by_its_model_if_that_can_and_logged_once_with_what_became_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_bundle: Bundle, assigned: str, others: str
) -> None:
    if others == "dropped":
        monkeypatch.setattr("app.shadow._QUEUED_ROWS", 0)
    model, metrics, store = Model(first_bundle, CHAMPION), Metrics(), Store(str(tmp_path / "bucket"))
    script = [told for told in (assigned, others) if told not in ("breaker open", "dropped")]
    challenger: Any = Scripted(first_bundle, script, assigned == "breaker open")
    settings = Settings(
        env="local", model=synthetic.MODEL, bucket=str(tmp_path / "bucket"), keyring=tmp_path / "keyring.json",
        spool=tmp_path / "spool", log_key=SecretStr(LOG_SECRET),
    )  # fmt: skip
    registered = RegisteredModel(synthetic.MODEL, "local", store, Keyring(settings.keyring), LOG_SECRET)
    log = PredictionLog(settings, registered, metrics, Bins(metrics.registry))
    shadow = Shadow(log, metrics)
    watcher: Any = SimpleNamespace(live=Live(RELEASE, model, challenger))
    predict = Predict(settings, watcher, log, shadow, metrics, registered.log_key)

    async def run() -> dict[str, Any]:
        log.start()
        shadow.start()
        answer = await ask(predict, ROWS)
        await shadow.stop()
        await asyncio.to_thread(log.stop)
        return answer

    answer = asyncio.run(run())
    arms = [int(gets_challenger(RELEASE, None, row["customer"])) for row in ROWS]
    assert 0 < sum(arms) < len(ROWS)
    parts = [[row["customer"] for row, arm in zip(ROWS, arms, strict=True) if arm == each] for each in (1, 0)]
    asked = [[row["customer"] for row in ROWS]] if assigned == "breaker open" else parts
    assert challenger.asked == asked[: len(script)]

    decode = msgspec.json.Decoder(PredictionRecord).decode
    records = [decode(raw) for key in store.keys("predictions") for raw in log_schema.lines(store.get(key) or b"")]
    by_id = {record.id: record for record in records}
    assert len(records) == len(by_id) == len(ROWS)
    told = {1: others if assigned == "breaker open" else assigned, 0: others}
    champion_scores = model.score([model.schema.row(row) for row in ROWS])
    for row, arm, score, said in zip(ROWS, arms, champion_scores, answer["predictions"], strict=True):
        record = by_id[said["id"]]
        scored, answers = told[arm] in ("scored", "late"), arm == 1 and assigned in ("scored", "late")
        version = CHALLENGER if answers else CHAMPION
        assert (record.revision, record.entity, record.arm) == (7, row["customer"], arm)
        assert said.get("model_version", answer["model_version"]) == record.model_version == version
        assert said["score"] == record.score == (SCORE if answers else pytest.approx(score))
        assert said["prediction"] == record.prediction == (said["score"] >= 0.5)
        assert record.champion_score == pytest.approx(score)
        assert record.challenger_score == (SCORE if scored else None)
        assert record.challenger_seconds == (0.25 if scored else None)
        assert record.fault == {"scored": None, "late": "slow"}.get(told[arm], told[arm])

    counted = {
        sample.labels["result"]: int(sample.value)
        for family in metrics.challenger_rows.collect()
        for sample in family.samples
        if sample.value
    }
    assert counted == Counter(record.fault or "scored" for record in records)
    assert metrics.registry.get_sample_value("mlops_log_rows_total", {"kind": "predictions"}) == len(ROWS)
