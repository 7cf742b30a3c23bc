"""What one does to an environment on a cluster, from this machine."""

import json
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from cli.cluster import Cluster
from cli.terminal import err, state
from mlops.errors import UserError


def images(
    push: Annotated[str | None, typer.Option(help="Registry and prefix; if not given, this machine's cluster.")] = None,
    platform: Annotated[str | None, typer.Option(help="linux/amd64 or linux/arm64; this machine's by default.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only those that the nodes do not have.")] = False,
    pip_conf: Annotated[Path | None, typer.Option(help="For a private package index; in no layer.")] = None,
    ca: Annotated[Path | None, typer.Option(help="For a private certificate authority; in no layer.")] = None,
) -> None:
    """Build the images with docker, podman or buildah, then load them into the cluster or push them, to be deployed next."""
    from cli import images as made
    from cli.delivery.builds import Build
    from infra.images import TARGETS
    from training.registry import commit

    cluster, revision = state.require_cluster("images"), commit()
    present = cluster.images() if missing else ()
    wanted = [name for name in TARGETS if cluster.image(name) not in present]
    options = ["--build-arg", f"COMMIT={revision}"]
    for name, path in (("pip.conf", pip_conf), ("ca.pem", ca)):
        options += ["--secret", f"id={name},src={path}"] if path else []
    with err.status("images") as status:
        found = made.build(wanted, push, platform or "", options, status.update)
        if not push:
            made.load(list(found.values()), cluster.settings["cluster.context"])
    if push:
        Build(commit=revision, artifacts=found).release(cluster.name)
    state.result({"images": found}, "\n".join(found.values()))


def backup(folder: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Save the bucket, and MLflow's databases if they are bundled."""
    from cli.backup import save

    with err.status("backup") as status:
        sizes = save(state.require_cluster("backup"), folder, status.update)
    state.result(sizes, "\n".join(f"{size:>14} {name}" for name, size in sizes.items()))


def restore(folder: Annotated[Path, typer.Argument(help="A folder that `mlops backup` wrote.")]) -> None:
    """Restore a backup, overwriting objects with the same name."""
    from cli.backup import load

    cluster = state.require_cluster("restore")
    err.print(f"restore in [bold]{cluster.name}[/]: databases and bucket of namespace {cluster.settings['namespace']}")
    with err.status("restore") as status:
        sizes = load(cluster, folder, status.update)
    state.result(sizes, f"restored {', '.join(sizes)}; the app reads the bucket by itself")


def doctor() -> None:
    """Find what would make a deployment fail, before anything is created."""
    from cli.doctor import problems

    cluster = state.require_cluster("doctor")
    with err.status("doctor"):
        found = problems(cluster)
    listed = [{"key": problem.key, "value": str(problem.value), "hint": problem.hint} for problem in found]
    state.result({"problems": listed}, "\n".join(map(str, found)) or f"{cluster.name}: ready to deploy")
    if found:
        raise typer.Exit(2)


def cost() -> None:
    """What an environment on AWS costs a month while nobody uses it, and what would lower that."""
    from infra.cost import cheaper, lines

    cluster = state.require_cluster("cost")
    if cluster.settings["cluster.kind"] != "eks":
        raise UserError("cluster.kind", cluster.settings["cluster.kind"], "has no bill that is known here; use eks")
    found, hints = lines(cluster.name), cheaper(cluster.name, _used(cluster))
    table = Table("", "", "$ a month")
    for line in found:
        table.add_row(line.item, str(line.count), f"{line.dollars:.2f}")
    total = sum(line.dollars for line in found)
    table.add_row("sum, idle; infra/prices.yaml has the prices", "", f"{total:.2f}")
    for hint in hints:
        table.add_row(hint, "", "")
    value = {"lines": [vars(line) for line in found], "total": round(total, 2), "cheaper": hints}
    state.result(value, table)


def _used(cluster: Cluster) -> dict[str, float]:
    """What a replica of the app needed at most in a week, as its Prometheus has it; nothing without one."""
    queries = {
        "cpu": 'max(max_over_time(rate(process_cpu_seconds_total{job="serving"}[5m])[7d:5m]))',
        "memory": 'max(max_over_time(process_resident_memory_bytes{job="serving"}[7d])) / 2^30',
    }
    service = f"/api/v1/namespaces/{cluster.settings['namespace']}/services/prometheus:9090/proxy/api/v1/query"
    found = {}
    for name, query in queries.items():
        try:
            answer = json.loads(cluster.ask("get", "--raw", f"{service}?query={quote(query)}"))["data"]["result"]
        except (UserError, ValueError, KeyError):
            continue
        found |= {name: float(answer[0]["value"][1])} if answer else {}
    return found


def connect() -> None:
    """Add the environment's cluster on AWS to the kubeconfig, or renew it."""
    cluster = state.require_cluster("connect")
    if cluster.settings["cluster.kind"] != "eks":
        raise UserError(
            "cluster.kind", cluster.settings["cluster.kind"], "has its context already; it needs none of ours"
        )
    cluster.log_in()
    state.result(cluster.eks, f"{cluster.settings['cluster.context']} is in the kubeconfig")


def kubectl(words: Annotated[list[str], typer.Argument(help="As kubectl takes them.")]) -> None:
    """Run kubectl in the environment's cluster and namespace."""
    cluster = state.require_cluster("kubectl")
    cluster.ask("version")
    raise typer.Exit(subprocess.run(cluster.kubectl(*words)).returncode)


def emptied() -> None:
    """Wait until the volumes of the environment's namespace are gone, after `pulumi destroy` of the platform."""
    cluster = state.require_cluster("emptied")
    if not cluster.settings["clusterScope"]:
        return  # namespace and volumes are somebody else's, and so is the cluster
    deadline = time.monotonic() + 600
    while volumes := [each for each in json.loads(cluster.ask("get", "pv", "-o", "json"))["items"]
                      if each["spec"].get("claimRef", {}).get("namespace") == cluster.settings["namespace"]]:  # fmt: skip
        if time.monotonic() > deadline:
            names = ", ".join(each["metadata"]["name"] for each in volumes)
            raise UserError("volumes", names, "are still there; delete them in AWS before its network is destroyed")
        time.sleep(3)


VERBS = (images, backup, restore, doctor, cost, connect, kubectl, emptied)
OPTIONS: dict[str, dict[str, Any]] = {
    "kubectl": {"context_settings": {"ignore_unknown_options": True, "allow_interspersed_args": False}}
}
