"""The `mlops` command: thin, and quick to start, since each verb imports what it needs."""

import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from obstore.exceptions import BaseError, PermissionDeniedError
from rich.markup import escape
from rich.table import Table
from typer.exceptions import TyperException

from cli import IGNORED, bundle, governance, keys, operations, rollout, rotate, runs, watching
from cli.cluster import Cluster
from cli.delivery import verbs
from cli.terminal import Why, err, read_moment, state
from mlops.errors import GateError, UserError, VerificationError
from mlops.moments import shown
from mlops.releases import Mode, describe, serving

_HELP = "The life of a model: train, release, watch, roll back."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=_HELP)
app.add_typer(rollout.app, name="rollout")
app.add_typer(rotate.app, name="rotate")
app.add_typer(bundle.app, name="bundle")
app.add_typer(verbs.app, name="ci")
app.command()(verbs.adopt)
app.command()(verbs.upgrade)
app.add_typer(keys.api_keys, name="api-key")
app.add_typer(keys.signing_keys, name="signing-key")
app.command()(rollout.experiment)
app.command()(governance.audit)
app.command()(governance.forget)
app.command()(runs.runs)
app.command()(runs.compare)
app.command()(watching.drift)
app.command()(watching.quality)
app.command()(watching.retrain)
for verb in operations.VERBS:
    app.command(**operations.OPTIONS.get(verb.__name__, {}))(verb)
_LOCAL = ("run", "init", "tune", "score")
_FROM_HERE = (
    "snapshot",
    "rotate",
    "ci",
    "adopt",
    "upgrade",
    *(verb.__name__ for verb in operations.VERBS),
)  # they reach the cluster by themselves


@app.callback()
def common(
    context: typer.Context,
    env: Annotated[str | None, typer.Option(help="An environment of environments/; local if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder of training/models/; the only one if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output; may stand anywhere.")] = False,
) -> None:
    state.env, state.name, state.as_json = env, model, as_json
    state.cluster = cluster = Cluster.of(env)
    if "MLFLOW_TRACKING_URI" in IGNORED:
        err.print("MLFLOW_TRACKING_URI is ignored: MLOPS_TRACKING names this environment's MLflow")
    verb = context.invoked_subcommand or ""
    if cluster is None or verb in _FROM_HERE or "--help" in sys.argv:
        return
    words = sys.argv[1:]  # in a pod --env names the environment that it is in
    if verb in _LOCAL:
        raise UserError("env", cluster.name, f"is a cluster; {verb} runs on this machine: leave --env out")
    if verb in ("predict", "replay"):
        cluster.reach()
    elif verb in ("train", "retrain"):
        raise typer.Exit(cluster.train(words))
    elif verb == "signing-key" and "list" not in words:
        context.with_resource(cluster.keyring())
    else:
        raise typer.Exit(cluster.run(_command(context, words), words))


def _command(context: typer.Context, words: list[str]) -> str:
    """`release`, `rollout pause`: a verb, with what it does if it has several."""
    verb = context.invoked_subcommand or ""
    group = getattr(getattr(context.command, "commands", {}).get(verb), "commands", {})
    return " ".join([verb, *[word for word in words[words.index(verb) + 1 :] if word in group][:1]])


@app.command()
def run(no_train: Annotated[bool, typer.Option("--no-train", help="Do not train a first model.")] = False) -> None:
    """Run the platform on this machine until Ctrl-C."""
    from environments.local.serve import serve

    serve(state.environment, state.model_name, train=not no_train)


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="CSV or Parquet.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    name: Annotated[str | None, typer.Option(help="The model's name; the file's if not given.")] = None,
    time: Annotated[str | None, typer.Option(help="The column with the time of the event, if there is one.")] = None,
    positive: Annotated[str | None, typer.Option(help="The target's value that is 1; the others are 0.")] = None,
    strong: Annotated[str, typer.Option(help="Why columns that predict very well alone may be used.")] = "",
    drop: Annotated[list[str] | None, typer.Option(help="A column that is no feature; may be repeated.")] = None,
) -> None:
    """Scaffold a new model from a table: contract.yaml, data.py and parameters.yaml."""
    from training.scaffold import Scaffold

    scaffold = Scaffold(target, name, time, positive, strong, drop or [])
    files = [str(file) for file in scaffold.write(data)]
    state.name = Path(files[0]).parent.name
    lines = [
        *scaffold.notes,
        "wrote",
        *(f"  {file}" for file in files),
        state.pasteable("read the contract, then: make up"),
    ]
    state.result({"files": files, "notes": scaffold.notes}, "\n".join(lines))


