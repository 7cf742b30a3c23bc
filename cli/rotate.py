"""The user of MLflow's databases: it has a twin, and one replaces the other while MLflow goes on answering."""

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import typer

from cli.cluster import Cluster
from cli.terminal import err, state
from mlops.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Renew passwords.")
_TWIN = {"mlflow_a": "mlflow_b", "mlflow_b": "mlflow_a"}
_CURRENT, _NEXT = "database-user", "database-user-next"


@app.callback()
def group() -> None:
    """A group, though it has one command so far."""


@app.command()
def db() -> None:
    """Replace the user of MLflow's databases, without a failed request."""
    cluster = state.require_cluster("rotate db")
    if cluster.settings["database.kind"] == "external" or cluster.settings["tracking.kind"] == "external":
        hint = "has a database that is not ours: change its password there and in the Secret, then restart tracking"
        raise UserError("env", cluster.name, hint)
    with err.status("rotate") as status:
        user = rotate(cluster, status.update)
    state.result({"user": user}, f"MLflow logs in as {user}; {_TWIN[user]} can log in no more")


def rotate(cluster: Cluster, say: Callable[[str], None]) -> str:
    """The user that MLflow logs in with from now on. Killed and started again, it goes on where it was."""
    current, begun = cluster.secret(_CURRENT), cluster.secret(_NEXT)
    if current is None:
        raise UserError("secret", _CURRENT, f"is missing; make it: make deploy ENV={cluster.name}")
    if begun is None or begun != current:
        say("create the next user")
        begun = {"user": _TWIN[current["user"]], "password": secrets.token_hex(24)}
        cluster.put_secret(_NEXT, begun)
        _job(cluster, "database", dict.fromkeys(("PGUSER", "PGPASSWORD"), _NEXT))
        cluster.put_secret(_CURRENT, begun)
    say("restart tracking")
    cluster.ask("rollout", "restart", "deploy/tracking")
    cluster.ask("rollout", "status", "deploy/tracking", "--timeout=600s")
    say("retire the former user")
    _job(cluster, "retire", {}, RETIRED_USER=_TWIN[begun["user"]])
    cluster.ask("delete", "secret", _NEXT)
    return begun["user"]


def _job(cluster: Cluster, step: str, replaced: dict[str, str], **values: str) -> None:
    """The step `setup-database` again, with other Secrets for some variables."""
    label = ("-l", "app.kubernetes.io/name=setup-database")
    jobs = json.loads(cluster.ask("get", "jobs", *label, "-o", "json"))["items"]
    if not jobs:
        raise UserError("job", "setup-database", f"is missing; make it: make deploy ENV={cluster.name}")
    template = max(jobs, key=lambda job: job["metadata"]["creationTimestamp"])["spec"]["template"]
    labels = {
        key: value for key, value in template["metadata"]["labels"].items() if key.startswith("app.kubernetes.io")
    }
    container: dict[str, Any] = template["spec"]["containers"][0]
    container["command"] = ["python", "-m", "infra.provision", step]
    for variable in container["env"]:
        if secret := replaced.get(variable["name"]):
            variable["valueFrom"]["secretKeyRef"]["name"] = secret
    container["env"] += [{"name": name, "value": value} for name, value in values.items()]
    name = f"rotate-{step}-{time.time_ns():x}"
    spec = {
        "backoffLimit": 3,
        "ttlSecondsAfterFinished": 3600,
        "template": {**template, "metadata": {"labels": labels}},
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": spec}
    cluster.ask("create", "-f", "-", data=json.dumps(job).encode())
    cluster.ask("wait", "--for=condition=complete", f"job/{name}", "--timeout=300s")
