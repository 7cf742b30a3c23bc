"""A copy of this template becomes a team's own: its files, then its repository on GitHub, and last the switch."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cli.delivery import road as roads
from cli.delivery.git import git
from cli.delivery.github import GitHub
from cli.delivery.road import Road
from cli.delivery.upgrade import RECORD
from mlops.errors import UserError
from mlops.keys import Keyring, Role

SWITCH, RUNNER = "MLOPS_ENVIRONMENTS", "MLOPS_RUNNER"
_STACK = "environments/{}/Pulumi.{}.yaml"
_EXAMPLES, _EVIDENCE = "training/models/*/.example", "docs/proofs"
_NO_NAME, _NO_OWNERS = "mlops", r"@your-org/[\w-]+"
_NO_ACCOUNT = r"0{12}(?!:role/yours\b)"  # an example that only a person can replace, and that doctor names until then
_REFUSED = "answered 409(?!: Already)|Upgrade to|billing plan"  # by an organization or a plan; all else is an error
_GIVEN = {
    "name": (r"[a-z][a-z0-9-]{0,30}", "must begin with a letter, then a-z, 0-9 and -: give another with --name"),
    "owners": (r"(@[\w./-]+ ?)*", "must be @OWNER/TEAM or @USER"),
    "aws-account": (r"(\d{12})?", "must be 12 digits"),
    "runner": (r"[\w.-]*", "must be one label of a runner"),
}
_ALONE = "main takes pull requests that another owner approves; alone, let yourself bypass it in the ruleset `main`"
_BRANCHES = {"protected_branches": False, "custom_branch_policies": True}
_WORKFLOWS = {"default_workflow_permissions": "read", "can_approve_pull_request_reviews": True}
_REVIEWS = {"required_approving_review_count": 1, "required_review_thread_resolution": False}
_REVIEWS |= dict.fromkeys(("dismiss_stale_reviews_on_push", "require_code_owner_review", "require_last_push_approval"), True)  # fmt: skip
_ACTIONS = {} if "/api/v3" in os.environ.get("GITHUB_API_URL", "") else {"integration_id": 15368}  # of github.com alone
_CHECK: dict[str, Any] = {"context": "required"} | _ACTIONS  # anybody else may set a status of that name
_RULESET = {
    "name": "main", "target": "branch", "enforcement": "active",
    "conditions": {"ref_name": {"include": ["~DEFAULT_BRANCH"], "exclude": []}},
    "rules": [{"type": "deletion"}, {"type": "non_fast_forward"}, {"type": "pull_request", "parameters": _REVIEWS},
              {"type": "required_status_checks", "parameters": {"strict_required_status_checks_policy": False, "required_status_checks": [_CHECK]}}],
}  # fmt: skip


@dataclass
class Adoption:
    """Every step looks first: done twice it changes nothing, and killed anywhere it goes on where it was."""

    root: Path
    name: str  # empty: the one it has, or the repository's
    owners: str
    account: str
    without_example: bool
    github: GitHub
    dry: bool
    runner: str = ""  # the label of one that reaches what GitHub's own cannot; empty: as it is
    done: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)  # what is not enforced
    stacks: dict[str, Any] = field(default_factory=dict)  # what they have exported

    def run(self) -> None:
        branch, subject = self._look()
        road = self._road()
        self._files(road, subject)
        keys = self._keys(road)
        roles = {each: self._outputs(each).get("roles", {}).get(each, {}) for each in road.environments}
        for each, arns in roles.items():
            self._environment(each, branch)
            named = {f"AWS_ROLE_{purpose.upper()}": arn for purpose, arn in arns.items()}
            self._variables(f"environments/{each}", named and named | {"AWS_REGION": self._place(each)[1]})
        if not _WORKFLOWS.items() <= self.github.ask("GET", "actions/permissions/workflow").items():
            self._try("PUT", "actions/permissions/workflow", "that workflows may open pull requests", **_WORKFLOWS)
        self._ruleset()
        self._code_owners()
        shared = {f"AWS_ROLE_{purpose}_{each}".upper().replace("-", "_"): arn for each, arns in roles.items() for purpose, arn in arns.items() if purpose == "watch" or (purpose == "preview" and each != road.last)}  # fmt: skip  # who opens a pull request sees nothing of the last
        shared |= {"AWS_REGION": self._place(road.environments[0])[1]} if shared else {}
        self._variables("actions", shared | ({RUNNER: self.runner} if self.runner else {}))
        self._switch(road, branch, keys, roles)

    def _look(self) -> tuple[str, str]:
        """Its branch, and how its OIDC subjects begin: never composed, since newer repositories have ids in them."""
        found = self.github.ask("GET", "", missing=True) or {}
        if not found.get("permissions", {}).get("admin"):  # 404 too, or it has moved
            raise UserError("repository", self.github.repository, "is not there, or not this token's to administer")
        self.github.repository, branch = found["full_name"], found["default_branch"]  # AWS tells upper from lower case
        if branch != "main":
            self.limits.append(f"workflows: they wait for pushes to main, and the default branch is {branch}")
        subject = self.github.ask("GET", "actions/oidc/customization/sub", missing=True) or {}
        if not subject.get("use_default", True):
            self.limits.append("roles in AWS: the repository's OIDC subjects are customized, and no role knows them")
        return branch, subject.get("sub_claim_prefix") or f"repo:{self.github.repository}"

    def _road(self) -> Road:
        """As it will be."""
        road, repository, account = Road.load(self.root), self.github.repository, self.account
        short = re.sub("[._]", "-", repository.rpartition("/")[2].lower())
        name = self.name or (short if road.name == _NO_NAME else road.name)
        given = (name, self.owners, account, self.runner)
        for (key, (pattern, hint)), value in zip(_GIVEN.items(), given, strict=True):
            if not re.fullmatch(pattern, value):
                raise UserError(key, value, hint)
        if (other := re.match(r"s3://mlops-state-(\d+)/", road.store)) and account not in ("", other[1]):
            raise UserError("aws-account", account, f"{roads.FILE} names {other[1]}: move by hand")
        new = {"repository": repository, "name": name}
        if account:
            new["store"] = road.store if "://" in road.store else f"s3://mlops-state-{account}/delivery"
            new["registry"] = road.registry or f"{account}.dkr.ecr.{self._place(road.environments[0])[1]}.amazonaws.com"
        return road.model_copy(update=new)

    # Files: those of the fork alone.
    def _files(self, road: Road, subject: str) -> None:
        base, before = self._base(), Road.load(self.root).model_dump()
        new = {key: value for key, value in road.model_dump().items() if value != before[key]}
        self._edit(roads.FILE, {rf"(?m)^{key}:[^#\n]*?(?= *(#|$))": f"{key}: {json.dumps(new[key])}" for key in new})
        self._edit("README.md", {r"\A# mlops: .*": f"# {road.name}"})
        self._edit(".github/CODEOWNERS", {_NO_OWNERS: self.owners} if self.owners else {})
        github = {"repository": road.repository, "subject": subject}
        parts = {"account": ("mlops-account:github", github), "aws": ("mlops-aws:cluster", {"github": True})}
        for path in sorted(self.root.glob("environments/**/Pulumi.*.yaml")):
            file, text = path.relative_to(self.root).as_posix(), path.read_text("utf-8")
            text = re.sub(_NO_ACCOUNT, self.account, text) if self.account else text
            self._write(file, _with(text, file, *parts[path.parent.name]) if path.parent.name in parts else text)
        evidence, index = self._evidence(base), f"{_EVIDENCE}/README.md"
        self._edit(index, {rf"(?m)^\| \[{re.escape(Path(each).stem)}\].*\n": "" for each in evidence})
        self._remove(evidence, "the template's own evidence")
        if self.without_example:
            found = [path.parent.relative_to(self.root / "training") for path in self.root.glob(_EXAMPLES)]
            folders = [str(Path(kind, each)) for each in found for kind in ("tests", "training")]  # the mark last
            self._remove([each for each in folders if (self.root / each).exists()], "the example")

    def _base(self) -> str:
        """The version of the template that this is a copy of: a repository that was made from it began with its files."""
        if known := self._text(RECORD):
            return json.loads(known)["commit"]
        first = git("rev-list", "--max-parents=0", "HEAD", root=self.root).splitlines()[-1]
        began = git("ls-tree", "--name-only", first, roads.FILE, root=self.root)
        commit = first if began else git("rev-parse", "HEAD", root=self.root)
        record = {"commit": commit, "tree": git("rev-parse", f"{commit}^{{tree}}", root=self.root)}
        self._write(RECORD, json.dumps(record, indent=2) + "\n")
        return commit

    def _evidence(self, base: str) -> list[str]:
        """What the template's makers proved, and nobody proved again here."""
        try:
            theirs = git("ls-tree", "-r", "--name-only", base, f"{_EVIDENCE}/", root=self.root).splitlines()
            changed = git("diff", "--name-only", base, "--", _EVIDENCE, root=self.root).splitlines()
        except UserError:  # of an upgrade, a commit that this clone does not have
            return []
        return [file for file in theirs if file.endswith(".json") and file not in changed]

    def _edit(self, file: str, changes: dict[str, str]) -> None:
        text = self._text(file)
        for pattern, new in changes.items():
            text = re.sub(pattern, new, text)
        self._write(file, text)

    def _text(self, file: str) -> str:
        return path.read_text("utf-8") if (path := self.root / file).exists() else ""

    def _write(self, file: str, text: str) -> None:
        changed = text != self._text(file)
        self.done += [f"write {file}"] if changed else []
        if changed and not self.dry:
            (new := self.root / f"{file}.new").write_text(text, "utf-8")
            new.replace(self.root / file)

    def _remove(self, paths: list[str], what: str) -> None:
        self.done += [f"remove {what}: {len(paths)} in {os.path.commonpath(paths)}"] if paths else []
        for path in () if self.dry else paths:
            (shutil.rmtree if (self.root / path).is_dir() else Path.unlink)(self.root / path)

    # Keys and roles: in AWS those of `make account`; other keys are made here.
    def _keys(self, road: Road) -> bool:
        """Whether there are all of them."""
        cloud, first = "://" in road.store, road.environments[0]
        keyring = Keyring(self.root / roads.KEYRING, None if cloud else self.root / road.store / "keys")
        wanted: list[tuple[Role, str | None]] = [("build", None), *(("approve", each) for each in road.environments)]
        for role, environment in wanted:
            kms = cloud and self._outputs(environment or first).get("deliveryKeys", {}).get(environment or first)
            have = [key.kms for key in keyring.all() if (key.role, key.environment, key.state) == (role, environment, "active")]  # fmt: skip
            if kms in have if kms else any(have) if cloud else have:
                continue
            if cloud and not kms:
                return False
            self.done.append(f"trust the key that signs what {f'passed {environment}' if environment else 'is built'}")
            if not self.dry:
                _ = keyring.add_kms(role, environment, kms) if kms else keyring.new(role, environment)
        return True

    def _outputs(self, environment: str) -> dict[str, Any]:
        stack = self._place(environment)[0]
        if stack not in self.stacks and (self.root / f"environments/account/{stack}.state").exists():
            command = [str(self.root / "environments/pulumi"), f"account/{stack}", "stack", "output", "--json"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UserError("account", stack, f"cannot be read: {done.stderr.strip()[-300:]}")
            self.stacks[stack] = json.loads(done.stdout)
        return self.stacks.get(stack, {})

    def _place(self, environment: str) -> tuple[str, str]:
        """The stack of its account, and the region."""
        stack = _config(self._text(_STACK.format("aws", environment))).get("mlops-aws:accountStack", "shared")
        account = _config(self._text(_STACK.format("account", stack)))
        return stack, account.get("mlops-account:region", "us-east-1")

    def _environment(self, name: str, branch: str) -> None:
        """Only its branch deploys there; it is made before any workflow names it, which would make it open to all."""
        path, what = f"environments/{name}", f"environment {name}"
        found = self.github.ask("GET", path, missing=True) or {}
        if not (right := found.get("deployment_branch_policy") == _BRANCHES):
            rules = {key: value for each in found.get("protection_rules", ()) for key, value in each.items()}
            who = [{"type": each["type"], "id": each["reviewer"]["id"]} for each in rules.get("reviewers", ())]
            kept = {"reviewers": who} | {each: rules.get(each) for each in ("wait_timer", "prevent_self_review")}
            body = {key: value for key, value in kept.items() if value}  # GitHub drops what a change leaves out
            body["deployment_branch_policy"] = _BRANCHES
            if not self._try("PUT", path, f"{what}, where chosen branches deploy", **body):
                _ = found or self._try("PUT", path, what)
                return
        path += "/deployment-branch-policies"
        listed = [each["name"] for each in self.github.all(path, "branch_policies")] if right or not self.dry else []
        if branch not in listed:
            self._try("POST", path, f"{what}: {branch} deploys there", name=branch)
        self.limits += [f"{what}: {each} may deploy there too" for each in listed if each != branch]

    def _ruleset(self) -> None:
        what = "rules of main: reviews by code owners, the check `required`"
        every = self._try("GET", "rulesets?includes_parents=false&per_page=100", what)
        if every is None:
            return
        path = next((f"rulesets/{each['id']}" for each in every if each["name"] == _RULESET["name"]), "")
        found = self.github.ask("GET", path) if path else {}
        wanted = {key: _stricter(found.get(key), value) for key, value in _RULESET.items()}
        if wanted != {key: found.get(key) for key in wanted}:
            self._try("PUT" if path else "POST", path or "rulesets", what, **wanted)
        self.limits.append(f"{what}: the ruleset names who may bypass them" if found.get("bypass_actors") else _ALONE)

    def _code_owners(self) -> None:
        """GitHub ignores owners that it does not know; it looks at what is pushed."""
        text, what = self._text(".github/CODEOWNERS"), "reviews by code owners"
        if not text or (not self.owners and re.search(_NO_OWNERS, text)):
            self.limits.append(f"{what}: .github/CODEOWNERS names nobody; give --owners")
        found = self.github.ask("GET", "codeowners/errors", missing=True) or {"errors": []}
        wrong = [each for each in found["errors"] if not re.search(_NO_OWNERS, each["source"])]
        self.limits += [f"{what}: {each['kind']}: {each['source'].strip()}" for each in wrong]

    def _variables(self, where: str, wanted: dict[str, str]) -> None:
        for name, value in wanted.items():
            path, found = f"{where}/variables", self._variable(where, name)
            if found != value:
                method, path = ("POST", path) if found is None else ("PATCH", f"{path}/{name}")
                self._try(method, path, f"variable {name} of {where}", name=name, value=value)

    def _variable(self, where: str, name: str) -> str | None:
        found = self.github.ask("GET", f"{where}/variables/{name}", missing=True)
        return found and found["value"]

    def _switch(self, road: Road, branch: str, keys: bool, roles: dict[str, Any]) -> None:
        """Last, and only where what it starts can work."""
        aws = {each: config for each in roles if (config := _config(self._text(_STACK.format("aws", each))))}
        runner, store = self.runner or self._variable("actions", RUNNER), road.store
        shut = ", ".join(each for each in aws if "0.0.0.0/0" not in str(aws[each].get("mlops-aws:cluster")))
        if shut and not runner:
            self.limits.append(f"{shut}: GitHub's own runners cannot reach the cluster's API: name a runner inside (--runner LABEL) or open mlops-aws:cluster.publicCidrs")  # fmt: skip
        inside = [each for each in roles if each not in aws] or [store] * store.startswith("/")
        bare, files = ", ".join(each for each in aws if not roles[each]), (roads.FILE, roads.KEYRING)
        new = any(each.startswith((f"write {roads.FILE}", "trust ")) for each in self.done)  # in a dry run not here yet
        same = not new and all(self.github.file(each, branch) == self._text(each) for each in files)
        needs = {
            f"`store` in {roads.FILE} is a URL or an absolute path: give --aws-account, or write one": "://" in store or store.startswith("/"),
            "keys sign what they build: make account, then adopt again": keys,
            f"there are roles in AWS for {bare}: make account, then adopt again": not bare,
            f"a runner reaches {', '.join(inside)}: name one (--runner LABEL)": runner or not inside,
            f"{branch} has the same {' and '.join(files)}: merge what changed, then adopt again": same,
        }  # fmt: skip
        missing = [each for each, there in needs.items() if not there]
        on = missing and self._variable("actions", SWITCH)
        self.limits += [f"workflows: {'on since before, but fail' if on else 'off'} until {each}" for each in missing]
        self._variables("actions", {} if missing else {SWITCH: json.dumps(road.environments)})

    def _try(self, method: str, path: str, what: str, **body: Any) -> Any:
        """None where the plan refuses, which is said, not claimed."""
        try:
            answer = None if self.dry and method != "GET" else self.github.ask(method, path, **body)
        except UserError as error:
            if not re.search(_REFUSED, error.hint):
                raise
            return self.limits.append(f"{what}: GitHub {error.hint}")
        self.done += [] if method == "GET" else [f"set {what}"]
        return True if answer is None else answer


def _stricter(found: Any, wanted: Any) -> Any:
    """What is wanted, and what the team added or demands beyond it."""
    if isinstance(wanted, dict):
        return (found or {}) | {key: _stricter((found or {}).get(key), value) for key, value in wanted.items()}
    if isinstance(wanted, list) and wanted:
        old, new = ({str(each.get("type") or each.get("context")) if isinstance(each, dict) else each: each for each in items or ()} for items in (found, wanted))  # fmt: skip
        return list((old | {name: _stricter(old.get(name), each) for name, each in new.items()}).values())
    return found if isinstance(wanted, int) and isinstance(found, int) and found > wanted else wanted


def _config(text: str) -> dict[str, Any]:
    return (yaml.safe_load(text) or {}).get("config") or {}


def _with(text: str, file: str, key: str, wanted: dict[str, Any]) -> str:
    """A stack's configuration with these parts of `key`; the rest stays, comments too."""
    if wanted.items() <= _config(text).get(key, {}).items():
        return text
    block = re.search(rf"(?m)^  {key}:\n(    .*\n)*", text)
    kept = [line for line in block[0].splitlines(True)[1:] if line.split(":")[0].strip() not in wanted] if block else []
    new = "".join([f"  {key}:\n", *(f"    {part}: {json.dumps(value)}\n" for part, value in wanted.items()), *kept])
    text = text.replace(block[0], new) if block else text.replace("config:\n", f"config:\n{new}", 1)
    if not wanted.items() <= _config(text).get(key, {}).items():
        raise UserError(key, file, f"cannot be edited: write {json.dumps(wanted)} there")
    return text
