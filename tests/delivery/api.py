"""What GitHub's REST API answers about one repository: its state, over a real bare git repository.

A method per operation, named as GitHub's description names it (`pulls/create` is pulls_create). They return what
matters; openapi.complete adds what GitHub always tells besides.
"""

from __future__ import annotations

import base64
import binascii
import os
import subprocess
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOT = "github-actions[bot]"
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


class Refused(Exception):  # noqa: N818
    def __init__(self, status: int, message: str, **more: Any):
        super().__init__(message)
        self.status, self.answer = status, {"message": message, "documentation_url": "", "status": str(status)} | more


@dataclass
class Ask:
    """A request that GitHub's description allows."""

    path: dict[str, str]
    query: dict[str, str]
    body: Any
    login: str

    @property
    def number(self) -> int:
        return int(next(self.path[name] for name in ("pull_number", "issue_number") if name in self.path))


@dataclass
class Answer:
    value: Any
    status: int


@dataclass
class Environment:
    variables: dict[str, str] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)  # patterns; they count if `policy` is "custom"
    policy: str = ""  # "protected", "custom", or any branch may deploy
    reviewers: list[dict[str, Any]] = field(default_factory=list)
    wait_timer: int = 0


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def user(login: str) -> dict[str, Any]:
    return {"login": login, "id": zlib.crc32(login.encode()), "type": "Bot" if login.endswith("[bot]") else "User"}


