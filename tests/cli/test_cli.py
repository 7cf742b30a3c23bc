import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops import access, cli
from mlops.bundle import Bundle
from mlops.environment import ROOT, Environment
from mlops.keys import Keyring
from tests import synthetic

VERBS = [
    "run",
    "init",
    "train",
    "tune",
    "score",
    "release",
    "rollback",
    "history",
    "status",
    "predict",
    "replay",
    "outcomes",
    "check",
    "key",
]
MODEL = synthetic.MODEL
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mlops(environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with its words: exit code, output, errors."""
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(environment, name)))
    monkeypatch.setenv("MLOPS_MODEL", MODEL)
    monkeypatch.setenv("MLOPS_API_KEY", "mlops_none")
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlops", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, shown.out, shown.err

    return run


def test_the_command_is_installed_and_shows_every_verb() -> None:
    command = [str(Path(sys.executable).parent / "mlops"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert shown.returncode == 0
    listed = {words[1] for line in shown.stdout.splitlines() if len(words := line.split()) > 2}
    assert set(VERBS) <= listed


@pytest.mark.parametrize("verb", [*VERBS, "key new", "key list", "key revoke"])
def test_every_verb_explains_itself(mlops: Run, verb: str) -> None:
    code, out, _ = mlops(*verb.split(), "--help")
    assert code == 0
    assert f"Usage: mlops {verb}" in out


WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "no such verb": ("frobnicate", ("frobnicate", "mlops --help")),
    "no digest": ("release", ("release", "DIGEST", "--pause")),
    "two things at once": ("release abc --pause", ("release", "abc", "--pause")),
    "steering without a reason": ("release --pause", ("why", "--why")),
    "no rollout to steer": ("release --pause --why x", ("rollout", "--mode shadow")),
    "no experiment": ("experiment status", ("rollout", "--mode shadow")),
    "no such option": ("status --colour", ("--colour",)),
    "a seed that is no number": ("train --seed x", ("seed",)),
    "an unknown bundle": ("release abc123", ("digest", "abc123", "mlops status")),
    "nothing to check": ("check abc123", ("digest", "abc123", "mlops status")),
    "nothing to roll back": ("rollback", ("rollback", MODEL, "nothing is released")),
    "a moment that is none": ("history --at yesterday", ("at", "yesterday", "2024-05-01T12:00:00Z")),
    "rows that are no JSON": ("predict {", ("rows", "{", "JSON")),
    "a service that is not there": ("predict {}", ("endpoint", "http://127.0.0.1:1", "make up")),
    "outcomes that are not there": ("outcomes nowhere.csv", ("file", "nowhere.csv", "no such file")),
    "a model that is not there": ("replay --window 0..1", ("model", MODEL, "mlops init")),
    "accepting without a reason": ("train --accept too_good", ("why", "--why")),
    "an unknown mode": ("release abc --mode turbo", ("mode", "turbo", "canary")),
    "an unknown role": ("key new x --role admin", ("role", "admin", "predict")),
    "two roles of a signing key": ("key new x --role build --role approve", ("role", "build", "one role")),
    "an unknown algorithm": ("key new --role build --alg rsa", ("alg", "rsa", "ed25519")),
    "an unknown key": ("key revoke nobody", ("key", "nobody", "mlops key list")),
}


@pytest.mark.parametrize(("line", "said"), WRONG.values(), ids=WRONG)
def test_an_error_names_key_value_and_way_out(mlops: Run, line: str, said: tuple[str, ...]) -> None:
    code, out, err = mlops(*line.split())
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    code, out, err = mlops(*line.split(), "--json")
    assert code == 2
    assert "Traceback" not in err
    error = json.loads(out)["error"]
    assert set(error) == {"key", "value", "hint"}
    for word in said:
        assert word in f"{error['key']} {error['value']} {error['hint']}"


@pytest.mark.parametrize("line", ["--json history", "history --json"])
def test_json_may_stand_anywhere(mlops: Run, environment: Environment, line: str) -> None:
    done = environment.model(MODEL).releases.append("a" * 64, "why")
    code, out, err = mlops(*line.split())
    assert (code, err) == (0, "")
    assert json.loads(out) == {"releases": [done.model_dump(mode="json")]}


def test_what_others_wrote_is_shown_as_they_wrote_it(mlops: Run, environment: Environment) -> None:
    environment.model(MODEL).releases.append("a" * 64, "[/red] [bold]now[/bold]", by="[link]")
    access.new(environment.store, "[/x]", ["predict"], 1)
    for line, said in {
        "history": "[/red] [bold]now[/bold]",
        "status": "[/red] [bold]now[/bold]",
        "key list": "[/x]",
    }.items():
        code, out, err = mlops(*line.split())
        assert (code, "Traceback" in err) == (0, False)
        assert said in out


def test_history_says_what_was_to_serve_at_a_moment(mlops: Run, environment: Environment) -> None:
    done = environment.model(MODEL).releases.append("a" * 64, "why")
    before, after = (
        json.loads(mlops("history", "--json", "--at", at)[1]) for at in ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z")
    )
    assert (before["intended"], before["observed"]) == (None, [])
    assert after["intended"]["revision"] == done.revision


def test_status_answers_without_service_and_tracking(mlops: Run, environment: Environment) -> None:
    status = json.loads(mlops("status", "--json")[1])
    assert (status["release"], status["bundles"]) == (None, [])
    assert status["service"]["state"] == status["tracking"]["state"] == "does not answer"


def test_release_check_and_what_the_gate_refused(
    mlops: Run, environment: Environment, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    digest = synthetic.publish(environment, first_bundle)
    code, out, _ = mlops("check", digest[:8])
    assert (code, "does not hold" in out, "[red]" in out) == (2, True, False)
    code, out, _ = mlops("release", digest[:8], "--why", "first", "--json")
    assert (code, json.loads(out)["champion"], json.loads(out)["why"]) == (0, digest, "first")
    code, out, _ = mlops("check", digest[:8], "--json")
    assert (code, json.loads(out)["holds"]) == (0, True)
    code, out, _ = mlops("release", synthetic.publish(environment, second_bundle, "refused"), "--json")
    assert (code, "loss: planted" in json.loads(out)["error"]["hint"]) == (2, True)


def test_keys_are_made_shown_once_listed_and_revoked(mlops: Run, environment: Environment) -> None:
    made = json.loads(mlops("key", "new", "client", "--role", "predict", "--json")[1])
    assert access.read(environment.store)[0].sha256 == access.sha256(made["key"])
    code, out, _ = mlops("key", "list", "--json")
    assert (code, made["key"] in out, "sha256" in out) == (0, False, False)
    assert mlops("key", "revoke", made["id"])[0] == 0
    assert access.read(environment.store)[0].revoked
    signing = json.loads(mlops("key", "new", "--role", "approve", "--alg", "ecdsa-p256", "--json")[1])
    assert (signing["alg"], signing["environment"]) == ("ecdsa-p256", "local")
    mlops("key", "revoke", signing["id"], "--verify-only")
    assert Keyring(environment.keyring).key(signing["id"]).state == "verify-only"


BROKEN = {
    "a keyring that is none": {"MLOPS_KEYRING": str(ROOT / "pyproject.toml")},
    "a bucket of another kind": {"MLOPS_BUCKET": "ftp://x"},
    "a bucket that does not answer": {"MLOPS_BUCKET": "s3://x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "x"},
}  # fmt: skip


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_an_environment_that_is_broken_is_named(
    mlops: Run, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    code, out, err = mlops("key", "list", "--json")
    assert (code, "Traceback" in err) == (2, False)
    assert json.loads(out)["error"]["key"] in ("keyring", "bucket")


def test_an_environment_that_nobody_made_is_named(mlops: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_BUCKET")
    code, out, _ = mlops("--env", "nowhere", "status", "--json")
    assert (code, json.loads(out)["error"]["value"]) == (2, "nowhere")


def test_what_nobody_thought_of_is_no_traceback_either(mlops: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("[/red]")

    monkeypatch.setattr("mlops.releases.read", break_down)
    code, out, err = mlops("history", "--json")
    assert (code, json.loads(out)["error"]["value"], "Traceback" in err) == (2, "ZeroDivisionError", False)
    monkeypatch.setenv("MLOPS_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_the_gates_refusal_has_an_exit_code_of_its_own(mlops: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops.errors import GateError

    def refuse(*_: object) -> None:
        raise GateError("gate", "abc", "refused: loss")

    monkeypatch.setattr("mlops.releases.read", refuse)
    assert mlops("history")[0] == 3
