"""A GitHub on this machine: its API over a real git repository, and a runner that carries out the workflows with act.

What GitHub does and act does not, and is done here: events and their filters, workflow_run, groups and their queues,
environments (variables, branches allowed; a job that names an unknown one makes it), GITHUB_TOKEN, which starts nothing
and may only read in a fork's pull request, artifacts of other runs. Runs are carried out one by one, the oldest first.
Not done: reviewers and timers, scopes of tokens (`permissions`), what rulesets forbid, groups of jobs and of called
workflows, job time-outs, `vars['NAME']`, `[skip ci]`, tags, pull_request_target; all that act itself ignores.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from tests.delivery import openapi, workflows
from tests.delivery.api import BOT, Answer, Ask, Refused, user
from tests.delivery.runner import Run, Runner

PERSON = "ann"


@dataclass
class Request:
    method: str
    path: str
    status: int
    body: Any
    problems: list[str]
    login: str = ""


class Forge(Runner):
    def __init__(self, folder: Path, owner: str = "acme", name: str = "ml"):
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / f"{name}.git", owner, name)
        self.folder, self.artifacts = folder, folder / "artifacts"
        self.requests: list[Request] = []
        self.runs: list[Run] = []
        self.fail_at: int | None = None  # the n-th request from now: its connection is cut before anything changes
        self.fail_after = False  # … or after: the change is made, its answer lost
        self.lock, self.work = threading.RLock(), threading.Condition()
        forge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                answer = forge.handle(
                    self.command, self.path, self.rfile.read(length), self.headers.get("authorization", "")
                )
                if answer is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, value, link = answer
                data = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json; charset=utf-8")
                self.send_header("content-length", str(len(data)))
                if link:
                    self.send_header("link", link)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do  # noqa: N815

            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Forge:
        self.threads = [
            threading.Thread(target=each) for each in (lambda: self.server.serve_forever(0.02), self.worker)
        ]
        for each in self.threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        for run in self.runs:
            run.send(signal.SIGKILL)
        with self.work:
            self.work.notify_all()
        self.server.shutdown()
        self.server.server_close()
        for each in self.threads:
            each.join()

    # the API

    def login(self, authorization: str) -> tuple[str, bool]:
        """Whose token it is, and whether it may only read."""
        token = authorization.partition(" ")[2]
        if token.startswith("user:"):
            return token.removeprefix("user:"), False
        for run in self.runs:
            if token == run.token and run.status == "in_progress":
                return BOT, run.reads_only
        raise Refused(401, "Bad credentials" if token else "Requires authentication")

    def handle(self, verb: str, target: str, data: bytes, authorization: str) -> tuple[int, Any, str] | None:
        with self.lock:
            split, cut = urlsplit(target), False
            query, path, body = dict(parse_qsl(split.query, keep_blank_values=True)), unquote(split.path), None
            if self.fail_at is not None:
                self.fail_at = self.fail_at - 1 or None
                cut = self.fail_at is None
            seen = Request(verb, target, 0, None, [])
            self.requests.append(seen)
            if cut and not self.fail_after:
                return None
            link = ""
            try:
                found = openapi.find(verb, path)
                if not found or ("owner" in found[1] and f"{found[1]['owner']}/{found[1]['repo']}" != self.full_name):
                    seen.problems.append(f"{verb} {path}: no such operation of this repository")
                    raise Refused(404, "Not Found")
                operation, where = found
                seen.login, reads_only = self.login(authorization)
                if reads_only and verb != "GET":
                    raise Refused(403, "Resource not accessible by integration")
                try:
                    seen.body = body = json.loads(data) if data else None
                except ValueError:
                    raise Refused(400, "Problems parsing JSON") from None
                if wrong := openapi.asked(operation, where, query, body):
                    seen.problems += wrong
                    raise Refused(422, "Invalid request.\n\n" + "\n".join(wrong))
                method = getattr(self, operation.replace("/", "_").replace("-", "_"))
                value = method(Ask(where, query, body, seen.login))
                status = value.status if isinstance(value, Answer) else openapi.success(operation)
                value = value.value if isinstance(value, Answer) else value
                if isinstance(value, list):
                    value, link = self.page(operation, value, query, f"{self.url}{split.path}")
                value = openapi.complete(operation, status, value)
                seen.problems += openapi.answered(operation, status, value)
            except Refused as refused:
                status, value = refused.status, refused.answer
            except Exception:
                status, value = 500, {"message": "Server Error"}
                seen.problems.append(traceback.format_exc())
            seen.status = status
            return None if cut else (status, value, link)

    def page(self, operation: str, rows: list[Any], query: dict[str, str], url: str) -> tuple[Any, str]:
        told, link = openapi.OPERATIONS[operation], ""
        whole = len(rows)
        if any(each["name"] == "per_page" for each in told["parameters"]):
            size, page = min(int(query.get("per_page", 30)), 100), int(query.get("page", 1))
            last = max(1, -(-whole // size))
            places = {"next": page + 1, "last": last} if page < last else {}
            places |= {"prev": page - 1, "first": 1} if page > 1 else {}
            link = ", ".join(f'<{url}?{urlencode(query | {"page": n})}>; rel="{rel}"' for rel, n in places.items())
            rows = rows[(page - 1) * size : page * size]
        fields = told["answers"]["200"].get("properties", {})
        name = next((name for name, each in fields.items() if each.get("type") == "array"), None)
        return ({"total_count": whole, name: rows} if name else rows), link

    # people

    def clone(self, folder: Path) -> Path:
        subprocess.run(["git", "clone", "-q", self.bare, folder], check=True, stderr=subprocess.DEVNULL)
        for name, value in {
            "user.name": PERSON,
            "user.email": f"{PERSON}@example.test",
            "commit.gpgsign": "false",
        }.items():
            subprocess.run(["git", "-C", folder, "config", name, value], check=True)
        return folder

    def push(
        self, work: Path, branch: str = "main", fork: str = "", wait: bool = True, force: bool = False
    ) -> list[Run]:
        """Pushes what is checked out in `work`. Returns the runs that it started, and those that these started."""
        since, name = len(self.runs), f"refs/forks/{fork}/{branch}" if fork else f"refs/heads/{branch}"
        with self.lock:
            before = self.sha(name)
            options = ["--force"] if force else []
            subprocess.run(["git", "-C", work, "push", "-q", *options, self.bare, f"HEAD:{name}"], check=True)
            after = self.need(name)
            if before != after and fork:
                for pull in self.pulls.values():
                    if pull["state"] == "open" and pull["head"]["label"] == f"{fork.partition('/')[0]}:{branch}":
                        self.synchronize(pull, after, fork.partition("/")[0])
            elif before != after:
                self.moved(branch, before, after, PERSON)
        return self.started(since, wait)

    def open_pull(self, branch: str, title: str = "", fork: str = "", base: str = "main", wait: bool = True) -> int:
        """As a person. Of a fork ("mallory/ml"), push(…, fork=…) comes before."""
        since = len(self.runs)
        with self.lock:
            login = fork.partition("/")[0] or PERSON
            number = self.opened(branch, base, title or branch, None, login, fork)["number"]
        self.started(since, wait)
        return number

    def approve(self, number: int, wait: bool = True) -> list[Run]:
        """Lets the workflows of a pull request run that GITHUB_TOKEN opened or moved on."""
        since = len(self.runs)
        self.emit("pull_request", PERSON, pull=self.pulls[number], action="synchronize")
        return self.started(since, wait)

    def merge(self, number: int, method: str = "merge", wait: bool = True) -> list[Run]:
        since = len(self.runs)
        with self.lock:
            self.pulls_merge(Ask({"pull_number": str(number)}, {}, {"merge_method": method}, PERSON))
        return self.started(since, wait)

    def dispatch(self, workflow: str, /, *, wait: bool = True, **inputs: Any) -> Run:
        since = len(self.runs)
        self.emit("workflow_dispatch", PERSON, file=workflow, branch="main", inputs=inputs)
        return self.started(since, wait)[0]

    def schedule(self, workflow: str, cron: str | None = None, wait: bool = True) -> Run:
        since = len(self.runs)
        self.emit("schedule", BOT, file=workflow, cron=cron)
        return self.started(since, wait)[0]

    def rerun(self, run: Run, wait: bool = True) -> Run:
        again = Run(run.id, run.workflow, run.event, run.sha, run.commit, run.branch, run.payload, PERSON, run.told, run.group, run.reads_only, run.attempt + 1)  # fmt: skip
        shutil.rmtree(self.artifacts / str(run.id), ignore_errors=True)
        self.queue(again)
        return self.started(len(self.runs) - 1, wait)[0]

    def started(self, since: int, wait: bool) -> list[Run]:
        if wait:
            self.wait()
        return self.runs[since:]

    def wait(self, timeout: float = 240) -> None:
        """Until no run waits or is under way."""
        deadline = time.monotonic() + timeout
        while not all(run.status == "completed" for run in self.runs):
            assert time.monotonic() < deadline, f"{[(run.workflow, run.status) for run in self.runs]}"
            time.sleep(0.01)

    @property
    def roles(self) -> list[dict[str, str]]:
        """Which jobs assumed which roles."""
        noted = self.folder / "roles"
        return [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []

    @property
    def problems(self) -> list[str]:
        return [f"{each.method} {each.path}: {problem}" for each in self.requests for problem in each.problems]

    def run_of(self, run: int, attempt: int | None = None) -> Run:
        found = [each for each in self.runs if each.id == run and attempt in (None, each.attempt)]
        if not found:
            raise Refused(404, "Not Found")
        return found[-1]

    # events

    def emit(self, event: str, login: str, **about: Any) -> None:
        """Starts the workflows that wait for this."""
        if login == BOT and event in ("push", "pull_request"):
            return  # what GITHUB_TOKEN does starts nothing; its pull requests' runs wait for a person's approval
        if event == "pull_request" and not self.sha(f"refs/pull/{about['pull']['number']}/merge"):
            return  # it conflicts
        with self.lock:
            commit, head, branch = self.place(event, about)
            for file, told in workflows.at(self, commit):
                trigger = workflows.trigger(told, event)
                if trigger is None or about.get("file", file) != file:
                    continue
                if not workflows.wanted(trigger, event, about, self.changed_by(event, about)):
                    continue
                payload = self.payload(event, about, login, trigger)
                fork = event == "pull_request" and about["pull"]["head"]["repo"]["full_name"] != self.full_name
                run = Run(
                    7000 + len(self.runs), file, event, head, commit, branch, payload, login, told, reads_only=fork
                )
                self.queue(run)
                if "file" in about:
                    return
            if "file" in about:
                raise Refused(422, f"Workflow {about['file']} has no '{event}' trigger")

    def place(self, event: str, about: dict[str, Any]) -> tuple[str, str, str]:
        """The commit to carry out, the one to show, and its branch."""
        if event == "pull_request":
            pull = about["pull"]
            return self.need(f"refs/pull/{pull['number']}/merge"), pull["head"]["sha"], pull["head"]["ref"]
        branch = about.get("branch", "main")
        sha = about.get("after") or self.need(branch)
        return sha, sha, branch

    def changed_by(self, event: str, about: dict[str, Any]) -> list[str]:
        if event == "push":
            return self.changed(about["before"], about["after"])
        if event == "pull_request":
            number = about["pull"]["number"]
            return self.changed(about["pull"]["base"]["sha"], f"refs/pull/{number}/merge")
        return []

    def payload(self, event: str, about: dict[str, Any], login: str, trigger: dict[str, Any]) -> dict[str, Any]:
        where = {"full_name": self.full_name, "name": self.name, "default_branch": "main", "private": self.private}
        told: dict[str, Any] = {"repository": where | {"owner": user(self.owner)}, "sender": user(login)}
        ref = f"refs/heads/{about.get('branch', 'main')}"
        if event == "push":
            before = about["before"] or "0" * 40
            told |= {
                "ref": ref,
                "before": before,
                "after": about["after"],
                "deleted": False,
                "created": not about["before"],
            }
            told |= {"head_commit": self.committed(about["after"]) | {"id": about["after"]}, "forced": False}
        elif event == "pull_request":
            pull = json.loads(json.dumps(about["pull"]))
            told |= {"action": about["action"], "number": pull["number"], "pull_request": pull}
        elif event == "workflow_dispatch":
            told |= {"ref": ref, "inputs": workflows.inputs(trigger, about["inputs"]), "workflow": about["file"]}
        elif event == "schedule":
            crons = [each["cron"] for each in trigger["schedule"]]
            assert about["cron"] in (None, *crons), (
                f"{about['file']} is not scheduled at {about['cron']}, but at {crons}"
            )
            told |= {"schedule": about["cron"] or crons[0]}
        return told | about.get("payload", {})

    # runs

    def queue(self, run: Run) -> None:
        with self.work:
            told = run.told.get("concurrency") or {}
            told = told if isinstance(told, dict) else {"group": told}
            known = workflows.context(run.payload, run.event, run.branch, run.told.get("name", run.workflow))
            run.group = workflows.text(str(told.get("group", "")), known)
            others = [each for each in self.runs if run.group and each.group == run.group]
            for each in others:
                if each.status == "queued" and told.get("queue") != "max":
                    each.status, each.conclusion = "completed", "cancelled"
            self.runs.append(run)
            self.work.notify_all()
        if workflows.text(str(told.get("cancel-in-progress", False)), known).lower() == "true":
            for each in others:
                each.send(signal.SIGINT) if each.status == "in_progress" else None

    def worker(self) -> None:
        while True:
            with self.work:
                self.work.wait_for(lambda: self.stopped or any(run.status == "queued" for run in self.runs))
                if self.stopped:
                    return
                run = next(run for run in self.runs if run.status == "queued")
                run.status = "in_progress"
            try:
                self.carry_out(run)
            except Exception:
                run.conclusion, run.log = run.conclusion or "startup_failure", run.log + traceback.format_exc()
            with self.lock:
                try:
                    self.followed(run)
                except Exception:  # a workflow that cannot be read
                    run.log += traceback.format_exc()
                run.status = "completed"

    def followed(self, run: Run) -> None:
        shown = run.shown(self) | {"status": "completed"}
        source = run.payload.get("pull_request", {}).get("head", {}).get("repo")
        shown["head_repository"] = source or {"full_name": self.full_name, "owner": user(self.owner)}
        flow = {"name": shown["name"], "path": shown["path"]}
        payload = {"action": "completed", "workflow_run": shown | {"workflow_id": 1}, "workflow": flow}
        self.emit("workflow_run", run.login, payload=payload, action="completed", of=shown)
