"""A copy of this template becomes a team's own: its files, then its repository on GitHub, and last the switch."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.delivery import road as roads
from cli.delivery.git import git
from cli.delivery.github import GitHub
from cli.delivery.road import Road
from mlops.errors import UserError

SWITCH, BASE = "MLOPS_ENVIRONMENTS", "environments/template.json"
_EXAMPLE = ("training/models/flights", "tests/models/flights")
_EVIDENCE = "docs/proofs"
_NO_ACCOUNT, _NO_OWNERS = "000000000000", r"@your-org/[\w-]+"
_RULES: list[dict[str, Any]] = [
    {"type": "deletion"},
    {"type": "non_fast_forward"},
    {"type": "pull_request", "parameters": {
        "required_approving_review_count": 1, "dismiss_stale_reviews_on_push": True, "require_code_owner_review": True,
        "require_last_push_approval": False, "required_review_thread_resolution": False,
    }},
    {"type": "required_status_checks", "parameters": {
        "strict_required_status_checks_policy": False, "required_status_checks": [{"context": "required"}],
    }},
]  # fmt: skip
_RULESET = {
    "name": "main", "target": "branch", "enforcement": "active", "rules": _RULES,
    "conditions": {"ref_name": {"include": ["~DEFAULT_BRANCH"], "exclude": []}},
}  # fmt: skip


@dataclass
class Adoption:
    """Every step looks first: done twice it changes nothing, and killed anywhere it goes on where it was."""

    root: Path
    name: str
    owners: str
    account: str
    without_example: bool
    github: GitHub
    dry: bool
    done: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)  # what the plan cannot enforce

    def run(self) -> None:
        settings = self.github.ask("GET", "")
        if not settings.get("permissions", {}).get("admin"):
            raise UserError(
                "GITHUB_TOKEN", self.github.repository, "is not administered by this token's user; ask an owner"
            )
        self._files(self._subject())
        road = Road.load(self.root)
        self._keys(road)
        branch = settings["default_branch"]
        for environment in road.environments:
            self._environment(environment, branch)
            self._variables(f"environments/{environment}", self._roles(environment))
        self._set("actions/permissions/workflow", "that workflows may open pull requests", {
            "default_workflow_permissions": "read", "can_approve_pull_request_reviews": True})  # fmt: skip
        self._ruleset()
        self._variables("actions", {SWITCH: json.dumps(road.environments)})

    # Files: those of the fork alone.

    def _files(self, subject: str) -> None:
        self._base()
        repository, owner = self.github.repository, self.owners
        self._edit(
            roads.FILE,
            (r"(?m)^name: .*", f"name: {self.name}"),
            (r'(?m)^repository: "[^"]*"', f'repository: "{repository}"'),
        )
        self._edit("README.md", (r"\A# .*", f"# {self.name}"))
        if owner:
            self._edit(".github/CODEOWNERS", (_NO_OWNERS, owner))
        github = f'  mlops-account:github:\n    repository: {repository}\n    subject: "{subject}"\n'
        for file in self._found("environments/account/Pulumi.*.yaml"):
            self._edit(file, (r"  mlops-account:github:\n(    .*\n)*", ""), (r"\Z", github))
        for file in self._found("environments/aws/Pulumi.*.yaml"):
            self._edit(file, (r"(?m)^(  mlops-aws:cluster:\n)(    github: .*\n)?", r"\1    github: true" + "\n"))
        for file in self._found("environments/*/Pulumi.*.yaml") if self.account else ():
            self._edit(file, (_NO_ACCOUNT, self.account))
        if self.account:
            self._edit(roads.FILE, (r"(?m)^store: \S+", f"store: s3://mlops-state-{self.account}/delivery"),
                       (r'(?m)^registry: ""', f"registry: {self.account}.dkr.ecr.{self._region()}.amazonaws.com"))  # fmt: skip
        evidence = [file for file in self._found(f"{_EVIDENCE}/*.json") if self._is_ours(file)]
        rows = "|".join(re.escape(Path(file).stem) for file in evidence)
        _ = evidence and self._edit(f"{_EVIDENCE}/README.md", (rf"(?m)(^\| \[({rows})\].*\n)+", ""))
        self._remove(evidence, "the template's own evidence")
        if self.without_example:
            self._remove([path for path in _EXAMPLE if (self.root / path).exists()], "the example")

    def _base(self) -> None:
        """The version of the template that this is a copy of: a repository that was made from it began with its files."""
        if (self.root / BASE).exists():
            return
        first = git("rev-list", "--max-parents=0", "HEAD", root=self.root).splitlines()[-1]
        began = git("ls-tree", "--name-only", first, roads.FILE, root=self.root)
        commit = first if began else git("rev-parse", "HEAD", root=self.root)
        record = {"commit": commit, "tree": git("rev-parse", f"{commit}^{{tree}}", root=self.root)}
        self._write(BASE, json.dumps(record, indent=2) + "\n")

    def _is_ours(self, file: str) -> bool:
        """Whether the template made it, and not a proof of the fork's own."""
        base = json.loads((self.root / BASE).read_text("utf-8"))["commit"] if (self.root / BASE).exists() else "HEAD"
        return bool(git("ls-tree", "--name-only", base, file, root=self.root)) and not git(
            "diff", "--name-only", base, "--", file, root=self.root
        )

    def _found(self, pattern: str) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in sorted(self.root.glob(pattern))]

    def _edit(self, file: str, *changes: tuple[str, str]) -> None:
        text = before = (self.root / file).read_text("utf-8")
        for pattern, new in changes:
            text = re.sub(pattern, new, text, count=0 if pattern in (_NO_OWNERS, _NO_ACCOUNT) else 1)
        if text != before:
            self._write(file, text)

    def _write(self, file: str, text: str) -> None:
        self.done.append(f"write {file}")
        if not self.dry:
            new = self.root / f"{file}.new"
            new.write_text(text, "utf-8")
            new.replace(self.root / file)

    def _remove(self, paths: list[str], what: str) -> None:
        self.done += [f"remove {what}: {path}" for path in paths]
        for path in () if self.dry else paths:
            (shutil.rmtree if (self.root / path).is_dir() else Path.unlink)(self.root / path)

    def _region(self) -> str:
        text = "".join(
            (self.root / file).read_text("utf-8") for file in self._found("environments/account/Pulumi.*.yaml")
        )
        found = re.search(r"mlops-account:region: (\S+)", text)
        return found.group(1) if found else "us-east-1"

    # Keys: in AWS those of `make account`; else made here.

    def _keys(self, road: Road) -> None:
        wanted: list[tuple[Any, str | None]] = [("build", None), *(("approve", each) for each in road.environments)]
        have = {(key.role, key.environment) for key in road.keyring.all() if key.state == "active"}
        for role, environment in wanted:
            if (role, environment) in have:
                continue
            kms = self._outputs().get("deliveryKeys", {}).get(environment or road.environments[0], "")
            if "://" in road.store and not kms:
                self.limits.append("the keys of deliveries are missing: make account, then adopt again")
                return
            self.done.append(
                f"make the key that signs what {'is built' if role == 'build' else f'passed {environment}'}"
            )
            if not self.dry:
                _ = road.keyring.add_kms(role, environment, kms) if kms else road.keyring.new(role, environment)

    def _outputs(self) -> dict[str, Any]:
        """Of infra/account; empty before it is deployed."""
        if not self._found("environments/account/*.state"):
            return {}
        stack = self._found("environments/account/*.state")[0].rpartition("/")[2].removesuffix(".state")
        command = [str(self.root / "environments" / "pulumi"), f"account/{stack}", "stack", "output", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError("account", stack, f"cannot be read: {done.stderr.strip()[-300:]}")
        return json.loads(done.stdout)

    # GitHub.

    def _subject(self) -> str:
        """How its OIDC subjects begin: read, never composed, since newer repositories have ids in them."""
        found = self.github.ask("GET", "actions/oidc/customization/sub", missing=True) or {}
        return found.get("sub_claim_prefix") or f"repo:{self.github.repository}"

    def _roles(self, environment: str) -> dict[str, str]:
        roles = self._outputs().get("roles", {}).get(environment, {})
        return {f"AWS_ROLE_{purpose.upper()}": arn for purpose, arn in roles.items()} | (
            {"AWS_REGION": self._region()} if roles else {}
        )

    def _environment(self, name: str, branch: str) -> None:
        """Only its branch deploys there; it is made before any workflow names it, which would make it open to all."""
        path, policy = f"environments/{name}", {"protected_branches": False, "custom_branch_policies": True}
        found = self.github.ask("GET", path, missing=True)
        right = bool(found) and found.get("deployment_branch_policy") == policy
        if not right and not self._try("PUT", path, f"environment {name}", {"deployment_branch_policy": policy}):
            return
        policies = (
            () if self.dry and not found else self.github.all(f"{path}/deployment-branch-policies", "branch_policies")
        )
        if branch not in [each["name"] for each in policies]:
            self._try(
                "POST", f"{path}/deployment-branch-policies", f"environment {name}: {branch} alone", {"name": branch}
            )

    def _ruleset(self) -> None:
        what = "rules of main: reviews by code owners, the check `required`"
        known = next((each for each in self.github.all("rulesets") if each["name"] == _RULESET["name"]), None)
        if known is None:
            self._try("POST", "rulesets", what, _RULESET)
        else:
            self._set(f"rulesets/{known['id']}", what, _RULESET)

    def _variables(self, where: str, wanted: dict[str, str]) -> None:
        for name, value in wanted.items():
            found = self.github.ask("GET", f"{where}/variables/{name}", missing=True)
            if found is None:
                self._try("POST", f"{where}/variables", f"variable {name} of {where}", {"name": name, "value": value})
            elif found["value"] != value:
                self._try(
                    "PATCH", f"{where}/variables/{name}", f"variable {name} of {where}", {"name": name, "value": value}
                )

    def _set(self, path: str, what: str, wanted: dict[str, Any]) -> None:
        if not _holds(self.github.ask("GET", path, missing=True) or {}, wanted):
            self._try("PUT", path, what, wanted)

    def _try(self, method: str, path: str, what: str, body: dict[str, Any]) -> bool:
        """What the plan does not offer is said, not claimed."""
        try:
            if not self.dry:
                self.github.ask(method, path, **body)
        except UserError as error:
            if not re.search(r"answered (403|404|422)", error.hint):
                raise
            self.limits.append(f"{what}: GitHub {error.hint}")
            return False
        self.done.append(f"set {what}")
        return True


def _holds(found: Any, wanted: Any) -> bool:
    """Whether what is there has all that is wanted; GitHub adds fields of its own."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_holds, found, wanted))
    return found == wanted
