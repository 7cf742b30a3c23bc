"""What nobody does and somebody should know: each finding is one issue, updated, and closed when it is gone."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.backup import save_models
from cli.cluster import Cluster
from cli.delivery import locks
from cli.delivery.build import uv
from cli.delivery.deployments import DeploymentLog
from cli.delivery.git import git, worktree
from cli.delivery.github import BOT, GitHub
from cli.delivery.markdown import fence
from cli.delivery.pulumi import pulumi, stacks
from cli.delivery.road import Road
from infra.images import TARGETS
from mlops import promotion
from mlops.environment import ROOT, Environment, models
from mlops.errors import UserError
from mlops.keys import Keyring
from mlops.registered_model import RegisteredModel
from mlops.store import Store

_COOLDOWN_DAYS, _MAX_HOURS = 7, 3
_AUDIT = "pip-audit==2.10.1"
_MAX = 20_000


def report(github: GitHub, key: str, title: str, problem: str) -> str:
    """What was done: opened, updated, unchanged or closed; '' if there is no problem and was none."""
    mark = f"<!-- mlops:watch:{key} -->"
    body = f"{mark}\n{problem}"
    own = [
        each
        for each in github.all("issues?state=open")
        if (each["body"] or "").startswith(mark) and each["user"]["login"] == BOT
    ]
    if problem and not own:
        github.ask("POST", "issues", title=title, body=body)
        return "opened"
    if problem:
        changed = own[0]["body"] != body
        _ = changed and github.ask("PATCH", f"issues/{own[0]['number']}", body=body)
        return "updated" if changed else "unchanged"
    for each in own:
        github.ask("POST", f"issues/{each['number']}/comments", body="Gone.")
        github.ask("PATCH", f"issues/{each['number']}", state="closed", state_reason="completed")
    return "closed" if own else ""


def drift(road: Road, environment: str, say: Callable[[str], None]) -> str:
    """How what is there differs from the state of what was deployed, by the programs of that commit."""
    deployments = DeploymentLog(road, environment).read()
    if not deployments or not Cluster.of(environment):
        return ""
    folder, found = worktree(deployments[-1].build.commit), []
    for stack in stacks(environment):
        say(stack)
        words = ["refresh", "--preview-only", "--expect-no-changes", "--diff", "--non-interactive", "--color", "never"]
        done = pulumi(stack, *words, folder=folder)
        if done.returncode:
            found.append(f"### {stack}\n{fence((done.stdout + done.stderr)[-_MAX:])}")
    return "\n\n".join(found)


def stale_lock(road: Road, environment: str) -> str:
    """A lock whose owner is dead, or that is older than any deployment takes; the next deployment removes the first kind."""
    found, long_ago = [], datetime.now(UTC) - timedelta(hours=_MAX_HOURS)
    for stack in stacks(environment):
        for lock, dead in locks.held(road, stack, ROOT):
            since = datetime.fromisoformat(lock["timestamp"])
            if dead or since < long_ago:
                found.append(f"{stack}: {lock['username']}@{lock['hostname']}, since {since:%Y-%m-%d %H:%M}")
    return fence("\n".join(found)) if found else ""


def restore(environment: str, say: Callable[[str], None]) -> str:
    """Whether what is released could be served from a copy of the bucket's models: elsewhere, it verifies."""
    with TemporaryDirectory() as folder:
        say("copy")
        store, keyring = Store(str(Path(folder, "bucket"))), Path(folder, "keyring.json")
        archive = Path(folder, "models.tar")
        keyring.write_text(_copy(environment, archive), "utf-8")
        with archive.open("rb") as file:
            store.unpack(file)
        say("verify")
        for name in models():
            model = RegisteredModel(name, environment, store, Keyring(keyring))
            wanted, found = model.releases.current(), promotion.champion(model)
            if wanted and (found is None or found.digest != wanted.champion):
                would = found.digest[:12] if found else "nothing"
                return f"`{name}`: {wanted.champion[:12]} is released, the copy would serve {would}"
    return ""


def _copy(environment: str, archive: Path) -> str:
    """The bucket's models, without a prediction, as a tar archive; and the keyring that they are verified with."""
    if cluster := Cluster.of(environment):
        if cluster.settings["bucket.kind"] == "s3":
            with archive.open("wb") as file:
                Store(f"s3://{cluster.s3}").pack(file, "models")
        else:
            save_models(cluster, archive)
        return cluster.get("configmap", "keyring")["data"]["keyring.json"]
    here = Environment.load(environment)
    with archive.open("wb") as file:
        here.store.pack(file, "models")
    return here.keyring.read_text("utf-8")


def audit(say: Callable[[str], None]) -> str:
    """Known vulnerabilities of what is installed into images, by pip-audit; of packages that are not public it knows none."""
    found = []
    for lock in TARGETS:
        say(lock)
        command = [uv(), "tool", "run", "--from", _AUDIT, "pip-audit", "--disable-pip", "--no-deps", "--format=json"]
        requirements = str(ROOT / "requirements" / f"{lock}.txt")
        done = subprocess.run([*command, "--progress-spinner=off", "-r", requirements], capture_output=True, text=True)
        try:
            packages = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            raise UserError("pip-audit", lock, f"ended without an answer: {done.stderr.strip()[-300:]}") from None
        for each in (each for each in packages if each.get("vulns")):
            known = ", ".join(
                f"{one['id']} (fixed in {', '.join(one['fix_versions']) or 'none'})" for one in each["vulns"]
            )
            found.append(f"{lock}: {each['name']} {each['version']}: {known}")
    return fence("\n".join(found)) if found else ""


def update(github: GitHub, say: Callable[[str], None]) -> str:
    """The address of the pull request; '' if nothing is newer."""
    week_old = (datetime.now(UTC) - timedelta(days=_COOLDOWN_DAYS)).strftime("%Y-%m-%dT00:00:00Z")
    say(f"versions from before {week_old[:10]}")
    subprocess.run(
        ["make", "lock", f"LOCK=--upgrade --exclude-newer {week_old}"], cwd=ROOT, check=True, stdout=sys.stderr
    )
    changed = git("diff", "--name-only", "--", "requirements").splitlines()
    if not changed:
        return ""
    files = {name: (ROOT / name).read_text("utf-8") for name in changed}
    body = f"Every version is {_COOLDOWN_DAYS} days old at least: what was tampered with is found within days."
    return github.propose("update/dependencies", files, "Newer dependencies", body)
