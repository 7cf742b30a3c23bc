"""GitHub's API, as far as the road needs it: https://docs.github.com/rest"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from mlops.client import http
from mlops.errors import UserError

BOT = "github-actions[bot]"  # whose is what GITHUB_TOKEN writes
_TRIES = 3


class GitHub:
    """One repository: that of the run, or `repository`. GITHUB_API_URL is respected, as GitHub Enterprise needs it."""

    def __init__(self, repository: str = ""):
        self.repository = repository or os.environ.get("GITHUB_REPOSITORY", "")
        if not self.repository:
            raise UserError("GITHUB_REPOSITORY", "", "set it to OWNER/NAME")
        url = os.environ.get("GITHUB_API_URL", "https://api.github.com")
        headers = {"accept": "application/vnd.github+json", "authorization": f"Bearer {_token()}"}
        headers |= {"x-github-api-version": "2022-11-28"}
        self._http = http(url, headers=headers, timeout=30)

    def ask(self, method: str, path: str, missing: bool = False, **body: Any) -> Any:
        """`path`: within the repository, or from / on. None for 404 if it may be `missing`."""
        url = path if path.startswith("/") else f"/repos/{self.repository}/{path}".rstrip("/")
        for left in reversed(range(_TRIES)):
            try:
                answer = self._http.request(method, url, json=body or None)
            except httpx.HTTPError as error:
                if left and method == "GET":
                    continue
                raise UserError("github", f"{method} {url}", f"does not answer ({type(error).__name__})") from None
            if answer.status_code < 500 or not left or method != "GET":
                break
        if missing and answer.status_code == 404:
            return None
        if answer.is_error:
            raise UserError("github", f"{method} {url}", _said(answer))
        return answer.json() if answer.content else None

    def all(self, path: str, key: str = "") -> Iterator[Any]:
        """Every item of every page; `key`: where in the answer they are."""
        separator = "&" if "?" in path else "?"
        for page in range(1, 1000):
            found = self.ask("GET", f"{path}{separator}per_page=100&page={page}")
            items = found[key] if key else found
            yield from items
            if len(items) < 100:
                return

    def propose(self, branch: str, files: dict[str, str], title: str, body: str) -> str:
        """One open pull request that changes `files` of the default branch, opened or moved on; its address."""
        base = self.ask("GET", "")["default_branch"]
        main = self.ask("GET", f"git/ref/heads/{base}")["object"]["sha"]
        entries = [{"path": path, "mode": "100644", "type": "blob", "content": text} for path, text in files.items()]
        tree = self.ask("GET", f"git/commits/{main}")["tree"]["sha"]
        made = self.ask("POST", "git/trees", base_tree=tree, tree=entries)["sha"]
        commit = self.ask("POST", "git/commits", message=title, tree=made, parents=[main])["sha"]
        if self.ask("GET", f"git/ref/heads/{branch}", missing=True):
            self.ask("PATCH", f"git/refs/heads/{branch}", sha=commit, force=True)
        else:
            self.ask("POST", "git/refs", ref=f"refs/heads/{branch}", sha=commit)
        if opened := self.opened(branch):
            return self.ask("PATCH", f"pulls/{opened['number']}", title=title, body=body)["html_url"]
        return self.ask("POST", "pulls", head=branch, base=base, title=title, body=body)["html_url"]

    def opened(self, branch: str) -> Any:
        """The open pull request of a branch, if there is one."""
        return next(self.all(f"pulls?state=open&head={self.owner}:{branch}"), None)

    def file(self, path: str, ref: str) -> str:
        """Its text on a branch; '' if it is missing."""
        found = self.ask("GET", f"contents/{path}?ref={ref}", missing=True)
        return base64.b64decode(found["content"]).decode() if found else ""

    def run(self, run: str, attempt: str) -> Any:
        return self.ask("GET", f"actions/runs/{run}/attempts/{attempt}")

    @property
    def owner(self) -> str:
        return self.repository.partition("/")[0]


def _token() -> str:
    if found := os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN"):
        return found
    try:
        done = subprocess.run(["gh", "auth", "token"], capture_output=True, text=True)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        raise UserError(
            "GITHUB_TOKEN", "", "set it to a token that may administer the repository, or log in: gh auth login"
        )
    return done.stdout.strip()


def _said(answer: httpx.Response) -> str:
    try:
        found = answer.json()
        said = "; ".join([found["message"], *(str(each) for each in found.get("errors", []))])
    except (ValueError, KeyError, TypeError):
        said = answer.text
    hint = "; the token lacks that permission, or the plan that feature" if answer.status_code == 403 else ""
    return f"answered {answer.status_code}: {said[:300]}{hint}"


def run_url() -> str:
    env = os.environ
    if "GITHUB_RUN_ID" not in env:
        return ""
    return f"{env.get('GITHUB_SERVER_URL', '')}/{env.get('GITHUB_REPOSITORY', '')}/actions/runs/{env['GITHUB_RUN_ID']}"


def output(**values: Any) -> None:
    """Of a step, to later ones; shown where there is no workflow."""
    lines = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]
    if any("\n" in line or "\r" in line for line in lines):
        raise UserError("output", ", ".join(values), "a value has more than one line")
    _append("GITHUB_OUTPUT", "\n".join(lines))


def summary(text: str) -> None:
    """Markdown, on the run's page."""
    _append("GITHUB_STEP_SUMMARY", text)


def _append(variable: str, text: str) -> None:
    if not (file := os.environ.get(variable)):
        print(text, file=sys.stderr)
        return
    with Path(file).open("a", encoding="utf-8") as target:
        target.write(text + "\n")
