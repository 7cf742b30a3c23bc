"""An A/B test as a person asks for it: how long, how it stands, what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlops import cli, terminal
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.environment import Environment
from tests.rollout_log import Log, Rows
from tests.synthetic import MODEL, publish


@pytest.fixture
def digests(
    environment: Environment, first_bundle: Bundle, second_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    for name in ("name", "home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(environment, name)))
    found = [publish(environment, bundle) for bundle in (first_bundle, second_bundle)]
    attest(
        environment.store, environment.keys, "approved", MODEL, found[0], verdict="passed", environment=environment.name
    )
    environment.model(MODEL).releases.append(found[0], "first")
    return found


@pytest.fixture
def mlops(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr("sys.argv", ["mlops", "--json", "--model", MODEL, *words])
        monkeypatch.setattr(terminal.state, "cluster", None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out.splitlines()[0])

    return run


def test_from_the_days_it_takes_to_the_page_with_its_result(
    environment: Environment, digests: list[str], mlops: Any
) -> None:
    _, unknown = mlops("rollout", "start", digests[1], "--effect", "0.05")
    assert unknown["days_needed"] is None
    log = Log(environment.store)
    first = environment.model(MODEL).releases.read()[-1]
    log.write(first, Rows(days=12, worse=0.5))
    _, stopped = mlops("rollout", "stop", "--why", "again with numbers")
    assert stopped["champion"] == digests[0]

    code, refused = mlops("rollout", "start", digests[1], "--effect", "0.0005")
    assert code == 2
    assert "days to show" in refused["error"]["hint"]
    code, started = mlops(
        "rollout", "start", digests[1], "--effect", "0.1", "--weight", "0.5", "--why", "is it better?"
    )
    assert (code, started["mode"], started["weight"]) == (0, "ab", 0.5)
    assert 2 <= started["days_needed"] <= 28

    release = environment.model(MODEL).releases.read()[-1]
    rows = Rows(days=16)
    rows.challenger = 0.7 * rows.challenger + 0.3 * rows.y  # it knows more
    log.write(release, rows)
    _, status = mlops("rollout", "status")
    assert status["verdict"]["decision"] == "advance"
    _, stopped = mlops("rollout", "stop", "--promote")
    assert stopped["champion"] == digests[1]
    page = Path(stopped["page"]).read_text()
    assert str(release.rollout) in page
    assert "the loss changes by -" in page


def test_a_challenger_that_was_not_shown_to_be_better_needs_a_reason(
    environment: Environment, digests: list[str], mlops: Any
) -> None:
    mlops("rollout", "start", digests[1])
    code, refused = mlops("rollout", "stop", "--promote")
    assert (code, refused["error"]["key"]) == (2, "why")
    code, stopped = mlops("rollout", "stop", "--promote", "--why", "it is cheaper")
    assert (code, stopped["champion"]) == (0, digests[1])