@app.command()
def train(
    window: Annotated[str | None, typer.Option("--train", help="START..END, dates or fractions.")] = None,
    holdout: Annotated[str | None, typer.Option(help="START..END, rows that neither model has seen.")] = None,
    seed: int = 0,
    accept: Annotated[list[str] | None, typer.Option(help="A failed check (too_good) to ignore.")] = None,
    why: Why = "",
) -> None:
    """Train, evaluate, gate, sign and register. Exit code 3: refused by the gate."""
    if accept and not why:
        raise UserError("why", "", "say why you accept it: --why '…'")
    from mlops.contract import Window
    from training import pipeline
    from training.definition import load_definition

    windows = [Window.parse(text) if text else None for text in (window, holdout)]
    definition, accepted = load_definition(state.model_name), dict.fromkeys(accept or [], why)
    with err.status("train") as status:
        trained = pipeline.train(state.environment, definition, *windows, seed, accepted, status.update)
    digest, verdict = trained.digest[:12], trained.verdict
    value = {
        "digest": trained.digest, "gate": verdict.decision, "reasons": verdict.reasons,
        "metrics": trained.metrics, "version": trained.version, "report": trained.report,
    }  # fmt: skip
    text = f"{digest}  loss {trained.metrics['loss']:.4f}  report {trained.report}\n{verdict.decision} by the gate"
    if verdict.decision == "refused":
        state.result(value, text)
        raise GateError("gate", digest, "refused: " + "\n  ".join(["", *verdict.reasons]))
    state.result(value, state.pasteable(f"{text}; next: mlops release {digest} --why '…'"))


@app.command()
def tune(trials: Annotated[int, typer.Option(min=1)] = 30, seed: int = 0) -> None:
    """Search parameters on forward time blocks (resumable) and write parameters.yaml."""
    from training import tuning
    from training.definition import load_definition

    with err.status("tune") as status:
        found = tuning.tune(state.environment, load_definition(state.model_name), trials, seed, status.update)
    state.result(found, f"loss {found['loss']:.4f} after {found['trials']} trials; wrote {found['file']}")


@app.command()
def score(
    source: Annotated[Path, typer.Argument(help="CSV or Parquet with the request's columns.")],
    folder: Annotated[Path, typer.Argument(help="Output folder: part-*.parquet and refused-*.jsonl.")],
    digest: Annotated[str | None, typer.Option(help="An approved bundle; the champion if not given.")] = None,
) -> None:
    """Score a file of any size; started again, it continues where it stopped."""
    from training.scoring import score_file

    with err.status("score") as status:
        found = score_file(state.environment, state.model_name, source, folder, digest, status.update)
    if found["refused"] and not found["scored"]:
        raise UserError("source", str(source), f"all {found['refused']} rows are refused, the first: {found['reason']}")
    counts = f"{found['scored']} rows scored, {found['refused']} refused"
    state.result(found, f"{counts}, by {found['digest'][:12]} into {folder}")


@app.command()
def release(
    digest: Annotated[str, typer.Argument(help="The bundle's digest, or its beginning.")],
    why: Why = "released by hand",
    mode: Annotated[Mode, typer.Option(help="full, or beside the champion.")] = "full",
    weight: Annotated[float | None, typer.Option(help="A canary's share of the entities.", min=0, max=1)] = None,
    cohort: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: only these get the challenger.")] = None,
    breaking: Annotated[bool, typer.Option("--breaking", help="Allow a narrower request schema.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait until all replicas serve it.", min=0)] = 60,
) -> None:
    """Verify digest, signatures and gate, approve for this environment, and release."""
    from mlops import promotion, replicas

    state.announce("release")
    columns = dict(part.partition("=")[::2] for part in cohort or []) or None
    mode = "canary" if columns and mode == "full" else mode
    done = promotion.release(state.model, digest, why, mode, breaking, weight, columns)
    if done.weight and done.weight < 1:
        from monitoring.analysis import few_entities

        with suppress(PermissionDeniedError, VerificationError):  # in a cluster who signs cannot read the log
            if warning := few_entities(state.model, done.weight):
                err.print(f"[yellow]warning[/] {warning}", soft_wrap=True)
    late = replicas.wait_for(state.model, done.revision, wait) if wait else []
    text = f"revision {done.revision}: {describe(done)}"
    if done.revision == 1 and (state.environment.home / "running.json").exists():
        from environments.local.serve import curl

        text = f"{text}\n{curl(state.environment, state.model_name)}"
    state.result(done.model_dump(mode="json"), f"{text}; not served yet by {', '.join(late)}" if late else text)


