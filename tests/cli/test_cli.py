import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from cli import main as cli
from cli.cluster import APPROVING, Cluster
from cli.terminal import Context
from mlops import access, log_schema, replicas, rollout, snapshot
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.environment import ROOT, Environment
from mlops.errors import GateError
from mlops.releases import Release, ReleaseLog
from tests import synthetic
from tests.ids import new_id
from tests.rollout_log import Log, Rows
from tests.service import Service

VERBS = {
    "run", "init", "train", "tune", "score", "release", "rollback", "history", "status", "predict", "replay", "outcomes", "check",
    "snapshot", "images", "backup", "restore", "experiment", "rollout", "api-key", "signing-key",
    "audit", "forget", "doctor", "cost", "connect", "kubectl", "emptied", "rotate", "smoke", "bundle", "ci", "adopt", "upgrade", "runs", "compare",
    "drift", "quality", "retrain",
}  # fmt: skip
SUBCOMMANDS = {
    "rotate db",
    *(f"rollout {verb}" for verb in ("status", "pause", "resume", "promote", "abort")),
    *(f"{kind} {verb}" for kind in ("api-key", "signing-key") for verb in ("new", "list", "revoke")),
    "signing-key trust",
    "bundle export",
    "bundle import",
    "ci build",
    "ci infrastructure",
    "ci deploy",
    "ci previous",
    "ci rollback",
    "ci promote",
    "ci train",
    "ci export",
    "ci release",
    "ci rollback-model",
    "ci render",
    "ci preview",
    "ci gate",
    "ci comment",
    "ci watch",
    "ci drill",
    "ci audit",
    "ci update",
}
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


@pytest.fixture
def result(mlops: Run) -> Callable[..., dict[str, Any]]:
    """The command with --json, which must succeed: its result."""

    def run(*words: str) -> dict[str, Any]:
        code, out, err = mlops(*words, "--json")
        assert code == 0, out + err
        return json.loads(out)

    return run


