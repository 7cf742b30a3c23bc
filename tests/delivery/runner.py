"""Runs of workflows, carried out by act in clones of their commits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tests.delivery import workflows
from tests.delivery.api import Environment, user
from tests.delivery.settings import Settings

HERE = Path(__file__).parent
ACTIONS = HERE / "actions"


@cache
def act() -> str | None:
    asked = subprocess.run(["go", "env", "GOPATH"], capture_output=True, text=True) if shutil.which("go") else None
    folders = [f"{asked.stdout.strip()}/bin"] if asked else []
    return shutil.which("act", path=os.pathsep.join([os.environ["PATH"], *folders, str(Path.home() / "go" / "bin")]))


@dataclass
class Run:
    id: int
    workflow: str  # its file's name
    event: str
    sha: str  # as the API shows it: of a pull request the head, where `commit`, which is carried out, is the merge
    commit: str
    branch: str
    payload: dict[str, Any]
    login: str
    told: dict[str, Any]  # the parsed workflow
    group: str = ""
    reads_only: bool = False  # of a fork
    attempt: int = 1
    status: str = "queued"
    conclusion: str | None = None
    jobs: dict[str, str] = field(
        default_factory=dict
    )  # "build", "test (3.11)", "dev", "dev / deploy": by the jobs' ids
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)  # of steps, by job
    log: str = ""
    summary: str = ""
    seconds: float = 0.0
    process: subprocess.Popen[str] | None = None

    @property
    def token(self) -> str:
        return f"ghs_{self.id}_{self.attempt}"

    def until(self, text: str, timeout: float = 20) -> None:
        """Waits for a line of the log."""
        deadline = time.monotonic() + timeout
        while text not in self.log:
            assert self.status != "completed", f"{self.workflow} ended without {text!r}:\n{self.log[-2000:]}"
            assert time.monotonic() < deadline, f"{text!r} is not in the log of {self.workflow}:\n{self.log[-2000:]}"
            time.sleep(0.01)

    def send(self, how: int) -> None:
        if self.status == "completed":
            return
        self.conclusion = "cancelled"
        if self.status == "queued":
            self.status = "completed"
        elif self.process and self.process.poll() is None:
            # act gives each step a session of its own.
            steps = psutil.Process(self.process.pid).children(recursive=True) if how == signal.SIGKILL else []
            os.killpg(self.process.pid, how)
            for each in steps:
                each.kill() if each.is_running() else None

    def kill(self, how: int = signal.SIGKILL) -> None:
        """As if the runner were switched off; by SIGINT as if someone had cancelled the run: `always()` steps follow."""
        self.send(how)
        deadline = time.monotonic() + 30
        while self.status != "completed":
            assert time.monotonic() < deadline, f"{self.workflow} does not end"
            time.sleep(0.01)

    def shown(self, forge: Settings) -> dict[str, Any]:
        link = f"{forge.url}/{forge.full_name}/actions/runs/{self.id}"
        named = {
            "id": self.id,
            "name": self.told.get("name", self.workflow),
            "path": f".github/workflows/{self.workflow}",
        }
        state = {"status": self.status, "conclusion": self.conclusion, "run_attempt": self.attempt, "html_url": link}
        what = {"event": self.event, "head_sha": self.sha, "head_branch": self.branch, "actor": user(self.login)}
        return named | state | what | {"display_title": self.workflow, "run_number": self.id, "pull_requests": []}


class Runner(Settings):
    folder: Path
    stopped = False

    def __init__(self, bare: Path, owner: str, name: str):
        super().__init__(bare, owner, name)
        self.deployments: list[tuple[int, str]] = []  # (run, environment): which job named which environment
        self.env: dict[str, str] = {}
        self.path: list[Path] = []

    def carry_out(self, run: Run) -> None:
        """In a fresh clone of the commit, by act."""
        start, folder = time.monotonic(), tempfile.gettempdir()
        folder = "/tmp" if " " in folder else folder  # act would not find its scripts
        with tempfile.TemporaryDirectory(prefix="forge-", dir=folder) as scratch:
            work, event = Path(scratch, "work"), Path(scratch, "event.json")
            self.git("clone", "-q", "--shared", "--no-checkout", self.bare, work)
            self.git("-C", work, "checkout", "-q", "--detach", run.commit)
            workflows.prepare(work)
            event.write_text(json.dumps(run.payload))
            command = [act() or "act", run.event, "-W", f".github/workflows/{run.workflow}", "-e", str(event), "--json"]
            command += ["-P", "ubuntu-latest=-self-hosted", "--no-cache-server", "--action-offline-mode"]
            command += ["--no-skip-checkout", "--action-cache-path", f"{scratch}/cache", "-a", run.login]
            for used, folder in workflows.actions(work, ACTIONS):
                command += ["--local-repository", f"{used}={folder}"]
            variables = {} if run.reads_only else self.variables  # GitHub gives a fork's pull request none
            apart = {} if run.reads_only else {name: each.variables for name, each in self.environments.items()}
            told = {"FORGE_VARIABLES": json.dumps({name: variables | each for name, each in apart.items()})}
            for option, pairs in (("--var", variables | told), ("--env", self.environment(run, Path(scratch)))):
                command += [part for name, value in pairs.items() for part in (option, f"{name}={value}")]
            command += ["-s", f"GITHUB_TOKEN={run.token}"]
            run.process = subprocess.Popen(command, cwd=work, env=self.inherited(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
            if run.conclusion or self.stopped:
                os.killpg(run.process.pid, signal.SIGKILL)
            assert run.process.stdout
            workflows.read(run, run.process.stdout)
            failed = run.process.wait() != 0
            self.named(run, Path(scratch, "named"))
        ran = {*run.jobs.values()} - {"skipped"}
        end = "startup_failure" if failed and not ran else "failure" if failed else "success" if ran else "skipped"
        run.jobs = {} if end == "startup_failure" and not run.conclusion else run.jobs
        run.conclusion, run.seconds = run.conclusion or end, time.monotonic() - start

    def environment(self, run: Run, scratch: Path) -> dict[str, str]:
        policies = {
            name: {"custom": each.branches, "protected": ["main"]}.get(each.policy)
            for name, each in self.environments.items()
        }
        return {
            "GITHUB_API_URL": self.url, "GITHUB_SERVER_URL": self.url, "GITHUB_REPOSITORY": self.full_name,
            "GITHUB_RUN_ID": str(run.id), "GITHUB_RUN_ATTEMPT": str(run.attempt), "GITHUB_RUN_NUMBER": str(run.id),
            "GITHUB_WORKFLOW_REF": f"{self.full_name}/.github/workflows/{run.workflow}@refs/heads/{run.branch}",
            "FORGE_GIT": str(self.bare), "FORGE_PYTHON": sys.executable, "FORGE_LIBRARIES": sysconfig.get_path("purelib"), "FORGE_MAKE": shutil.which("make") or "make",
            "FORGE_ACTIONS": str(ACTIONS), "FORGE_ARTIFACTS": str(self.artifacts), "FORGE_ROLES": str(self.folder / "roles"),
            "FORGE_NAMED": str(scratch / "named"), "FORGE_POLICIES": json.dumps(policies),
        } | self.env  # fmt: skip

    def inherited(self) -> dict[str, str]:
        """Nothing of the test's own settings; HOME stays."""
        own = re.compile(r"^(AWS|MLOPS|GITHUB|ACTIONS|PULUMI|PYTEST|PYTHON|VIRTUAL_ENV|FORGE|GIT_)")
        path = os.pathsep.join(map(str, [*self.path, HERE / "bin", os.environ["PATH"]]))
        told = {
            "PATH": path,
            "TERM": "dumb",
            "PAGER": "cat",
            "GIT_PAGER": "cat",
        }  # act gives steps a terminal, GitHub none
        return {name: value for name, value in os.environ.items() if not own.match(name)} | told

    def named(self, run: Run, file: Path) -> None:
        for name in file.read_text().splitlines() if file.exists() else ():
            self.deployments.append((run.id, name))
            self.environments.setdefault(name, Environment())
