"""The `mlops` command: thin, and quick to start, since each verb imports what it needs."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from obstore.exceptions import BaseError
from rich.markup import escape
from rich.table import Table
from typer.exceptions import TyperException

from mlops.cluster import Cluster, without
from mlops.errors import Fault, GateRefused
from mlops.experiment import app as experiment_app
from mlops.releases import Release, described
from mlops.terminal import Why, err, state

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The life of a model: train, release, watch, roll back.",
)
key_app = typer.Typer(no_args_is_help=True, help="API keys and signing keys.")
app.add_typer(key_app, name="key")
app.add_typer(experiment_app, name="experiment")
_LOCAL = ("run", "init", "tune", "score")


@app.callback()
def common(
    context: typer.Context,
    env: Annotated[str | None, typer.Option(help="A folder of environments/; local if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder of training/models/; not needed where there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output; may stand anywhere.")] = False,
) -> None:
    state.env, state.model, state.as_json = env, model, as_json
    state.cluster = cluster = Cluster.of(env)
    verb = context.invoked_subcommand or ""
    if cluster is None or verb in ("images", "backup", "restore", "snapshot") or "--help" in sys.argv:
        return
    words = without(sys.argv[1:], "--env")
    if verb in _LOCAL:
        raise Fault("env", cluster.name, f"is a cluster; {verb} works on this machine: leave --env out")
    if verb in ("predict", "replay"):
        cluster.reach()
    elif verb == "train":
        raise typer.Exit(cluster.train(words))
    elif verb == "key" and any(word.startswith(("build", "approve")) for word in words):
        context.with_resource(cluster.keyring())
    else:
        raise typer.Exit(cluster.run(words))


@app.command()
def run(
    replicas: Annotated[int, typer.Option(min=1, max=4, help="App processes.")] = 1,
    once: Annotated[bool, typer.Option("--no-train", help="Do not train a first model where there is none.")] = False,
) -> None:
    """Run the platform on this machine until Ctrl-C."""
    from environments.local.platform import serve

    serve(state.environment, state.model_name, replicas, train=not once)


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="CSV or Parquet.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    name: Annotated[str | None, typer.Option(help="The model's name; the file's, if not given.")] = None,
    time: Annotated[str | None, typer.Option(help="The column that says when, if there is one.")] = None,
) -> None:
    """Draft contract.yaml, data.py and parameters.yaml of a new model from a table."""
    from training.draft import draft

    files = draft(data, target, name, time)
    state.result({"files": [str(f) for f in files]}, "wrote\n  " + "\n  ".join(map(str, files)) + "\nread the contract, then: mlops train")


@app.command()
def train(
    window: Annotated[str | None, typer.Option("--train", help="START..END, dates or fractions.")] = None,
    holdout: Annotated[str | None, typer.Option(help="START..END, rows that neither model has seen.")] = None,
    seed: int = 0,
    accept: Annotated[list[str] | None, typer.Option(help="A check (too_good, leakage) that you let pass; needs --why.")] = None,
    why: Why = "",
) -> None:
    """Train, evaluate, gate, sign and register. Exit code 3: the gate refused."""
    if accept and not why:
        raise Fault("why", "", "say why you accept it: --why '…'")
    from mlops.contract import Window
    from training.pipeline import train as run_training
    from training.recipe import recipe

    windows = [Window.parse(w) if w else None for w in (window, holdout)]
    with err.status("train") as status:
        trained = run_training(
            state.environment, recipe(state.model_name), *windows, seed=seed, accept=dict.fromkeys(accept or [], why), say=status.update
        )
    value = {
        "digest": trained.digest, "gate": "passed" if trained.verdict.passed else "refused", "reasons": trained.verdict.reasons,
        "metrics": trained.metrics, "version": trained.version, "report": trained.report,
    }  # fmt: skip
    text = f"{trained.digest[:12]}  loss {trained.metrics['loss']:.4f}  report {trained.report}\n"
    if not trained.verdict.passed:
        state.result(value, text + "refused by the gate")
        raise GateRefused("gate", trained.digest[:12], "refused: " + "\n  ".join(["", *trained.verdict.reasons]))
    state.result(value, text + f"passed the gate; next: mlops release {trained.digest[:12]} --why '…'")


@app.command()
def tune(
    trials: Annotated[int, typer.Option(min=1)] = 30,
    seed: int = 0,
) -> None:
    """Search parameters on forward time blocks (resumable) and write parameters.yaml."""
    from training.recipe import recipe
    from training.tune import tune as search

    with err.status("tune") as status:
        found = search(state.environment, recipe(state.model_name), trials, seed, status.update)
    state.result(found, f"loss {found['loss']:.4f} after {found['trials']} trials; wrote {found['file']}")


@app.command()
def score(
    source: Annotated[Path, typer.Argument(help="CSV or Parquet with the request's columns.")],
    folder: Annotated[Path, typer.Argument(help="Where the scores go: part-*.parquet and refused-*.jsonl.")],
    digest: Annotated[str | None, typer.Option(help="A bundle approved here; the one that serves, if not given.")] = None,
) -> None:
    """Score a file of any size; started again, it goes on where it stopped."""
    from training.score import score as score_file

    with err.status("score") as status:
        found = score_file(state.environment, state.model_name, source, folder, digest, status.update)
    state.result(found, f"{found['scored']} rows scored, {found['refused']} refused, by {found['digest'][:12]} into {folder}")


@app.command()
def release(
    digest: Annotated[str | None, typer.Argument(help="The bundle's digest, or its beginning.")] = None,
    why: Why = "",
    mode: Annotated[str, typer.Option(help="full, or beside the champion: shadow, canary, ab, blue-green.")] = "full",
    weight: Annotated[float | None, typer.Option(help="Share of the entities that a canary answers.", min=0, max=1)] = None,
    segment: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: those alone get the challenger.")] = None,
    pause: Annotated[bool, typer.Option("--pause", help="The challenger on trial takes no step on; one back it may.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="It may again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Its next step now, whatever the evidence.")] = False,
    breaking: Annotated[bool, typer.Option("--breaking", help="Allow a narrower request schema.")] = False,
) -> None:
    """Check digest, signatures and gate, approve for this environment, and release. Or steer the trial that is on."""
    from mlops import door, trials
    from mlops.releases import MODES

    if mode not in MODES:
        raise Fault("mode", mode, f"use {', '.join(MODES)}")
    if bool(digest) + pause + resume + force != 1:
        raise Fault("release", digest or "", "name a DIGEST, or one of --pause, --resume, --force")
    if not why and not digest:
        raise Fault("why", "", "say why: --why '…'")
    environment, model = state.environment, state.model_name
    state.target("release")
    if digest:
        parts = dict(part.partition("=")[::2] for part in segment or [])
        mode = "canary" if parts and mode == "full" else mode
        done = door.release(environment, model, digest, why or "released by hand", mode, breaking, weight, parts or None)  # ty: ignore
    elif force:
        done = door.force(environment, model, why)
    else:
        done = trials.hold(environment.store, model, pause, why)
    _mirror(done)
    state.result(done.model_dump(mode="json"), f"epoch {done.epoch}: {described(done)} in {environment.name}")


@app.command()
def rollback(why: Why = "") -> None:
    """Release what was observed serving before the current release."""
    from mlops.door import rollback as back

    state.target("rollback")
    done = back(state.environment, state.model_name, why or "rolled back by hand")
    _mirror(done)
    state.result(done.model_dump(mode="json"), f"epoch {done.epoch}: back to {done.champion[:12]}")


def _mirror(done: Release) -> None:
    """MLflow's alias is for people: without MLflow a release is as good."""
    from mlops.tracking import Tracking, reachable

    environment = state.environment
    if reachable(environment.tracking):
        Tracking(environment.tracking).mirror(state.model_name, done.champion, done.on_trial)