class Api:
    plan = "team"  # free-private: no protection at all; team: no reviewers in private repositories; enterprise: all
    private = True

    def __init__(self, bare: Path, owner: str, name: str):
        self.bare, self.owner, self.name, self.full_name = bare, owner, name, f"{owner}/{name}"
        self.url = "https://example.test"
        self.variables: dict[str, str] = {}
        self.environments: dict[str, Environment] = {}
        self.issues: dict[int, dict[str, Any]] = {}
        self.pulls: dict[int, dict[str, Any]] = {}
        self.comments: dict[int, dict[str, Any]] = {}
        self.rulesets: dict[int, dict[str, Any]] = {}
        self.workflow_permissions = {"default_workflow_permissions": "read", "can_approve_pull_request_reviews": False}
        self._last = 0
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", bare], check=True)
        for setting in ("uploadpack.allowAnySHA1InWant", "receive.shallowUpdate"):
            self.git("config", setting, "true")

    def emit(self, event: str, login: str, **about: Any) -> None:
        """Something happened that workflows may wait for."""

    def run_of(self, run: int, attempt: int | None = None) -> Any:
        raise NotImplementedError

    # git

    def git(self, *arguments: str | Path, given: str | bytes = b"", **env: str) -> str:
        given = given.encode() if isinstance(given, str) else given
        command = ["git", "-C", self.bare, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, env=os.environ | env)
        if done.returncode:
            raise Refused(422, done.stderr.decode().strip() or f"git {arguments[0]}: {done.returncode}")
        return done.stdout.decode(errors="replace").removesuffix("\n")

    def sha(self, name: str) -> str | None:
        """Of a commit, by branch, full ref or SHA."""
        for each in (f"refs/heads/{name}", name):
            try:
                return self.git("rev-parse", "--verify", "--quiet", f"{each}^{{commit}}")
            except Refused:
                continue
        return None

    def need(self, name: str) -> str:
        if found := self.sha(name):
            return found
        raise Refused(404, f"No commit found for the ref {name}")

    def changed(self, before: str | None, after: str) -> list[str]:
        return self.git("diff", "--name-only", "--no-renames", before or EMPTY_TREE, after).splitlines()

    def commit_tree(self, tree: str, parents: list[str], message: str, login: str, **env: str) -> str:
        who = {"NAME": login, "EMAIL": f"{login}@users.noreply.example.test"}
        told = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()} | env
        marks = [mark for parent in parents for mark in ("-p", parent)]
        return self.git("commit-tree", tree, *marks, given=message, **told)

    def moved(self, branch: str, before: str | None, after: str | None, login: str) -> None:
        """A branch has a new head, or is gone."""

    def git_get_ref(self, ask: Ask) -> Any:
        name = f"refs/{ask.path['ref']}"
        if found := [each for each in self.refs(name) if each["ref"] == name]:
            return found[0]
        raise Refused(404, "Not Found")

    def refs(self, start: str) -> list[dict[str, Any]]:
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname) %(objecttype)").splitlines()
        rows = (line.rsplit(" ", 2) for line in lines if line.startswith(start))
        return [{"ref": name, "object": {"sha": sha, "type": kind}} for name, sha, kind in rows]

    def git_list_matching_refs(self, ask: Ask) -> Any:
        return self.refs(f"refs/{ask.path['ref']}")

    def git_create_ref(self, ask: Ask) -> Any:
        name = ask.body["ref"]
        if not name.startswith("refs/") or name.count("/") < 2:
            raise Refused(422, "Reference name must start with 'refs/' and contain at least two slashes")
        if any(each["ref"] == name for each in self.refs(name)):
            raise Refused(422, "Reference already exists")
        return self.move(name, None, ask.body["sha"], ask.login)

    def git_update_ref(self, ask: Ask) -> Any:
        name = f"refs/{ask.path['ref']}"
        before, after = self.sha(name), ask.body["sha"]
        if not before:
            raise Refused(422, "Reference does not exist")
        if not ask.body.get("force") and self.git("merge-base", before, after) != before:
            raise Refused(422, "Update is not a fast forward")
        return self.move(name, before, after, ask.login)

    def git_delete_ref(self, ask: Ask) -> Any:
        name = f"refs/{ask.path['ref']}"
        if not (before := self.sha(name)):
            raise Refused(422, "Reference does not exist")
        self.git("update-ref", "-d", name)
        if name.startswith("refs/heads/"):
            self.moved(name.removeprefix("refs/heads/"), before, None, ask.login)

    def move(self, name: str, before: str | None, after: str, login: str) -> dict[str, Any]:
        if not self.sha(after):
            raise Refused(422, "Object does not exist")
        self.git("update-ref", name, after)
        if name.startswith("refs/heads/") and before != after:
            self.moved(name.removeprefix("refs/heads/"), before, after, login)
        return {"ref": name, "object": {"sha": after, "type": "commit"}}

    def git_create_blob(self, ask: Ask) -> Any:
        content = ask.body["content"]
        given = decoded(content) if ask.body.get("encoding") == "base64" else content
        return {"sha": self.git("hash-object", "-w", "--stdin", given=given), "url": ""}

    def git_create_tree(self, ask: Ask) -> Any:
        changes = []
        for each in ask.body["tree"]:
            sha = each.get("sha")
            if "content" in each:
                sha = self.git("hash-object", "-w", "--stdin", given=each["content"])
            elif sha:
                self.git("cat-file", "-e", sha)
            changes.append(f"{each['mode'] if sha else 0} {sha or '0' * 40}\t{each['path']}\n")
        sha = self.tree(ask.body.get("base_tree", EMPTY_TREE), "".join(changes))
        rows = (line.split(None, 3) for line in self.git("ls-tree", sha).splitlines())
        named = [{"mode": mode, "type": kind, "sha": sha, "path": path} for mode, kind, sha, path in rows]
        return {"sha": sha, "tree": named, "truncated": False}

    def tree(self, base: str, changes: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            env = {"GIT_INDEX_FILE": f"{folder}/index"}
            self.git("read-tree", base, **env) if base != EMPTY_TREE else None
            self.git("update-index", "--index-info", given=changes, **env)
            return self.git("write-tree", **env)

    def git_create_commit(self, ask: Ask) -> Any:
        author = ask.body.get("author", {})
        env = {f"GIT_AUTHOR_{key.upper()}": value for key, value in author.items()}
        return self.committed(
            self.commit_tree(ask.body["tree"], ask.body.get("parents", []), ask.body["message"], ask.login, **env)
        )

    def git_get_commit(self, ask: Ask) -> Any:
        return self.committed(self.need(ask.path["commit_sha"]))

    def committed(self, sha: str) -> dict[str, Any]:
        shown = self.git("show", "-s", "--format=%T%x00%P%x00%an%x00%ae%x00%aI%x00%cn%x00%ce%x00%cI%x00%B", sha)
        tree, parents, *people, message = shown.split("\0")
        author, committer = (dict(zip(("name", "email", "date"), people[n : n + 3], strict=True)) for n in (0, 3))
        return {
            "sha": sha, "tree": {"sha": tree}, "parents": [{"sha": each} for each in parents.split()],
            "message": message.rstrip("\n"), "author": author, "committer": committer,
        }  # fmt: skip

    def listed(self, sha: str) -> dict[str, Any]:
        """A commit as lists of commits show it."""
        commit = self.committed(sha)
        return {"sha": sha, "parents": commit.pop("parents"), "commit": {k: commit[k] for k in commit if k != "sha"}}

    def files(self, before: str, after: str) -> list[dict[str, Any]]:
        kinds = {"A": "added", "M": "modified", "D": "removed", "T": "changed"}
        rows = [
            line.split("\t") for line in self.git("diff", "--name-status", "--no-renames", before, after).splitlines()
        ]
        counts = [
            line.split("\t") for line in self.git("diff", "--numstat", "--no-renames", before, after).splitlines()
        ]
        return [
            {"sha": None if kind == "D" else self.git("rev-parse", f"{after}:{path}"), "filename": path}
            | {"status": kinds[kind], "patch": self.git("diff", before, after, "--", path).partition("\n@@")[2]}
            | dict(zip(("additions", "deletions"), (int(n) if n != "-" else 0 for n in count[:2]), strict=True))
            for (kind, path), count in zip(rows, counts, strict=True)
        ]

    def repos_compare_commits_with_basehead(self, ask: Ask) -> Any:
        base, head = (self.need(each) for each in ask.path["basehead"].split("...", 1))
        common = self.git("merge-base", base, head)
        behind, ahead = map(int, self.git("rev-list", "--left-right", "--count", f"{base}...{head}").split())
        commits = self.git("rev-list", "--reverse", f"{base}..{head}").splitlines()
        return {
            "status": {(0, 0): "identical", (1, 0): "ahead", (0, 1): "behind"}.get((ahead > 0, behind > 0), "diverged"),
            "ahead_by": ahead, "behind_by": behind, "total_commits": ahead, "base_commit": self.listed(base),
            "merge_base_commit": self.listed(common), "commits": [self.listed(each) for each in commits],
            "files": self.files(common, head),
        }  # fmt: skip

    def repos_get_content(self, ask: Ask) -> Any:
        commit, path = self.need(ask.query.get("ref", "main")), ask.path["path"].rstrip("/")
        try:
            kind, sha = self.git("cat-file", "-t", f"{commit}:{path}"), self.git("rev-parse", f"{commit}:{path}")
        except Refused:
            raise Refused(404, "Not Found") from None
        if kind == "tree":
            rows = (line.split(None, 4) for line in self.git("ls-tree", "-l", sha).splitlines())
            return [
                {"type": {"blob": "file", "tree": "dir"}[kind], "name": name, "path": f"{path}/{name}".lstrip("/")}
                | {"sha": sha, "size": 0 if size == "-" else int(size)}
                for _, kind, sha, size, name in rows
            ]
        raw = subprocess.run(["git", "-C", self.bare, "cat-file", "blob", sha], capture_output=True, check=True).stdout
        coded = base64.encodebytes(raw).decode()
        said = {"type": "file", "encoding": "base64", "size": len(raw), "name": path.rpartition("/")[2]}
        return said | {"path": path, "sha": sha, "content": coded}

    def repos_create_or_update_file_contents(self, ask: Ask) -> Any:
        body, path, branch = ask.body, ask.path["path"], ask.body.get("branch", "main")
        before = self.need(f"refs/heads/{branch}")
        found = self.git("ls-tree", before, path).split()
        if found and "sha" not in body:
            raise Refused(422, 'Invalid request.\n\n"sha" wasn\'t supplied.')
        if (found[2] if found else None) != body.get("sha"):
            raise Refused(409, f"{path} does not match {body.get('sha')}")
        blob = self.git("hash-object", "-w", "--stdin", given=decoded(body["content"]))
        tree = self.tree(before, f"{found[0] if found else '100644'} {blob}\t{path}\n")
        commit = self.commit_tree(tree, [before], body["message"], ask.login)
        self.move(f"refs/heads/{branch}", before, commit, ask.login)
        told = {"content": {"type": "file", "name": Path(path).name, "path": path, "sha": blob}}
        return Answer(told | {"commit": self.committed(commit)}, 200 if found else 201)


def decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content)
    except binascii.Error as error:
        raise Refused(422, f"content is not valid Base64: {error}") from None