@app.command()
def rollback(why: Why = "rolled back by hand") -> None:
    """Release what was observed serving before the current release; a rollout in progress is aborted."""
    from mlops import promotion

    state.announce("rollback")
    done = promotion.rollback(state.model, why)
    state.result(done.model_dump(mode="json"), f"revision {done.revision}: back to {done.champion[:12]}")


@app.command()
def history(
    at: Annotated[str | None, typer.Option(help="ISO 8601, UTC without a zone: intended and observed then.")] = None,
) -> None:
    """All releases; with --at, the intended and the observed model at that time."""
    log = state.model.releases.read()
    if at:
        from monitoring.history import observed

        asked = read_moment("at", at)
        wanted, seen = serving(log, asked), observed(state.model, asked)
        found: list[dict[str, Any]] = [{"digest": d, "revision": r, "rows": n} for (d, r), n in seen.items()]
        value = {"at": asked, "intended": wanted.model_dump(mode="json") if wanted else None, "observed": found}
        intended = f"revision {wanted.revision}, {wanted.champion[:12]}" if wanted else "nothing"
        answered = ", ".join(f"{digest[:12]} (revision {revision}, {n} rows)" for (digest, revision), n in seen.items())
        state.result(value, f"intended: {intended}\nobserved: {answered or 'no answers in the log within a minute'}")
        return
    table = Table("revision", "at", "release", "by", "why")
    for each in log:
        texts = map(escape, (describe(each), each.by, each.why))
        table.add_row(str(each.revision), shown(each.at), *texts)
    state.result({"releases": [each.model_dump(mode="json") for each in log]}, table)


@app.command()
def status() -> None:
    """The current release, and the health of each component."""
    import httpx

    from mlops.bundle import digests
    from mlops.client import http
    from mlops.tracking import reachable

    environment, model = state.environment, state.model
    current, bundles = model.releases.current(), [digest[:12] for digest in digests(model)]
    try:
        service = http(environment.endpoint, timeout=3).get("/readyz").json()["reason"] or "ready"
    except (httpx.HTTPError, ValueError, KeyError):
        service = "does not answer"
    tracking = "ready" if reachable(environment.tracking) else "does not answer"
    value = {
        "environment": environment.name, "model": model.name, "bucket": environment.bucket, "bundles": bundles,
        "release": current.model_dump(mode="json") if current else None,
        "service": {"url": environment.endpoint, "state": service},
        "tracking": {"url": environment.tracking, "state": tracking},
    }  # fmt: skip
    release = f"revision {current.revision}, {describe(current)}, {current.why}" if current else "none yet"
    lines = [f"model     {model.name} in {environment.name}", f"release   {release}"]
    lines += [f"service   {environment.endpoint}: {service}", f"MLflow    {environment.tracking}: {tracking}"]
    lines += [f"bucket    {environment.bucket}: {len(bundles)} bundles {' '.join(bundles)}"]
    state.result(value, "\n".join(lines))


@app.command()
def predict(rows: Annotated[str, typer.Argument(help="JSON: a row or a list of them; - reads stdin.")]) -> None:
    """Call the running service."""
    from mlops.client import Client

    text = sys.stdin.read() if rows == "-" else rows
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise UserError("rows", text[:80], f"is not JSON ({error})") from None
    client = Client(state.environment)
    if (serves := client.model()) != state.model_name:
        raise UserError("model", state.model_name, f"is not what {state.environment.endpoint} serves: that is {serves}")
    answer = client.predict(parsed if isinstance(parsed, list) else [parsed])
    lines = [f"{p['prediction']:g}  score {p['score']:.4f}  id {p['id']}" for p in answer["predictions"]]
    lines.append(f"by {answer['model_version'][:12]}, revision {answer['revision']}")
    state.result(answer, "\n".join(lines))


@app.command()
def smoke() -> None:
    """Ask the service for the golden rows of what it serves: each score must be the one that training saw."""
    from mlops.smoke import ask

    found = ask(state.environment, state.model)
    state.result(
        found, f"{found['rows']} golden rows are answered as expected" if found["rows"] else "no model is released yet"
    )