@app.command()
def history(
    at: Annotated[str | None, typer.Option(help="A moment, ISO 8601: what was to serve then, and what did.")] = None,
) -> None:
    """What the release log intended, and what the prediction log observed."""
    from mlops import releases
    from mlops.door import observed

    environment, model = state.environment, state.model_name
    log = releases.read(environment.store, model)
    if at:
        moment = _moment(at)
        wanted = releases.serving(log, moment)
        seen = observed(environment.store, model, moment)
        value = {"at": moment, "intended": wanted.model_dump(mode="json") if wanted else None, "observed": seen}
        intended = f"epoch {wanted.epoch}, {wanted.champion[:12]}" if wanted else "nothing"
        answered = ", ".join(f"{d[:12]} (epoch {e}, {n} rows)" for (d, e), n in seen.items()) or "no answers in the log within a minute"
        value["observed"] = [{"digest": d, "epoch": e, "rows": n} for (d, e), n in seen.items()]
        state.result(value, f"intended: {intended}\nobserved: {answered}")
        return
    table = Table("epoch", "at", "what", "by", "why")
    for release in log:
        words = (described(release), escape(release.by), escape(release.why))
        table.add_row(str(release.epoch), f"{release.at:%Y-%m-%d %H:%M:%S}", *words)
    state.result({"releases": [release.model_dump(mode="json") for release in log]}, table)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Fault("at", text, "write a moment as 2024-05-01T12:00:00Z") from None
    return moment if moment.tzinfo else moment.astimezone()


