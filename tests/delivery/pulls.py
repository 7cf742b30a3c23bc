"""Pull requests, issues and comments of GitHub's API."""

from __future__ import annotations

from typing import Any

from tests.delivery.api import Api, Ask, Refused, now, user

FULL_ONLY = {"merged", "merged_by", "mergeable", "mergeable_state", "maintainer_can_modify", "changed_files", "commits"}


class Pulls(Api):
    def moved(self, branch: str, before: str | None, after: str | None, login: str) -> None:
        if after:
            self.emit("push", login, branch=branch, before=before, after=after)
        for pull in (each for each in self.pulls.values() if each["state"] == "open"):
            if pull["head"]["label"] == f"{self.owner}:{branch}":
                self.synchronize(pull, after, login) if after else self.closed(pull, login)
            elif pull["base"]["ref"] == branch:
                self.try_merge(pull)

    def synchronize(self, pull: dict[str, Any], sha: str, login: str, action: str = "synchronize") -> None:
        pull["head"]["sha"], pull["base"]["sha"] = sha, self.need(pull["base"]["ref"])
        self.git("update-ref", f"refs/pull/{pull['number']}/head", sha)
        self.try_merge(pull)
        self.emit("pull_request", login, pull=pull, action=action)

    def try_merge(self, pull: dict[str, Any]) -> None:
        """What workflows of the pull request are run on."""
        tree, head, name = self.merged_tree(pull), pull["head"]["sha"], f"refs/pull/{pull['number']}/merge"
        pull["mergeable"] = tree is not None
        if tree:
            parents = [self.need(pull["base"]["ref"]), head]
            self.git("update-ref", name, self.commit_tree(tree, parents, f"Merge {head} into {parents[0]}", "ann"))
        elif self.sha(name):
            self.git("update-ref", "-d", name)

    def merged_tree(self, pull: dict[str, Any]) -> str | None:
        try:
            return self.git("merge-tree", "--write-tree", pull["base"]["ref"], pull["head"]["sha"])
        except Refused:
            return None

    def pulls_list(self, ask: Ask) -> Any:
        state, head, base = ask.query.get("state", "open"), ask.query.get("head"), ask.query.get("base")
        pulls = [
            {k: v for k, v in pull.items() if k not in FULL_ONLY}
            for pull in self.pulls.values()
            if state in ("all", pull["state"])
            and (not head or head == pull["head"]["label"])
            and (not base or base == pull["base"]["ref"])
        ]
        newest_first = ask.query.get("direction", "desc") == "desc"
        return sorted(pulls, key=lambda each: each["number"], reverse=newest_first)

    def pulls_create(self, ask: Ask) -> Any:
        head, base = ask.body["head"].removeprefix(f"{self.owner}:"), ask.body["base"]
        return self.opened(head, base, ask.body.get("title") or head, ask.body.get("body"), ask.login)

    def opened(self, head: str, base: str, title: str, body: str | None, login: str, fork: str = "") -> dict[str, Any]:
        where, label = (
            (f"refs/forks/{fork}/{head}", f"{fork.partition('/')[0]}:{head}")
            if fork
            else (head, f"{self.owner}:{head}")
        )
        for name, place in (("head", where), ("base", base)):
            if not self.sha(place):
                raise Refused(
                    422, "Validation Failed", errors=[{"resource": "PullRequest", "field": name, "code": "invalid"}]
                )
        sha, common = self.need(where), {"resource": "PullRequest", "code": "custom"}
        if any(each["head"]["label"] == label and each["state"] == "open" for each in self.pulls.values()):
            text = f"A pull request already exists for {label}."
            raise Refused(422, "Validation Failed", errors=[common | {"message": text}])
        if sha == self.git("merge-base", self.need(base), sha):
            text = f"No commits between {base} and {head}"
            raise Refused(422, "Validation Failed", errors=[common | {"message": text}])
        own, number = {"full_name": self.full_name, "name": self.name, "owner": user(self.owner)}, self.next()
        theirs = {
            "full_name": fork,
            "name": fork.rpartition("/")[2],
            "owner": user(fork.partition("/")[0]),
            "fork": True,
        }
        pull = self.pulls[number] = self.issue(number, title, body, login, "pull") | {
            "head": {"label": label, "ref": head, "sha": sha, "repo": theirs if fork else own, "user": user(label.partition(":")[0])},
            "base": {"label": f"{self.owner}:{base}", "ref": base, "sha": self.need(base), "repo": own, "user": user(self.owner)},
            "merged": False, "merged_at": None, "merge_commit_sha": None, "mergeable": True, "merged_by": None,
        }  # fmt: skip
        self.synchronize(pull, sha, login, "opened")
        return pull

    def next(self) -> int:
        self._last += 1
        return self._last

    def issue(self, number: int, title: str, body: str | None, login: str, kind: str = "issues") -> dict[str, Any]:
        return {
            "number": number, "id": 10**6 + number, "title": title, "body": body, "state": "open", "user": user(login),
            "labels": [], "created_at": now(), "updated_at": now(), "closed_at": None, "assignees": [],
            "html_url": f"{self.url}/{self.full_name}/{kind}/{number}",
        }  # fmt: skip

    def of(self, kind: str, number: int) -> dict[str, Any]:
        found = self.pulls.get(number) or (self.issues.get(number) if kind == "issue" else None)
        if not found:
            raise Refused(404, "Not Found")
        return found

    def pulls_get(self, ask: Ask) -> Any:
        return self.of("pull", ask.number)

    def pulls_update(self, ask: Ask) -> Any:
        pull, state = self.of("pull", ask.number), ask.body.get("state")
        pull |= {key: value for key, value in ask.body.items() if key in ("title", "body")} | {"updated_at": now()}
        if state == "closed" and pull["state"] == "open":
            self.closed(pull, ask.login)
        elif state == "open" and pull["state"] == "closed":
            if pull["merged"]:
                raise Refused(422, "Validation Failed", errors=[{"resource": "PullRequest", "code": "invalid"}])
            pull |= {"state": "open", "closed_at": None}
            self.synchronize(pull, self.sha(pull["head"]["ref"]) or pull["head"]["sha"], ask.login, "reopened")
        return pull

    def closed(self, pull: dict[str, Any], login: str) -> None:
        pull |= {"state": "closed", "closed_at": now()}
        self.emit("pull_request", login, pull=pull, action="closed")

    def pulls_list_files(self, ask: Ask) -> Any:
        pull = self.of("pull", ask.number)
        return self.files(self.git("merge-base", pull["base"]["sha"], pull["head"]["sha"]), pull["head"]["sha"])

    def pulls_merge(self, ask: Ask) -> Any:
        body, pull = ask.body or {}, self.of("pull", ask.number)
        base, head, method = self.need(pull["base"]["ref"]), pull["head"]["sha"], body.get("merge_method", "merge")
        if pull["state"] == "closed" or method == "rebase" or not (tree := self.merged_tree(pull)):
            raise Refused(405, "Pull Request is not mergeable")
        if body.get("sha", head) != head:
            raise Refused(409, "Head branch was modified. Review and try the merge again.")
        squash = method == "squash"
        title = body.get("commit_title") or (
            f"{pull['title']} (#{pull['number']})"
            if squash
            else f"Merge pull request #{pull['number']} from {pull['head']['label'].replace(':', '/')}"
        )
        message = f"{title}\n\n{body.get('commit_message') or pull['title']}\n"
        commit = self.commit_tree(tree, [base] if squash else [base, head], message, ask.login)
        pull |= {"merged": True, "merged_at": now(), "merge_commit_sha": commit, "merged_by": user(ask.login)}
        pull |= {"mergeable": None}
        self.closed(pull, ask.login)
        self.move(f"refs/heads/{pull['base']['ref']}", base, commit, ask.login)
        return {"sha": commit, "merged": True, "message": "Pull Request successfully merged"}

    def repos_list_pull_requests_associated_with_commit(self, ask: Ask) -> Any:
        sha = self.need(ask.path["commit_sha"])

        def holds(pull: dict[str, Any]) -> bool:
            return sha in self.git("rev-list", pull["head"]["sha"], f"^{pull['base']['sha']}").split()

        pulls = [each for each in self.pulls.values() if sha == each["merge_commit_sha"] or holds(each)]
        return [{k: v for k, v in pull.items() if k not in FULL_ONLY} for pull in pulls]

    def issues_list_for_repo(self, ask: Ask) -> Any:
        query = ask.query
        wanted = {each for each in query.get("labels", "").split(",") if each}
        return [
            issue
            for _, issue in sorted(
                (self.issues | {n: self.as_issue(p) for n, p in self.pulls.items()}).items(), reverse=True
            )
            if query.get("state", "open") in ("all", issue["state"])
            and wanted <= {label["name"] for label in issue["labels"]}
            and query.get("creator", issue["user"]["login"]) == issue["user"]["login"]
        ]

    def as_issue(self, pull: dict[str, Any]) -> dict[str, Any]:
        own = self.issue(0, "", None, "")
        return {key: pull[key] for key in own} | {"pull_request": {"merged_at": pull["merged_at"], "url": ""}}

    def issues_create(self, ask: Ask) -> Any:
        number = self.next()
        issue = self.issues[number] = self.issue(number, str(ask.body["title"]), ask.body.get("body"), ask.login)
        return issue | labelled(issue, ask.body)

    def issues_get(self, ask: Ask) -> Any:
        found = self.of("issue", ask.number)
        return self.as_issue(found) if ask.number in self.pulls else found

    def issues_update(self, ask: Ask) -> Any:
        issue = self.of("issue", ask.number)
        issue |= {key: ask.body[key] for key in ("title", "body", "state", "state_reason") if key in ask.body}
        issue |= {"updated_at": now(), "closed_at": now() if issue["state"] == "closed" else None}
        labelled(issue, ask.body)
        return self.issues_get(ask)

    def issues_list_comments(self, ask: Ask) -> Any:
        self.of("issue", ask.number)
        return [each for each in self.comments.values() if each["issue_url"].endswith(f"/issues/{ask.number}")]

    def issues_create_comment(self, ask: Ask) -> Any:
        self.of("issue", ask.number)
        number, where = self.next() + 10**6, f"{self.url}/repos/{self.full_name}/issues"
        comment = {
            "id": number,
            "body": ask.body["body"],
            "user": user(ask.login),
            "issue_url": f"{where}/{ask.number}",
        }
        comment |= {"html_url": f"{self.url}/{self.full_name}/issues/{ask.number}#issuecomment-{number}"}
        comment |= {"url": f"{where}/comments/{number}", "created_at": now(), "updated_at": now()}
        self.comments[number] = comment
        return comment

    def comment(self, ask: Ask) -> dict[str, Any]:
        if found := self.comments.get(int(ask.path["comment_id"])):
            return found
        raise Refused(404, "Not Found")

    issues_get_comment = comment

    def issues_update_comment(self, ask: Ask) -> Any:
        comment = self.comment(ask)
        comment |= {"body": ask.body["body"], "updated_at": now()}
        return comment

    def issues_delete_comment(self, ask: Ask) -> Any:
        del self.comments[self.comment(ask)["id"]]


def labelled(issue: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    if "labels" in body:
        issue["labels"] = [{"name": each if isinstance(each, str) else each["name"]} for each in body["labels"]]
    return issue
