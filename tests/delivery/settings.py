"""The part of GitHub's API that says how a repository is set up, and what its workflows did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.delivery.api import BOT, Answer, Ask, Environment, Refused, now, user
from tests.delivery.pulls import Pulls


def variable(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "value": value, "created_at": now(), "updated_at": now()}


class Settings(Pulls):
    artifacts: Path
    runs: list[Any]

    def users_get_authenticated(self, ask: Ask) -> Any:
        if ask.login == BOT:
            raise Refused(403, "Resource not accessible by integration")
        return user(ask.login)

    def repos_get(self, ask: Ask) -> Any:
        owner = user(self.owner) | {"id": 123}
        told = {"id": 456, "name": self.name, "full_name": self.full_name, "owner": owner, "private": self.private}
        return told | {"default_branch": "main", "visibility": "private" if self.private else "public"}

    def repos_codeowners_errors(self, ask: Ask) -> Any:
        return {"errors": []}

    def actions_get_custom_oidc_sub_claim_for_repo(self, ask: Ask) -> Any:
        prefix = f"repo:{self.owner}@123/{self.name}@456"
        # False beside an immutable prefix has been seen: who derives the one from the other is wrong.
        return {"use_default": True, "use_immutable_subject": False, "sub_claim_prefix": prefix}

    def actions_get_github_actions_default_workflow_permissions_repository(self, ask: Ask) -> Any:
        return self.workflow_permissions

    def actions_set_github_actions_default_workflow_permissions_repository(self, ask: Ask) -> Any:
        self.workflow_permissions |= ask.body or {}

    # variables

    def _variables(self, ask: Ask) -> dict[str, str]:
        return self._environment(ask).variables if "environment_name" in ask.path else self.variables

    def _list(self, ask: Ask) -> Any:
        return [variable(*each) for each in sorted(self._variables(ask).items())]

    def _create(self, ask: Ask) -> Any:
        if (name := ask.body["name"].upper()) in self._variables(ask):
            raise Refused(409, "Already exists - Variable already exists")
        self._variables(ask)[name] = ask.body["value"]
        return {}

    def _get(self, ask: Ask) -> Any:
        if (name := ask.path["name"].upper()) in self._variables(ask):
            return variable(name, self._variables(ask)[name])
        raise Refused(404, "Not Found")

    def _update(self, ask: Ask) -> Any:
        name = self._get(ask)["name"]
        self._variables(ask)[name] = ask.body.get("value", self._variables(ask)[name])

    actions_list_repo_variables = actions_list_environment_variables = _list
    actions_create_repo_variable = actions_create_environment_variable = _create
    actions_get_repo_variable = actions_get_environment_variable = _get
    actions_update_repo_variable = actions_update_environment_variable = _update

    # environments

    def _environment(self, ask: Ask) -> Environment:
        if found := self.environments.get(ask.path["environment_name"]):
            return found
        raise Refused(404, "Not Found")

    def _shown(self, name: str) -> dict[str, Any]:
        each, rules = self.environments[name], []
        if each.wait_timer:
            rules.append({"type": "wait_timer", "wait_timer": each.wait_timer})
        if each.reviewers:
            reviewers = [
                {"type": who["type"], "reviewer": user(str(who["id"])) | {"id": who["id"]}} for who in each.reviewers
            ]
            rules.append({"type": "required_reviewers", "reviewers": reviewers})
        policy = {"protected_branches": each.policy == "protected", "custom_branch_policies": each.policy == "custom"}
        if each.policy:
            rules.append({"type": "branch_policy"})
        return {"name": name, "protection_rules": rules, "deployment_branch_policy": policy if each.policy else None}

    def repos_get_all_environments(self, ask: Ask) -> Any:
        return [self._shown(name) for name in self.environments]

    def repos_get_environment(self, ask: Ask) -> Any:
        self._environment(ask)
        return self._shown(ask.path["environment_name"])

    def repos_create_or_update_environment(self, ask: Ask) -> Any:
        """What the body leaves out is reset, as on GitHub."""
        name, body = ask.path["environment_name"], ask.body or {}
        reviewers, timer, policy = (body.get(key) for key in ("reviewers", "wait_timer", "deployment_branch_policy"))
        if self.private and (
            ((reviewers or timer) and self.plan != "enterprise") or (policy and self.plan == "free-private")
        ):
            rule = "required reviewers" if reviewers else "wait timer" if timer else "branch policy"
            raise Refused(
                422,
                "Failed to create the environment protection rule. Please ensure the billing plan supports the"
                f" {rule} protection rule.",
            )
        if policy and policy["protected_branches"] == policy["custom_branch_policies"]:
            raise Refused(422, "protected_branches and custom_branch_policies cannot have the same value")
        kind = "protected" if policy and policy["protected_branches"] else "custom" if policy else ""
        made = self.environments.setdefault(name, Environment())
        made.reviewers, made.wait_timer, made.policy = reviewers or [], timer or 0, kind
        return self._shown(name)

    def _custom(self, ask: Ask) -> Environment:
        if (found := self._environment(ask)).policy == "custom":
            return found
        raise Refused(404, "Not Found")

    def repos_list_deployment_branch_policies(self, ask: Ask) -> Any:
        return [{"id": n, "name": name, "type": "branch"} for n, name in enumerate(self._custom(ask).branches, 1)]

    def repos_create_deployment_branch_policy(self, ask: Ask) -> Any:
        branches, name = self._custom(ask).branches, ask.body["name"]
        if name in branches:
            return Answer(None, 303)
        branches.append(name)
        return {"id": len(branches), "name": name, "type": ask.body.get("type", "branch")}

    # rulesets

    def _ruleset(self, ask: Ask) -> dict[str, Any]:
        if found := self.rulesets.get(int(ask.path["ruleset_id"])):
            return found
        raise Refused(404, "Not Found")

    def _plan_allows(self) -> None:
        if self.private and self.plan == "free-private":
            raise Refused(403, "Upgrade to GitHub Pro or make this repository public to enable this feature.")

    def repos_get_repo_rulesets(self, ask: Ask) -> Any:
        self._plan_allows()
        left_out = ("rules", "conditions", "bypass_actors")
        return [{k: v for k, v in each.items() if k not in left_out} for each in self.rulesets.values()]

    def repos_create_repo_ruleset(self, ask: Ask) -> Any:
        self._plan_allows()
        if any(each["name"] == ask.body["name"] for each in self.rulesets.values()):
            raise Refused(422, "Validation Failed", errors=["Name must be unique"])
        told = {"id": self.next(), "target": "branch", "source_type": "Repository", "source": self.full_name}
        self.rulesets[told["id"]] = told | ask.body
        return self.rulesets[told["id"]]

    def repos_get_repo_ruleset(self, ask: Ask) -> Any:
        return self._ruleset(ask)

    def repos_update_repo_ruleset(self, ask: Ask) -> Any:
        self._plan_allows()
        self._ruleset(ask).update(ask.body or {})
        return self._ruleset(ask)

    # runs

    def actions_get_workflow_run(self, ask: Ask) -> Any:
        return self.run_of(int(ask.path["run_id"])).shown(self)

    def actions_get_workflow_run_attempt(self, ask: Ask) -> Any:
        return self.run_of(int(ask.path["run_id"]), int(ask.path["attempt_number"])).shown(self)

    def actions_list_jobs_for_workflow_run(self, ask: Ask) -> Any:
        run = self.run_of(int(ask.path["run_id"]))
        told = {"run_id": run.id, "run_attempt": run.attempt, "head_sha": run.sha, "status": "completed"}
        jobs = [(n, each) for n, each in enumerate(run.jobs.items(), 1)]
        return [told | {"id": run.id * 100 + n, "name": name, "conclusion": end} for n, (name, end) in jobs]

    def actions_list_workflow_run_artifacts(self, ask: Ask) -> Any:
        run = self.run_of(int(ask.path["run_id"]))
        folders = sorted(each for each in (self.artifacts / str(run.id)).glob("*") if each.is_dir())
        named = [each for each in folders if ask.query.get("name", each.name) == each.name]
        told = {"expired": False, "workflow_run": {"id": run.id, "head_sha": run.sha, "head_branch": run.branch}}
        return [
            told
            | {"id": run.id * 100 + n, "name": each.name}
            | {"size_in_bytes": sum(file.stat().st_size for file in each.rglob("*") if file.is_file())}
            for n, each in enumerate(named, 1)
        ]

    def actions_create_workflow_dispatch(self, ask: Ask) -> Any:
        file, inputs = ask.path["workflow_id"].rpartition("/")[2], ask.body.get("inputs", {})
        self.emit("workflow_dispatch", ask.login, file=file, branch=ask.body["ref"], inputs=inputs)
        if not ask.body.get("return_run_details"):
            return Answer(None, 204)
        run = self.runs[-1]
        link = run.shown(self)["html_url"]
        return {
            "workflow_run_id": run.id,
            "run_url": f"{self.url}/repos/{self.full_name}/actions/runs/{run.id}",
            "html_url": link,
        }

    def repos_create_dispatch_event(self, ask: Ask) -> Any:
        payload = {"action": ask.body["event_type"], "client_payload": ask.body.get("client_payload", {})}
        self.emit("repository_dispatch", ask.login, payload=payload, action=ask.body["event_type"])