@app.command()
def status() -> None:
    """What serves here, and whether its parts answer."""
    import httpx

    from mlops import releases
    from mlops.tracking import reachable

    environment, model = state.environment, state.model_name
    current = releases.serving(releases.read(environment.store, model), releases.now())
    try:
        ready = httpx.get(f"{environment.endpoint}/readyz", timeout=3)
        service = ready.json()["reason"] or "ready"
    except (httpx.HTTPError, ValueError, KeyError):
        service = "does not answer"
    bundles = sorted({key.split("/")[3][:12] for key in environment.store.keys(f"models/{model}/bundles")})
    value = {
        "environment": environment.name, "model": model, "release": current.model_dump(mode="json") if current else None,
        "service": {"url": environment.endpoint, "state": service},
        "tracking": {"url": environment.tracking, "state": "ready" if reachable(environment.tracking) else "does not answer"},
        "bucket": environment.bucket, "bundles": bundles,
    }  # fmt: skip
    lines = [
        f"model     {model} in {environment.name}",
        f"release   {f'epoch {current.epoch}, {described(current)}, {current.why}' if current else 'none yet'}",
        f"service   {environment.endpoint}: {service}",
        f"MLflow    {environment.tracking}: {value['tracking']['state']}",
        f"bucket    {environment.bucket}: {len(bundles)} bundles {' '.join(bundles)}",
    ]
    state.result(value, "\n".join(lines))


@app.command()
def predict(
    rows: Annotated[str, typer.Argument(help="JSON: one row or a list of them; - reads standard input.")],
) -> None:
    """Ask the running service."""
    from mlops.client import Client

    text = sys.stdin.read() if rows == "-" else rows
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise Fault("rows", text[:80], f"is not JSON ({error})") from None
    answer = Client(state.environment).predict(parsed if isinstance(parsed, list) else [parsed])
    lines = [f"{p['prediction']:g}  score {p['score']:.4f}  id {p['id']}" for p in answer["predictions"]]
    state.result(answer, "\n".join([*lines, f"by {answer['model'][:12]}, epoch {answer['epoch']}"]))