Result = Callable[..., dict[str, Any]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the models, with the synthetic one."""
    folder = tmp_path / "models"
    synthetic.write_model(folder, synthetic.frame(days=20, rows_a_day=20))
    monkeypatch.setattr("mlops.environment.MODELS", folder)
    return folder


def approved(environment: Environment, bundle: Bundle) -> str:
    digest = synthetic.publish(environment, bundle)
    attest(environment.model(MODEL), "approved", digest, environment=environment.name)
    return digest


@pytest.fixture
def champion(environment: Environment, first_bundle: Bundle) -> str:
    """A digest that serves."""
    digest = approved(environment, first_bundle)
    environment.model(MODEL).releases.append(digest, "first")
    return digest


@pytest.fixture
def shadow(environment: Environment, champion: str, second_bundle: Bundle) -> Release:
    """A rollout that has just begun."""
    challenger = approved(environment, second_bundle)
    return rollout.begin(environment.model(MODEL), champion, challenger, "try it", mode="shadow")


def test_the_command_is_installed_and_shows_every_verb() -> None:
    command = [str(Path(sys.executable).parent / "mlops"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert shown.returncode == 0
    listed = {words[1] for line in shown.stdout.splitlines() if len(words := line.split()) > 2}
    assert listed >= VERBS


def test_no_verb_is_missing_here() -> None:
    names = {command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands}
    below = {
        (group.name, command.name or getattr(command.callback, "__name__", "").replace("_", "-"))
        for group in cli.app.registered_groups
        if group.typer_instance
        for command in group.typer_instance.registered_commands
    }
    assert names | {group for group, _ in below} == VERBS
    assert {f"{group} {verb}" for group, verb in below} == SUBCOMMANDS


@pytest.mark.parametrize("verb", sorted(VERBS | SUBCOMMANDS))
def test_every_verb_explains_itself(mlops: Run, verb: str) -> None:
    code, out, _ = mlops(*verb.split(), "--help")
    assert code == 0
    assert f"Usage: mlops {verb}" in out


WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "no such verb": ("frobnicate", ("frobnicate", "mlops --help")),
    "no such subcommand": ("rollout frobnicate", ("frobnicate", "mlops --help")),
    "no digest": ("release", ("release", "DIGEST")),
    "no such option": ("status --colour", ("--colour",)),
    "a seed that is no number": ("train --seed x", ("seed",)),
    "an unknown bundle": ("release abc123", ("digest", "abc123", "mlops status")),
    "an experiment with an unknown bundle": ("experiment abc123", ("digest", "abc123", "mlops status")),
    "an unknown mode": ("release abc --mode turbo", ("mode", "turbo", "canary")),
    "a weight without a canary": ("release abc --weight 0.5", ("weight", "0.5", "--mode canary")),
    "nothing to check": ("check abc123", ("digest", "abc123", "mlops status")),
    "nothing to roll back": ("rollback", ("rollback", MODEL, "nothing is released")),
    "nothing to score with": ("score rows.csv folder", ("digest", "nothing is released", "--digest")),
    "pausing without a reason": ("rollout pause", ("rollout pause", "missing", "why")),
    "resuming without a reason": ("rollout resume", ("rollout resume", "missing", "why")),
    "no rollout to show": ("rollout status", ("rollout", MODEL, "--mode shadow")),
    "no rollout to pause": ("rollout pause --why x", ("rollout", MODEL, "--mode shadow")),
    "no rollout to resume": ("rollout resume --why x", ("rollout", MODEL, "--mode shadow")),
    "no rollout to promote": ("rollout promote --why x", ("rollout", MODEL, "--mode shadow")),
    "no rollout to abort": ("rollout abort", ("rollout", MODEL, "--mode shadow")),
    "an invalid time": ("history --at yesterday", ("at", "yesterday", "2024-05-01T12:00:00Z")),
    "rows that are no JSON": ("predict {", ("rows", "{", "JSON")),
    "a service that is not there": ("predict {}", ("endpoint", "http://127.0.0.1:1", "make up")),
    "outcomes that are not there": ("outcomes nowhere.csv", ("file", "nowhere.csv", "no such file")),
    "a file that holds no outcomes": (
        f"outcomes {ROOT / 'pyproject.toml'}",
        ("file", "pyproject.toml", "id and value"),
    ),
    "a model that is not there": ("replay --window 0..1", ("model", MODEL, "mlops init")),
    "an invalid window": ("train --train 1..0", ("window", "1..0", "must precede")),
    "a table that is not there": ("init nowhere.csv --target y", ("data", "nowhere.csv", "no such file")),
    "a snapshot that is no Parquet": (f"snapshot {ROOT / 'pyproject.toml'}", ("snapshot", MODEL, "is not Parquet")),
    "accepting without a reason": ("train --accept too_good", ("why", "--why")),
    "an audit of no time": ("audit yesterday today", ("FROM", "yesterday", "2024-05-01T12:00:00Z")),
    "an audit to no time": ("audit 2024-05-01 tomorrow", ("TO", "tomorrow", "2024-05-01T12:00:00Z")),
    "forgetting without a reason": ("forget c1", ("forget", "missing", "why")),
    "forgetting two at once": ("forget c1 c2 --why x", ("entity", "c1 c2", "as the log has it")),
    "tuning without a trial": ("tune --trials 0", ("trials",)),
    "an unknown scope": ("api-key new x --scope admin", ("scope", "admin", "predict")),
    "an unknown role": ("signing-key new admin", ("admin", "build", "approve")),
    "an unknown scheme": ("signing-key new build --scheme rsa", ("scheme", "rsa", "ed25519")),
    "an unknown API key": ("api-key revoke nobody", ("key", "nobody", "mlops api-key list")),
    "an unknown signing key": ("signing-key revoke nobody", ("key", "nobody", "mlops signing-key list")),
    "images without a cluster": ("images", ("env", "local", "mlops --env kind images")),
    "a backup without a cluster": ("backup folder", ("env", "local", "mlops --env kind backup")),
    "a restore without a cluster": ("restore folder", ("env", "local", "mlops --env kind restore")),
}


@pytest.mark.parametrize(("line", "said"), WRONG.values(), ids=WRONG)
def test_an_error_names_key_value_and_hint(mlops: Run, line: str, said: tuple[str, ...]) -> None:
    code, out, err = mlops(*line.split())
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    code, out, err = mlops(*line.split(), "--json")
    assert code == 2
    assert "Traceback" not in err
    error = json.loads(out)["error"]
    assert set(error) == {"key", "value", "hint"}
    shown = f"{error['key']} {error['value']} {error['hint']}"
    for word in said:
        assert word.lower() in shown.lower()


@pytest.mark.parametrize("line", ["--json history", "history --json"])
def test_json_may_stand_anywhere(mlops: Run, environment: Environment, line: str) -> None:
    done = environment.model(MODEL).releases.append("a" * 64, "why")
    code, out, err = mlops(*line.split())
    assert (code, err) == (0, "")
    assert json.loads(out) == {"releases": [done.model_dump(mode="json")]}


def test_text_of_other_people_is_shown_as_they_wrote_it(mlops: Run, environment: Environment) -> None:
    environment.model(MODEL).releases.append("a" * 64, "[/red] [bold]now[/bold]", by="[link]")
    access.new(environment.store, "[/x]", ["predict"], 1)
    for line, said in {
        "history": "[/red] [bold]now[/bold]",
        "status": "[/red] [bold]now[/bold]",
        "api-key list": "[/x]",
    }.items():
        code, out, err = mlops(*line.split())
        assert (code, "Traceback" in err) == (0, False)
        assert said in out


def test_a_cohort_is_shown_as_it_was_written(
    mlops: Run, environment: Environment, champion: str, second_bundle: Bundle
) -> None:
    model, challenger = environment.model(MODEL), approved(environment, second_bundle)
    rollout.begin(model, champion, challenger, "try it", cohort={"color": "[/red]"}, mode="canary", weight=1.0)
    for line in ("history", "status", "rollout status"):
        code, out, err = mlops(*line.split())
        assert (code, "Traceback" in err) == (0, False)
        assert "color=[/red]" in out


def test_history_says_what_was_intended_and_observed_at_a_time(result: Result, environment: Environment) -> None:
    done = environment.model(MODEL).releases.append("a" * 64, "why")
    answer(environment, done)
    before, after, at = (
        result("history", "--at", at) for at in ("2020-01-01T00:00:00Z", "2199-01-01T00:00:00Z", done.at.isoformat())
    )
    assert (before["intended"], before["observed"]) == (None, [])
    assert (after["intended"]["revision"], after["observed"]) == (done.revision, [])
    assert at["observed"] == [{"digest": done.champion, "revision": done.revision, "rows": 1}]


def answer(environment: Environment, release: Release) -> None:
    """Write a segment of the prediction log, as the app does under that release."""
    at = time.time()
    record = log_schema.PredictionRecord(new_id(), at, release.revision, release.champion, 0.5, 1.0, {})
    key = log_schema.segment_key("predictions", MODEL, at, release.revision, "replica")
    environment.store.put(key, log_schema.line(record))


def test_status_answers_without_service_and_tracking(result: Result) -> None:
    status = result("status")
    assert (status["release"], status["bundles"]) == (None, [])
    assert status["service"]["state"] == status["tracking"]["state"] == "does not answer"


def test_release_check_and_what_the_gate_refused(
    mlops: Run, result: Result, environment: Environment, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    digest = synthetic.publish(environment, first_bundle)
    code, out, _ = mlops("check", digest[:8])
    assert (code, "is not approved" in out, "[red]" in out) == (2, True, False)
    done = result("release", digest[:8], "--why", "first")
    assert (done["champion"], done["why"], done["mode"]) == (digest, "first", "full")
    assert result("check", digest[:8])["valid"]
    code, out, _ = mlops("release", synthetic.publish(environment, second_bundle, "refused"), "--json")
    assert (code, "loss: planted" in json.loads(out)["error"]["hint"]) == (2, True)


@pytest.mark.parametrize(("options", "mode", "weight", "cohort"), [
    ("--mode shadow", "shadow", None, None),
    ("--mode canary --weight 0.2", "canary", 0.2, None),
    ("--cohort color=red --cohort region=north", "canary", 1.0, {"color": "red", "region": "north"}),
])  # fmt: skip
def test_a_model_is_released_beside_the_champion(
    result: Result, environment: Environment, champion: str, second_bundle: Bundle,
    options: str, mode: str, weight: float | None, cohort: dict[str, str] | None,
) -> None:  # fmt: skip
    challenger = synthetic.publish(environment, second_bundle)
    done = result("release", challenger, *options.split())
    assert (done["champion"], done["challenger"], done["mode"]) == (champion, challenger, mode)
    assert (done["weight"], done["cohort"]) == (weight, cohort)


def test_rollback_releases_what_answered_before(
    result: Result, environment: Environment, champion: str, second_bundle: Bundle
) -> None:
    releases = environment.model(MODEL).releases
    [first] = releases.read()
    answer(environment, first)
    releases.append(approved(environment, second_bundle), "second")
    done = result("rollback", "--why", "bad")
    assert (done["revision"], done["champion"], done["why"]) == (3, champion, "bad (back to revision 1)")


def test_a_rollout_is_shown_paused_resumed_and_promoted(
    mlops: Run, result: Result, environment: Environment, shadow: Release
) -> None:
    status = result("rollout", "status")
    assert status["release"] == shadow.model_dump(mode="json")
    assert status["verdict"]["decision"] == "inconclusive"
    assert {check["outcome"] for check in status["verdict"]["checks"]} <= {"pass", "fail", "inconclusive"}

    paused = result("rollout", "pause", "--why", "a holiday")
    assert (paused["paused"], paused["why"], paused["mode"]) == (True, "a holiday", "shadow")
    code, out, _ = mlops("rollout", "status")
    assert (code, "paused: inconclusive" in out) == (0, True)
    resumed = result("rollout", "resume", "--why", "it is over")
    assert (resumed["paused"], resumed["why"], resumed["mode"]) == (False, "it is over", "shadow")

    code, out, _ = mlops("rollout", "promote", "--json")
    error = json.loads(out)["error"]
    assert (code, error["key"]) == (2, "why")
    assert "the judge does not say advance" in error["hint"]
    assert len(environment.model(MODEL).releases.read()) == resumed["revision"]

    for weight in (0.01, 0.05):  # the first of the contract's
        canary = result("rollout", "promote", "--why", "it is cheaper")
        assert (canary["mode"], canary["weight"], canary["why"]) == ("canary", weight, "it is cheaper")
        assert (canary["rollout"], canary["challenger"]) == (shadow.rollout, shadow.challenger)
    verdicts = rollout.read_verdicts(environment.model(MODEL), shadow.rollout)
    assert [each["revision"] for each in verdicts] == [resumed["revision"], canary["revision"] - 1]

    done = result("rollout", "promote", "--full", "--why", "all of it")
    assert (done["mode"], done["champion"], done["challenger"]) == ("full", shadow.challenger, None)
    page = Path(done["page"]).read_text()
    assert str(shadow.rollout) in page
    assert "it is cheaper" in page
    assert mlops("rollout", "status")[0] == 2


def test_a_rollout_is_watched_until_it_ends(
    mlops: Run, environment: Environment, shadow: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = environment.model(MODEL)
    meanwhile = [
        lambda: None,
        lambda: Log(environment.store).write(shadow, Rows()),
        lambda: rollout.set_paused(model, True, "wait"),
        lambda: rollout.abort(model, rollout.current(model), "not today"),
    ]

    def watched(*words: str) -> str:
        steps = iter(meanwhile)
        monkeypatch.setattr("monitoring.analysis.time.sleep", lambda _: next(steps)())
        code, out, _ = mlops("rollout", "status", "--watch", *words)
        assert code == 0
        return out

    told = [json.loads(line) for line in watched("--json").splitlines()]
    assert [each.get("verdict", {}).get("rows") for each in told] == [0, 300, 300, None]
    assert [each["release"]["revision"] for each in told] == [2, 2, 3, 4]
    assert told[-1]["release"]["why"] == "not today"
    rollout.begin(model, shadow.champion, shadow.challenger or "", "again", mode="shadow")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("cli.rollout.out", Console(force_terminal=True))
    shown = watched()
    assert shown.count("faults since the start") >= 4  # drawn anew at each look
    assert "revision 7:" in shown

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    rollout.begin(model, shadow.champion, shadow.challenger or "", "once more", mode="shadow")
    monkeypatch.setattr("monitoring.analysis.time.sleep", interrupted)
    code, out, _ = mlops("rollout", "status", "--watch")
    assert (code, "faults since the start" in out, "revision" in out) == (0, True, False)


def test_a_promotion_names_a_champion_that_is_no_longer_valid(
    mlops: Run, environment: Environment, shadow: Release
) -> None:
    folder = f"models/{MODEL}/attestations/{shadow.champion}"
    [approval] = [key for key in environment.store.keys(folder) if "/approved-" in key]
    environment.store.put(approval, b"{}")
    code, out, _ = mlops("rollout", "promote", "--why", "x", "--json")
    assert (code, json.loads(out)["error"]["key"]) == (2, "champion")


def test_a_rollout_is_aborted_with_its_result_as_a_page(
    result: Result, environment: Environment, shadow: Release
) -> None:
    done = result("rollout", "abort")
    assert (done["mode"], done["champion"], done["challenger"]) == ("full", shadow.champion, None)
    assert done["why"] == f"rollout {shadow.rollout}: inconclusive"
    assert str(shadow.rollout) in Path(done["page"]).read_text()
    [verdict] = rollout.read_verdicts(environment.model(MODEL), shadow.rollout)
    assert (verdict["revision"], verdict["decision"]) == (shadow.revision, "inconclusive")


def test_an_experiment_is_an_a_b_test(
    result: Result, environment: Environment, champion: str, second_bundle: Bundle
) -> None:
    challenger = synthetic.publish(environment, second_bundle)
    done = result("experiment", challenger[:10], "--effect", "0.05", "--weight", "0.4")
    assert (done["mode"], done["champion"], done["challenger"], done["weight"]) == ("ab", champion, challenger, 0.4)
    assert (done["why"], done["days_needed"], done["daily_std"]) == ("A/B for an effect of 0.05", None, None)
    assert result("rollout", "status")["release"]["rollout"] == done["rollout"]


def test_a_running_service_is_called_and_observed(
    result: Result,
    environment: Environment,
    champion: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Service(environment, MODEL) as service:
        service.serves(1)
        monkeypatch.setenv("MLOPS_ENDPOINT", service.url)
        monkeypatch.setenv("MLOPS_API_KEY", service.key)
        assert result("status")["service"] == {"url": service.url, "state": "ready"}
        answered = result("predict", json.dumps([synthetic.request(), synthetic.request(size=1)]))
        assert (answered["model_version"], answered["revision"]) == (champion, 1)
        ids = [prediction["id"] for prediction in answered["predictions"]]
        (tmp_path / "outcomes.csv").write_text("\n".join(["id,value", *(f"{each},1" for each in ids)]))
        assert result("outcomes", str(tmp_path / "outcomes.csv"))["accepted"] == 2
        replayed = result("replay", "--window", "0..1", "--limit", "3")
        assert (replayed["failed"], replayed["outcomes"], replayed["model_versions"]) == (0, 3, {champion: 3})
    counts = result("outcomes")  # what a service has taken is in the bucket when it has ended
    assert (counts["predictions"], counts["matched"], counts["waiting"]) == (5, 5, 0)


def test_a_model_is_scaffolded_and_tuned(result: Result, models: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    synthetic.frame(days=20, rows_a_day=20).select("size", "color", "y").write_csv(table)
    made = result("init", str(table), "--target", "y", "--name", "mine")
    assert made["files"] == [str(models / "mine" / name) for name in ("contract.yaml", "data.py", "parameters.yaml")]
    tuned = result("tune", "--trials", "1")
    assert (tuned["trials"], tuned["file"]) == (1, str(models / MODEL / "parameters.yaml"))
    assert Path(tuned["file"]).exists()


def test_a_file_is_scored_by_the_champion(result: Result, champion: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    pl.DataFrame([synthetic.request(), synthetic.request(region="nowhere")]).write_parquet(rows)
    found = result("score", str(rows), str(tmp_path / "scores"))
    assert (found["digest"], found["scored"], found["refused"]) == (champion, 1, 1)


@pytest.mark.parametrize("given", [True, False])
def test_a_snapshot_of_the_data_is_put_into_the_bucket(
    result: Result, environment: Environment, models: Path, given: bool
) -> None:
    rows = models / MODEL / "rows.parquet"
    found = result("snapshot", *[str(rows)] * given)
    content = snapshot.get(environment.store, MODEL) or b""
    assert (found["key"], found["bytes"]) == (f"data/{MODEL}.parquet", len(content))
    assert pl.read_parquet(content).equals(pl.read_parquet(rows))


def test_api_keys_are_made_shown_once_listed_and_revoked(mlops: Run, result: Result, environment: Environment) -> None:
    made = result("api-key", "new", "client", "--scope", "predict", "--per-second", "5", "--expires-days", "1")
    [kept] = access.read(environment.store)
    assert kept.sha256 == access.sha256(made["key"])
    assert (kept.name, kept.scopes, kept.per_second) == ("client", ["predict"], 5)
    assert kept.expires is not None
    assert (kept.expires - kept.created).total_seconds() == pytest.approx(86_400, abs=60)
    code, out, _ = mlops("api-key", "list", "--json")
    assert (code, made["key"] in out, "sha256" in out) == (0, False, False)
    assert [key["id"] for key in json.loads(out)["keys"]] == [made["id"]]
    assert result("api-key", "revoke", made["id"]) == {"id": made["id"], "state": "revoked"}
    assert access.read(environment.store)[0].revoked
    assert result("api-key", "new", "other")["scopes"] == ["predict", "outcomes"]


def test_signing_keys_are_made_listed_and_revoked(result: Result, environment: Environment) -> None:
    approve = result("signing-key", "new", "approve", "--scheme", "ecdsa-sha2-nistp256")
    assert (approve["scheme"], approve["environment"]) == ("ecdsa-sha2-nistp256", "local")
    build = result("signing-key", "new", "build")
    assert (build["scheme"], build["environment"]) == ("ed25519", None)
    listed = result("signing-key", "list")["keys"]
    assert listed == [key.model_dump(mode="json") for key in environment.keys.all()]
    assert [key["id"] for key in listed[-2:]] == [approve["id"], build["id"]]
    result("signing-key", "revoke", approve["id"], "--verify-only")
    result("signing-key", "revoke", build["id"])
    states = {key.id: key.state for key in environment.keys.all()}
    assert (states[approve["id"]], states[build["id"]]) == ("verify-only", "revoked")


@pytest.mark.parametrize(("line", "goes"), [
    ("release abc --why x", "run"), ("rollout status", "run"), ("api-key list", "run"), ("train --seed 1", "train"),
    ("retrain --action recalibrate --why gap", "train"), ("drift", "run"), ("quality --days 7", "run"),
    ("predict {", "reach"), ("signing-key list", "run"), ("signing-key new build", "keyring"), ("images --only x", ""), ("snapshot nowhere.parquet", ""),
])  # fmt: skip
def test_a_verb_reaches_the_cluster_of_its_environment(
    mlops: Run, monkeypatch: pytest.MonkeyPatch, line: str, goes: str
) -> None:
    calls: list[tuple[str, list[str]]] = []

    @contextmanager
    def keyring(_: Cluster) -> Generator[None]:
        calls.append(("keyring", []))
        yield

    monkeypatch.delenv("MLOPS_BUCKET")
    monkeypatch.setattr(Cluster, "run", lambda _, __, words: calls.append(("run", list(words))) or 7)
    monkeypatch.setattr(Cluster, "train", lambda _, words: calls.append(("train", list(words))) or 7)
    monkeypatch.setattr(Cluster, "reach", lambda _: calls.append(("reach", [])))
    monkeypatch.setattr(Cluster, "keyring", keyring)
    code, _, _ = mlops("--env", "kind", *line.split())
    assert [name for name, _ in calls] == [goes] * bool(goes)
    if goes in ("run", "train"):  # its output and exit code are those of the command in the cluster
        assert (code, calls[0][1][-len(line.split()) :]) == (7, line.split())


def test_what_signs_or_hands_out_keys_runs_where_the_key_is_and_nothing_else(
    mlops: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.delenv("MLOPS_BUCKET")
    monkeypatch.setattr(Cluster, "run", lambda _, command, __: ran.append(command) or 0)
    groups = {each.partition(" ")[0] for each in SUBCOMMANDS}
    elsewhere = {*cli._FROM_HERE, *cli._LOCAL, "predict", "replay", "train", "retrain"}
    commands = {each for each in VERBS - groups | SUBCOMMANDS if each.partition(" ")[0] not in elsewhere}
    commands -= {"signing-key new", "signing-key revoke", "signing-key trust"}  # they change the keyring from here
    for command in commands:
        mlops("--model", "rollout", "--env", "kind", *command.split(), "--why", "status", "list", "import")
    assert sorted(ran) == sorted(commands)
    # What changes an environment says so first, by its name.
    source = "".join(file.read_text() for file in (ROOT / "cli").glob("*.py"))
    said = {*re.findall(r'announce\("([\w -]+)"', source), *re.findall(r'"(rollout \w+)"', source)}
    said |= {f"rollout {verb}" for verb in re.findall(r'_judged\("(\w+)"\)', source)}
    assert (said & commands) - set(APPROVING) == {
        "forget",
        "experiment",
    }  # of the log: what its rows are, how long it takes
    assert set(APPROVING) <= said & commands


@pytest.mark.parametrize("verb", ["run", "init x.csv --target y", "tune", "score x y"])
def test_a_verb_of_this_machine_refuses_a_cluster(mlops: Run, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.delenv("MLOPS_BUCKET")
    code, out, _ = mlops("--env", "kind", *verb.split(), "--json")
    assert (code, json.loads(out)["error"]["key"], "leave --env out" in out) == (2, "env", True)


BROKEN = {
    "a keyring that is none": ("signing-key list", {"MLOPS_KEYRING": str(ROOT / "pyproject.toml")}),
    "a bucket of another kind": ("api-key list", {"MLOPS_BUCKET": "ftp://x"}),
    "a bucket that does not answer": ("api-key list", {"MLOPS_BUCKET": "s3://x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "x"}),
}  # fmt: skip


@pytest.mark.parametrize(("line", "changes"), BROKEN.values(), ids=BROKEN)
def test_an_environment_that_is_broken_is_named(
    mlops: Run, monkeypatch: pytest.MonkeyPatch, line: str, changes: dict[str, str]
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    code, out, err = mlops(*line.split(), "--json")
    assert (code, "Traceback" in err) == (2, False)
    assert json.loads(out)["error"]["key"] == ("keyring" if "signing" in line else "bucket")


def test_an_environment_that_does_not_exist_is_named(mlops: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_BUCKET")
    code, out, _ = mlops("--env", "nowhere", "status", "--json")
    assert (code, json.loads(out)["error"]["value"]) == (2, "nowhere")


def test_an_unexpected_error_shows_no_traceback_either(mlops: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("[/red]")

    monkeypatch.setattr(ReleaseLog, "read", break_down)
    code, out, err = mlops("history", "--json")
    assert (code, json.loads(out)["error"]["value"], "Traceback" in err) == (2, "ZeroDivisionError", False)
    monkeypatch.setenv("MLOPS_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_refusal_by_the_gate_has_its_own_exit_code(mlops: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise GateError("gate", "abc", "refused: loss")

    monkeypatch.setattr(ReleaseLog, "read", refuse)
    assert mlops("history")[0] == 3


def test_a_release_is_served_when_the_command_ends(
    result: Result,
    mlops: Run,
    environment: Environment,
    champion: str,
    second_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = synthetic.publish(environment, second_bundle)
    with Service(environment, MODEL, poll_seconds=1) as service:
        service.serves(1)
        monkeypatch.setenv("MLOPS_ENDPOINT", f"{service.url}/")
        monkeypatch.setenv("MLOPS_API_KEY", service.key)
        result("release", second, "--why", "second")
        assert service.predict(synthetic.request())["model_version"] == second
        code, _, said = mlops("--model", "other", "predict", json.dumps(synthetic.request()))
        assert (code, "serves: that is synthetic" in said) == (2, True)
        assert result("predict", json.dumps(synthetic.request()))["model_version"] == second
        assert result("status")["service"]["state"] == "ready"
        service.predict(*(synthetic.request(customer=f"c{number % 3}") for number in range(30)))
        service.until(lambda: environment.store.keys(f"predictions/{MODEL}") != [])
        code, _, said = mlops("release", champion, "--mode", "canary", "--weight", "0.01", "--why", "back in part")
        assert code == 0
        assert "1% of the last day's 3 entities is a matter of chance: it may be 0%, 33%, 67%" in said


def test_a_replica_that_does_not_follow_is_named(
    mlops: Run, environment: Environment, champion: str, second_bundle: Bundle
) -> None:
    replicas.report(environment.model(MODEL), "slow", serving=1, ready=True, loaded=[champion])
    _, said, _ = mlops("release", synthetic.publish(environment, second_bundle), "--why", "second", "--wait", "0.5")
    assert "not served yet by slow" in said


def test_what_is_printed_can_be_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = Context(env=None, name="wine")
    monkeypatch.setattr("mlops.environment.MODELS", tmp_path)
    for name in ("wine", "beer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "contract.yaml").touch()
    monkeypatch.setattr(sys, "argv", [str(Path(os.getcwd(), ".venv", "bin", "mlops")), "train"])
    text = state.pasteable("next: mlops release abc; start it: make up")
    assert text == "next: .venv/bin/mlops --model wine release abc; start it: MLOPS_MODEL=wine make up"
    monkeypatch.setenv("MLOPS_COMMAND", "mlops --env kind")
    assert (
        state.pasteable("mlops-platform, see mlops status")
        == "mlops-platform, see mlops --env kind --model wine status"
    )


def test_times_are_shown_as_they_can_be_asked_for(mlops: Run, champion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        [at] = re.findall(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", mlops("history")[1])
        time.sleep(1)
        later = (datetime.fromisoformat(at) + timedelta(seconds=1)).replace(tzinfo=None).isoformat()
        assert champion[:12] in mlops("history", "--at", later)[1]
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
