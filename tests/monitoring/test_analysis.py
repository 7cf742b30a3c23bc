"""An A/B test by its commands: how long it takes, its verdict now, its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import main as cli
from cli import terminal
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.environment import Environment
from tests.rollout_log import Log, Rows
from tests.synthetic import MODEL, publish

Command = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def digests(
    environment: Environment, first_bundle: Bundle, second_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    for name in ("name", "home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(environment, name)))
    model = environment.model(MODEL)
    found = [publish(environment, bundle) for bundle in (first_bundle, second_bundle)]
    attest(model, "approved", found[0], verdict="passed", environment=environment.name)
    model.releases.append(found[0], "first")
    return found


@pytest.fixture
def mlops(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr("sys.argv", ["mlops", "--json", "--model", MODEL, *words])
        monkeypatch.setattr(terminal.state, "cluster", None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr().out
        return int(ended.value.code or 0), json.loads(out.splitlines()[0])

    return run


def test_from_the_days_it_takes_to_the_page_with_its_result(
    environment: Environment, digests: list[str], mlops: Command
) -> None:
    log, releases = Log(environment.store), environment.model(MODEL).releases
    _, unknown = mlops("experiment", digests[1], "--effect", "0.05")
    assert unknown["days_needed"] is None
    log.write(releases.read()[-1], Rows(days=12, worse=0.5))
    _, aborted = mlops("rollout", "abort", "--why", "again with numbers")
    assert (aborted["champion"], aborted["why"]) == (digests[0], "again with numbers")

    code, refused = mlops("experiment", digests[1], "--effect", "0.0005")
    assert code == 2
    assert "days to show" in refused["error"]["hint"]
    code, started = mlops("experiment", digests[1], "--effect", "0.1", "--weight", "0.5", "--why", "is it better?")
    assert (code, started["mode"], started["weight"]) == (0, "ab", 0.5)
    assert 2 <= started["days_needed"] <= 28

    release = releases.read()[-1]
    rows = Rows(days=16)
    rows.challenger = 0.7 * rows.challenger + 0.3 * rows.y  # it knows more
    log.write(release, rows)
    _, status = mlops("rollout", "status")
    assert status["verdict"]["decision"] == "advance"
    _, promoted = mlops("rollout", "promote", "--full")
    assert promoted["champion"] == digests[1]
    page = Path(promoted["page"]).read_text()
    assert str(release.rollout) in page
    assert "the loss changes by -" in page


def test_a_challenger_that_was_not_shown_to_be_better_needs_a_reason(digests: list[str], mlops: Command) -> None:
    mlops("experiment", digests[1])
    code, refused = mlops("rollout", "promote", "--full")
    assert (code, refused["error"]["key"]) == (2, "why")
    code, promoted = mlops("rollout", "promote", "--full", "--why", "it is cheaper")
    assert (code, promoted["champion"]) == (0, digests[1])


def test_a_person_may_promote_step_by_step_without_evidence(digests: list[str], mlops: Command) -> None:
    mlops("release", digests[1], "--mode", "shadow")
    code, refused = mlops("rollout", "promote")
    assert (code, refused["error"]["key"]) == (2, "why")
    steps = [mlops("rollout", "promote", "--why", "I know")[1] for _ in range(6)]
    assert [step.get("weight") for step in steps] == [0.01, 0.05, 0.25, 0.5, 1.0, None]
    assert (steps[-1]["mode"], steps[-1]["champion"]) == ("full", digests[1])
    code, refused = mlops("rollout", "promote", "--why", "I know")
    assert (code, refused["error"]["key"]) == (2, "rollout")
    assert "none is in progress" in refused["error"]["hint"]