@app.command()
def replay(
    window: Annotated[str, typer.Option(help="START..END, dates or fractions.")],
    speed: Annotated[float, typer.Option(help="Seconds of data in one second; 0: as fast as it goes.", min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many rows, evenly spread.", min=1)] = None,
    every: Annotated[float, typer.Option(help="Rows of so many seconds of data share a request.", min=0)] = 0,
) -> None:
    """Send real rows as live requests in time order, and their outcomes later."""
    from mlops.contract import Window
    from training.recipe import recipe
    from training.replay import replay as play

    with err.status("replay") as status:
        found = play(state.environment, recipe(state.model_name), Window.parse(window), speed, limit, every, status.update)
    state.result(found, f"{found['requests']} requests, {found['failed']} failed, {found['outcomes']} outcomes sent")
    if found["failed"]:
        raise Fault("replay", found["failed"], f"requests failed, the first with: {found['error']}")


@app.command()
def outcomes(
    file: Annotated[Path | None, typer.Argument(help="CSV with the columns id and value, to be sent.")] = None,
) -> None:
    """Send outcomes; without a file: how predictions and outcomes meet in the log."""
    if file:
        import csv

        from mlops.client import Client

        if not file.exists():
            raise Fault("file", str(file), "no such file")
        with file.open(newline="") as lines:
            try:
                rows = [{"id": row["id"], "value": float(row["value"])} for row in csv.DictReader(lines)]
            except (KeyError, ValueError, TypeError) as error:
                raise Fault("file", str(file), f"needs the columns id and value, a number each ({error})") from None
        found = Client(state.environment).outcomes(rows)
    else:
        from monitoring.joined import joined

        found = joined(state.environment.store, state.model_name).counts
    state.result(found, "\n".join(f"{name:<14}{value}" for name, value in found.items()))


@app.command()
def check(digest: Annotated[str, typer.Argument(help="The bundle's digest, or its beginning.")]) -> None:
    """Verify a bundle as the app does: hashes, signatures, gate, approval, and the model in a child process."""
    from mlops.door import check as examine

    found = examine(state.environment, state.model_name, digest)
    marks = {True: "[green]holds[/]", False: "[red]does not hold[/]"}
    table = Table("check", "", "why")
    for name, why in found["checks"].items():
        table.add_row(name, marks[not why], escape(why))
    state.result(found, table)
    if not found["holds"]:
        raise typer.Exit(2)


@key_app.command("new")
def key_new(
    name: Annotated[str, typer.Argument(help="Whose key it is.")] = "",
    role: Annotated[list[str] | None, typer.Option(help="predict, outcomes (an API key); build, approve (a signing key).")] = None,
    expires_days: Annotated[float | None, typer.Option(help="An API key's life.")] = None,
    per_second: Annotated[float, typer.Option(help="An API key's limit of requests.", min=0.001)] = 1000,
    alg: Annotated[str, typer.Option(help="A signing key's: ed25519 or ecdsa-p256.")] = "ed25519",
) -> None:
    """Make a key. An API key is shown once; only its hash is kept."""
    from mlops import access

    environment, roles = state.environment, role or ["predict", "outcomes"]
    if unknown := set(roles) - {"predict", "outcomes", "build", "approve"}:
        raise Fault("role", sorted(unknown)[0], "use predict, outcomes, build or approve")
    state.target("key new")
    if set(roles) & {"build", "approve"}:
        if len(roles) > 1:
            raise Fault("role", ", ".join(roles), "a signing key has one role")
        if alg not in ("ed25519", "ecdsa-p256"):
            raise Fault("alg", alg, "use ed25519 or ecdsa-p256")
        signing = environment.keys.new(roles[0], environment.name if roles[0] == "approve" else None, alg)  # ty: ignore
        state.result(signing.model_dump(mode="json"), f"{signing.id}: private half in {environment.keyring.parent}")
        return
    expires = datetime.now(UTC) + timedelta(days=expires_days) if expires_days is not None else None
    key, secret = access.new(environment.store, name or "unnamed", roles, per_second, expires)  # ty: ignore
    state.result({**key.model_dump(mode="json", exclude={"sha256"}), "key": secret}, f"{secret}\nkeep it now: it is not shown again")


@key_app.command("list")
def key_list() -> None:
    """All keys, without anything secret."""
    from mlops import access

    environment = state.environment
    api, signing = access.read(environment.store), environment.keys.all()
    table = Table("id", "name", "for", "state", "created", "expires")
    for key in api:
        table.add_row(
            key.id,
            escape(key.name),
            ", ".join(key.scopes),
            "revoked" if key.revoked else "active",
            f"{key.created:%Y-%m-%d}",
            f"{key.expires:%Y-%m-%d}" if key.expires else "",
        )
    for key in signing:
        table.add_row(key.id, "", f"{key.role} {key.environment or ''}", key.state, f"{key.created:%Y-%m-%d}", "")
    value = {"api": [k.model_dump(mode="json", exclude={"sha256"}) for k in api], "signing": [k.model_dump(mode="json") for k in signing]}
    state.result(value, table)


@key_app.command("revoke")
def key_revoke(
    key_id: Annotated[str, typer.Argument(help="As `key list` shows it.")],
    verify_only: Annotated[bool, typer.Option("--verify-only", help="A signing key: what it signed stays good.")] = False,
) -> None:
    """Revoke a key: within seconds for an API key; what a signing key signed counts no more."""
    from mlops import access

    environment = state.environment
    state.target("key revoke")
    if key_id in {key.id for key in environment.keys.all()}:
        environment.keys.set_state(key_id, "verify-only" if verify_only else "revoked")
    else:
        access.revoke(environment.store, key_id)
    state.result(
        {"id": key_id, "state": "verify-only" if verify_only else "revoked"}, f"{key_id} is {'verify-only' if verify_only else 'revoked'}"
    )


@app.command()
def snapshot(
    file: Annotated[Path | None, typer.Argument(help="Parquet with the columns of load(); what load() gives, if not given.")] = None,
) -> None:
    """Put the data into the bucket, for trainings where data.py cannot reach it (training.data: snapshot)."""
    from training.recipe import recipe
    from training.source import put_snapshot, to_parquet

    model = state.model_name
    content = file.read_bytes() if file else to_parquet(recipe(model).load())
    if state.cluster:
        raise typer.Exit(state.cluster.run([*["--json"] * state.as_json, "--model", model, "snapshot", "/dev/stdin"], content))
    key = put_snapshot(state.environment.store, model, content)
    state.result({"key": key, "bytes": len(content)}, f"{len(content)} bytes in {key}")


def _cluster(verb: str) -> Cluster:
    if state.cluster is None:
        raise Fault("env", state.env or "local", f"is no cluster; {verb} needs one: mlops --env kind {verb}")
    return state.cluster


@app.command()
def images(
    push: Annotated[
        str | None, typer.Option(help="A registry and prefix, registry.example.com/team; the cluster of this machine, if not given.")
    ] = None,
    platform: Annotated[str | None, typer.Option(help="linux/amd64 or linux/arm64; this machine's, if not given.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="app, training or mlflow.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Those alone that the cluster's nodes do not have.")] = False,
    pip_conf: Annotated[Path | None, typer.Option(help="For a package index of your own; in no layer.")] = None,
    ca: Annotated[Path | None, typer.Option(help="For a certificate authority of your own; in no layer.")] = None,
) -> None:
    """Build the images with docker, podman or buildah, and hand them to the cluster or a registry."""
    from mlops import images as kinds
    from training.registry import commit

    cluster = _cluster("images")
    if unknown := set(only or []) - set(kinds.DOCKERFILES):
        raise Fault("only", sorted(unknown)[0], f"use {', '.join(kinds.DOCKERFILES)}")
    wanted = {name: cluster.settings[f"images.{name}"] for name in only or kinds.DOCKERFILES}
    if missing:
        present = cluster.images()
        wanted = {name: image for name, image in wanted.items() if image not in present}
    secrets = {name: path for name, path in (("pip.conf", pip_conf), ("ca.pem", ca)) if path}
    with err.status("images") as status:
        made = kinds.make(wanted, cluster.settings["cluster.context"], push, platform, commit(), secrets, status.update)
    lines = [f"pulumi config set --stack {cluster.name} --path images.{name} {image}" for name, image in made.items() if push]
    state.result({"images": made}, "\n".join(lines or made.values()))


@app.command()
def backup(folder: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """MLflow's databases and the bucket, together."""
    from mlops.backup import backup as save

    with err.status("backup") as status:
        sizes = save(_cluster("backup"), folder, status.update)
    state.result(sizes, "\n".join(f"{size:>14} {name}" for name, size in sizes.items()))


@app.command()
def restore(folder: Annotated[Path, typer.Argument(help="What `mlops backup` wrote.")]) -> None:
    """Bring a backup back: what is there of the same name is replaced."""
    from mlops.backup import restore as bring_back

    cluster = _cluster("restore")
    err.print(f"restore in [bold]{cluster.name}[/]: databases and bucket of namespace {cluster.settings['namespace']}")
    with err.status("restore") as status:
        sizes = bring_back(cluster, folder, status.update)
    state.result(sizes, f"restored {', '.join(sizes)}; the app reads the bucket by itself")


def main() -> None:
    words = sys.argv[1:]
    as_json = "--json" in words  # one option for every verb, before or after it
    try:
        sys.exit(app([*["--json"] * as_json, *(word for word in words if word != "--json")], standalone_mode=not as_json))
    except TyperException as error:  # without --json Typer shows its own
        fault = Fault("command", " ".join(words), f"{error}; see mlops --help")
    except Fault as known:
        fault = known
    except BaseError as error:
        fault = Fault("bucket", state.environment.bucket, f"does not do what was asked ({str(error).partition(chr(10))[0][:300]})")
    except Exception as error:
        if "MLOPS_TRACEBACK" in os.environ:
            raise
        why = str(error).partition("\n")[0][:300]
        fault = Fault("unexpected", type(error).__name__, f"{why}; MLOPS_TRACEBACK=1 shows where, which helps whoever mends it")
    if as_json:
        print(json.dumps({"error": {"key": fault.key, "value": str(fault.value), "way_out": fault.way_out}}))
    err.print(f"[red]{type(fault).__name__.lower()}[/] ", end="", highlight=False)
    err.print(str(fault), highlight=False, markup=False, soft_wrap=True)
    sys.exit(fault.exit_code)


if __name__ == "__main__":
    main()
