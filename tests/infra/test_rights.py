"""The table of docs/cluster.md, cell by cell: whoever reads it knows what each identity may do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from obstore.exceptions import PermissionDeniedError

from cli import main as cli
from infra.identities import IDENTITIES
from mlops import access, replicas
from mlops.bundle import Bundle
from mlops.environment import Environment
from mlops.registered_model import RegisteredModel
from mlops.retraining import RetrainingLog
from monitoring.approver import Approver
from monitoring.controller import Controller
from monitoring.retention import expire, forget
from tests.proofs import rights
from tests.rollout_log import Log, Rows
from tests.synthetic import MODEL, publish

needs_versitygw = pytest.mark.skipif(not rights.VERSITYGW, reason="versitygw is not on the PATH (.ci/run)")


def test_on_aws_each_identity_may_do_what_the_table_says() -> None:
    assert {cell[0] for cell in rights.table()} == set(IDENTITIES)
    asked, wrong = rights.differing(rights.of_aws())
    assert (asked, wrong) == (len(rights.table()), [])


@needs_versitygw
def test_in_the_bundled_bucket_each_identity_may_do_what_the_table_says(tmp_path: Path) -> None:
    asked, wrong = rights.differing(rights.of_versity(tmp_path))
    assert (asked, wrong) == (len(rights.table()), [])


def test_a_right_that_the_table_does_not_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {cell: said or cell == ("training", "access", "write") for cell, said in rights.table().items()}
    assert rights.differing(iter(asked.items()))[1] == ["training access write: allowed"]


def test_who_trains_or_reads_what_callers_sent_writes_no_release_and_makes_no_key() -> None:
    table = rights.table()
    for what in ("models/m/releases", "models/m/signed", "access"):
        writers = {identity for identity in IDENTITIES if table[identity, what, "write"]}
        assert writers == {"approver"} | ({"setup"} if what == "access" else set())
    read = {what for what in rights.PREFIXES if table["approver", what, "read"]}
    assert read & {"predictions/m", "outcomes/m", "damaged/predictions/m", "data"} == set()


class Cast:
    """The environment over a bundled bucket, and this process as one identity after the other."""

    def __init__(self, environment: Environment, endpoint: str, monkeypatch: pytest.MonkeyPatch):
        self.environment = environment.model_copy(update={"bucket": "s3://mlops"})
        self._patch, self._set = monkeypatch, monkeypatch.setenv
        for name in ("bucket", "keyring", "home", "tracking", "endpoint"):
            self._set(f"MLOPS_{name.upper()}", str(getattr(self.environment, name)))
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
            "MLOPS_MODEL": MODEL,
            "MLOPS_COMMAND": "mlops",
        }.items():
            self._set(name, value)

    def act(self, identity: str) -> RegisteredModel:
        for half in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            self._set(f"AWS_{half}", os.environ[f"{identity.upper()}_{half}"])
        return self.environment.model(MODEL)

    def run(self, *words: str) -> None:
        self._patch.setattr(sys, "argv", ["mlops", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (0, None), words


@pytest.fixture
def cast(tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cast]:
    (folder := tmp_path / "gateway").mkdir()
    with rights.bundled(folder) as client:
        yield Cast(environment, client("setup").meta.endpoint_url, monkeypatch)


@needs_versitygw
def test_each_does_its_work_with_its_own_rights_alone(cast: Cast, first_bundle: Bundle, second_bundle: Bundle) -> None:
    training = cast.act("training")
    first, second = (publish(cast.environment, bundle) for bundle in (first_bundle, second_bundle))
    retrainings = RetrainingLog(training)
    retrainings.end(
        retrainings.begin(first_bundle.contract.retraining, "retrain", "due", date.today()), "refused", "so"
    )
    training.store.put(f"{training.folder}/reports/{first}/index.html", b"")
    cast.act("approver")
    cast.run("release", first, "--wait", "0")
    cast.run("release", second, "--mode", "canary", "--weight", "0.05", "--wait", "0")
    cast.run("api-key", "new", "somebody")
    serving = cast.act("serving")
    release = serving.releases.current()
    assert release
    before = datetime.now(UTC) - timedelta(hours=3)
    written = Log(serving.store, before).write(release, Rows())
    serving.store.put(re.sub("-[0-9a-f]{64}", f"-{64 * '0'}", written[0]), b"something else")
    replicas.report(serving, "a", serving=2, ready=True, loaded=[first])
    assert access.read(serving.store)

    model = cast.act("controller")
    controller = Controller(cast.environment, MODEL)
    work = [controller.judge, controller.observe, controller.compact, controller.loop.analyse, controller.loop.retrain]
    for step in (*work, controller.follow_keys, controller.show, controller.judge):
        step()
    assert model.store.keys("damaged") != []

    cast.act("approver")
    approver = Approver(cast.environment.model(MODEL))
    approver.decide()
    approver.release()
    for words in ("pause --why x", "resume --why x", "promote --why x", "abort"):
        cast.run("rollout", *words.split())
    cast.run("release", second, "--mode", "canary", "--wait", "0")

    model = cast.act("controller")
    assert forget(model, first_bundle.contract, "c1", "asked to").found["predictions"] == 1
    assert expire(model, "predictions", 1, datetime.now(UTC) + timedelta(days=9)) > 0


@needs_versitygw
def test_a_command_that_approves_is_refused_to_whom_it_does_not_run_as(cast: Cast, first_bundle: Bundle) -> None:
    cast.act("training")
    digest = publish(cast.environment, first_bundle)
    for identity in ("training", "controller", "serving"):
        model = cast.act(identity)
        with pytest.raises(PermissionDeniedError):
            model.releases.append(digest, "by myself")
        with pytest.raises(PermissionDeniedError):
            access.new(model.store, "mine", ["predict"], per_second=1)