@app.command()
def replay(
    window: Annotated[str, typer.Option(help="START..END, dates or fractions.")],
    speed: Annotated[float, typer.Option(help="Seconds of data in one second; 0: as fast as possible.", min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows, evenly spread.", min=1)] = None,
    every: Annotated[float, typer.Option(help="Rows of so many seconds of data share a request.", min=0)] = 0,
) -> None:
    """Send historical rows as live requests in time order, and their outcomes later."""
    from mlops.contract import Window
    from training.definition import load_definition
    from training.replay import replay_window

    definition, part = load_definition(state.model_name), Window.parse(window)
    with err.status("replay") as status:
        found = replay_window(state.environment, definition, part, speed, limit, every, status.update)
    state.result(found, f"{found['requests']} requests, {found['failed']} failed, {found['outcomes']} outcomes sent")
    if found["failed"]:
        raise UserError("replay", found["failed"], f"requests failed, the first with: {found['error']}")


@app.command()
def outcomes(file: Annotated[Path | None, typer.Argument(help="CSV with the columns id and value.")] = None) -> None:
    """Report outcomes; without a file: show how many predictions have a matching outcome."""
    if file:
        from mlops.client import Client, read_outcomes

        found = Client(state.environment).outcomes(read_outcomes(file))
    else:
        from monitoring.outcomes import join_outcomes

        found = join_outcomes(state.model).counts
    state.result(found, "\n".join(f"{name:<14}{value}" for name, value in found.items()))


@app.command()
def check(digest: Annotated[str, typer.Argument(help="The bundle's digest, or its beginning.")]) -> None:
    """Verify a bundle as the app does: hashes, signatures, gate, approval, and the model in the sandbox."""
    from mlops import promotion

    found = promotion.check(state.model, digest)
    table = Table("check", "", "why")
    for name, why in found["checks"].items():
        table.add_row(name, "[red]failed[/]" if why else "[green]passed[/]", escape(why))
    state.result(found, table)
    if not found["valid"]:
        raise typer.Exit(2)


@app.command()
def snapshot(file: Annotated[Path | None, typer.Argument(help="Parquet; load() if not given.")] = None) -> None:
    """Put the data into the bucket, for trainings that cannot reach its source (training.data: snapshot)."""
    from training.definition import load_definition
    from training.source import put_snapshot, to_parquet

    name = state.model_name
    content = file.read_bytes() if file else to_parquet(load_definition(name).load())
    if state.cluster:
        words = [*["--json"] * state.as_json, "--model", name, "snapshot", "/dev/stdin"]
        raise typer.Exit(state.cluster.run("snapshot", words, content))
    key = put_snapshot(state.environment.store, name, content)
    state.result({"key": key, "bytes": len(content)}, f"{len(content)} bytes in {key}")


def main() -> None:
    # Even under PYTHONWARNINGS=error: connections that are kept open end with the process.
    warnings.simplefilter("ignore", ResourceWarning)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # ty: ignore[missing-union-attribute] (not every terminal is UTF-8)
    words = sys.argv[1:] = [os.fsencode(word).decode("utf-8", "replace") for word in sys.argv[1:]]
    as_json = "--json" in words  # one option for every verb, before or after it
    try:
        rest = [word for word in words if word != "--json"]
        sys.exit(app([*["--json"] * as_json, *rest], standalone_mode=not as_json))
    except TyperException as error:  # without --json Typer shows its own
        problem = UserError("command", " ".join(words), f"{error}; see mlops --help")
    except UserError as error:
        problem = error
    except BaseError as error:
        problem = UserError("bucket", state.environment.bucket, f"request failed ({str(error).splitlines()[0][:300]})")
    except Exception as error:
        if "MLOPS_TRACEBACK" in os.environ:
            raise
        why = str(error).partition("\n")[0][:300]
        problem = UserError("unexpected", type(error).__name__, f"{why}; set MLOPS_TRACEBACK=1 for the full traceback")
    if as_json:
        print(
            json.dumps(
                {"error": {"key": problem.key, "value": str(problem.value), "hint": state.pasteable(problem.hint)}}
            )
        )
    err.print("[red]error[/] ", end="", highlight=False)
    err.print(state.pasteable(str(problem)), highlight=False, markup=False, soft_wrap=True)
    sys.exit(problem.exit_code)
