from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from cli.delivery.adopt import Adoption
from cli.delivery.github import GitHub
from cli.delivery.road import Road
from mlops.environment import ROOT
from mlops.errors import UserError
from mlops.keys import Key, Keyring
from tests.delivery.api import Answer, Ask, Environment, Refused
from tests.delivery.forge import Forge
from tests.proofs.__main__ import index as proofs_index

ACCOUNT, OTHER = "123456789012", "210987654321"
STAGES = ["dev", "staging", "prod"]
NOT_OURS = "is not there, or not this token's to administer"
SWITCH = "MLOPS_ENVIRONMENTS"
FORKS = r"(training|tests)/models/.+|environments/.+|requirements/.+|README\.md|\.github/CODEOWNERS|docs/proofs/.+"
AGAIN = "make account, then adopt again"
ALONE = "main takes pull requests that another owner approves; alone, let yourself bypass it in the ruleset `main`"
API = "GitHub's own runners cannot reach the cluster's API: name a runner inside (--runner LABEL) or open mlops-aws:cluster.publicCidrs"
STORE = "`store` in environments/delivery.yaml is a URL or an absolute path: give --aws-account, or write one"
SIGN = f"keys sign what they build: {AGAIN}"
ROLES = f"there are roles in AWS for dev, staging, prod: {AGAIN}"
MERGE = (
    "main has the same environments/delivery.yaml and environments/keyring.json: merge what changed, then adopt again"
)
CHECK = {"context": "required", "integration_id": 15368}
PROOF = {"proof": "mine", "holds": True, "seconds": 60, "date": "2026-01-02"}


class Hub(Forge):
    """What only this command asks of GitHub."""

    branch = "main"
    unknown: tuple[str, ...] = ()  # lines of CODEOWNERS
    forbids = customized = moved = False

    def __init__(self, folder: Path):
        super().__init__(folder)
        vars(self.server)["RequestHandlerClass"].disable_nagle_algorithm = True  # else 40 ms a request

    def handle(self, verb: str, target: str, data: bytes, authorization: str) -> tuple[int, Any, str] | None:
        target = re.sub(rf"^(/api/v3)?/repos/{re.escape(self.full_name)}(?=[/?]|$)", f"/repos/{self.full_name}", target, flags=re.I)  # fmt: skip
        return super().handle(verb, target, data, authorization)

    def repos_get(self, ask: Ask) -> Any:
        if self.moved:
            return Answer({"message": "Moved Permanently", "url": f"{self.url}/repositories/456"}, 301)
        rights = {"admin": ask.login == "ann", "push": True, "pull": True}
        return super().repos_get(ask) | {"permissions": rights, "default_branch": self.branch}

    def repos_codeowners_errors(self, ask: Ask) -> Any:
        told = {"line": 1, "column": 1, "kind": "Unknown owner", "message": "", "path": ".github/CODEOWNERS"}
        return {"errors": [told | {"source": each} for each in self.unknown]}

    def repos_get_repo_rulesets(self, ask: Ask) -> Any:
        whole = {"id": 1, "name": "main", "enforcement": "active", "source_type": "Organization", "source": "acme"}
        return ([] if ask.query.get("includes_parents") == "false" else [whole]) + super().repos_get_repo_rulesets(ask)

    def actions_set_github_actions_default_workflow_permissions_repository(self, ask: Ask) -> Any:
        if self.forbids:
            raise Refused(409, "The organization does not let workflows approve pull requests")
        return super().actions_set_github_actions_default_workflow_permissions_repository(ask)

    def actions_get_custom_oidc_sub_claim_for_repo(self, ask: Ask) -> Any:
        told = super().actions_get_custom_oidc_sub_claim_for_repo(ask)
        return told | ({"use_default": False, "include_claim_keys": ["repo"]} if self.customized else {})

    @property
    def state(self) -> dict[str, Any]:
        rules = [{key: value for key, value in each.items() if key != "id"} for each in self.rulesets.values()]
        environments = {name: copy.deepcopy(vars(each)) for name, each in sorted(self.environments.items())}
        return {
            "variables": {**self.variables}, "environments": environments, "rules": copy.deepcopy(rules),
            "permissions": {**self.workflow_permissions},
        }  # fmt: skip

    def reset(self) -> None:
        for each in (self.variables, self.environments, self.rulesets, self.requests):
            each.clear()
        self.workflow_permissions |= {"can_approve_pull_request_reviews": False}

    @property
    def written(self) -> list[str]:
        return [f"{each.method} {each.path}" for each in self.requests if each.method != "GET"]


class Copy:
    def __init__(self, root: Path):
        self.root = root

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=ann", "-c", "user.email=ann@test", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", self.root, *who, *words], capture_output=True, text=True, check=True).stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "a change")

    def reset(self) -> None:
        self.git("reset", "-q", "--hard")
        self.git("clean", "-qfd")

    @property
    def changed(self) -> dict[str, str]:
        """`git status` by path."""
        lines = self.git("status", "--porcelain", "-uall").splitlines()
        return {line[3:]: line[:2].strip() for line in lines}

    @property
    def files(self) -> dict[str, bytes]:
        """What changed, with its content; of keys, which are random, what they are for."""
        found = {name: (self.root / name).read_bytes() for name, how in self.changed.items() if how != "D"}
        found |= {name: b"" for name, how in self.changed.items() if how == "D"}
        if "environments/keyring.json" in found:
            found["environments/keyring.json"] = repr([(k.role, k.environment, k.kms) for k in self.keys]).encode()
        return found

    @property
    def keys(self) -> list[Key]:
        return Keyring(self.root / "environments/keyring.json").all()

    def text(self, name: str) -> str:
        return (self.root / name).read_text()

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def change(self, name: str, old: str, new: str) -> None:
        assert old in self.text(name)
        self.write(name, self.text(name).replace(old, new))

    def config(self, name: str) -> Any:
        return yaml.safe_load(self.text(name))["config"]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Copy(tmp_path_factory.mktemp("template") / "copy")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (made.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, made.root / name)
    made.git("init", "-q", "-b", "main")
    made.commit()
    made.git("gc", "-q")
    return made.root


@pytest.fixture
def fork(template: Path, tmp_path: Path) -> Copy:
    return Copy(shutil.copytree(template, tmp_path / "fork"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with (hub := Hub(tmp_path / "hub")):
        monkeypatch.setenv("GITHUB_API_URL", hub.url)
        monkeypatch.setenv("GITHUB_TOKEN", "user:ann")
        yield hub
        assert hub.problems == []


def adopt(
    fork: Copy, repository: str = "acme/ml", name: str = "", owners: str = "@acme/ml", account: str = "",
    without_example: bool = False, dry: bool = False, runner: str = "",
) -> Adoption:  # fmt: skip
    made = Adoption(fork.root, name, owners, account, without_example, GitHub(repository), dry, runner=runner)
    made.run()
    return made


def merge(fork: Copy, hub: Hub) -> None:
    """What the folder holds is main, here and on GitHub."""
    fork.git("add", "-A")
    fork.git("commit", "-qm", "Ours", "--allow-empty")
    fork.git("push", "-qf", str(hub.bare), f"HEAD:refs/heads/{hub.branch}")


def switch(made: Adoption) -> list[str]:
    """What it needs."""
    return [each.removeprefix("workflows: off until ") for each in made.limits if each.startswith("workflows: off")]


def others(made: Adoption) -> list[str]:
    """Limits that not every adoption has."""
    return [
        each for each in made.limits if each != ALONE and not re.match(f"workflows: off|.*: {re.escape(API)}", each)
    ]


def on_aws(fork: Copy, stack: str = "shared", stages: list[str] = STAGES) -> dict[str, Any]:
    """What `make account` leaves; inside moto."""
    kms = boto3.client("kms", region_name="us-east-1")
    made = {
        "roles": {
            stage: {each: f"arn:aws:iam::{ACCOUNT}:role/{stage}-{each}" for each in ("preview", "deploy", "watch")}
            for stage in stages
        },
        "deliveryKeys": {
            each: kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
            for each in stages
        },
    }
    fork.write(f"environments/account/{stack}.state", "PULUMI_BACKEND_URL=s3://there\n")
    fork.write(f".mlops/{stack}.json", json.dumps(made))
    fork.write(
        "environments/pulumi",
        '#!/bin/sh\n[ "$2 $3 $4" = "stack output --json" ] && cat "$(dirname "$0")/../.mlops/${1#account/}.json"\n',
    )
    return made


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


# The whole of it.


def test_a_copy_becomes_a_team_s_own(fork: Copy, hub: Hub) -> None:
    made = adopt(fork, name="fraud")
    assert made.limits == [
        ALONE,
        f"dev, staging, prod: {API}",
        *(f"workflows: off until {each}" for each in (STORE, ROLES, MERGE)),
    ]
    assert Road.load(fork.root).model_dump() == {
        "name": "fraud", "repository": "acme/ml", "environments": STAGES, "store": ".mlops/delivery", "registry": "",
        "replay": {"staging": "0.95..1.0"},
    }  # fmt: skip
    assert '"  # OWNER/NAME on GitHub\n' in fork.text("environments/delivery.yaml")
    assert fork.text("README.md").startswith("# fraud\n\nTraining, ")
    assert "\n*                  @acme/ml\n" in fork.text(".github/CODEOWNERS")
    assert "@your-org" not in fork.text(".github/CODEOWNERS")
    shared = "environments/account/Pulumi.shared.yaml"
    assert fork.config(shared)["mlops-account:github"] == {"repository": "acme/ml", "subject": "repo:acme@123/ml@456"}
    assert fork.text(shared).startswith("# One AWS account for all environments;")
    for each in STAGES:
        assert fork.config(f"environments/aws/Pulumi.{each}.yaml")["mlops-aws:cluster"]["github"] is True
    record = json.loads(fork.text("environments/template.json"))
    assert [record["commit"], record["tree"]] == fork.git("log", "-1", "--format=%H %T").split()
    assert [(key.role, key.environment, key.state) for key in fork.keys] == [
        ("build", None, "active"), *(("approve", each, "active") for each in STAGES),
    ]  # fmt: skip
    assert not [*fork.root.glob("docs/proofs/*.json")]
    assert fork.text("docs/proofs/README.md").endswith("|---|---|---|---|---|\n")

    assert hub.environments == {each: Environment({}, ["main"], "custom") for each in STAGES}
    assert hub.variables == {}
    assert hub.workflow_permissions == {
        "default_workflow_permissions": "read", "can_approve_pull_request_reviews": True,
    }  # fmt: skip
    (rules,) = hub.rulesets.values()
    assert (rules["name"], rules["enforcement"], rules["target"]) == ("main", "active", "branch")
    assert rules["conditions"]["ref_name"] == {"include": ["~DEFAULT_BRANCH"], "exclude": []}
    parameters = {each["type"]: each.get("parameters", {}) for each in rules["rules"]}
    assert {*parameters} == {"deletion", "non_fast_forward", "pull_request", "required_status_checks"}
    assert parameters["pull_request"] | {"required_review_thread_resolution": False} == {
        "required_approving_review_count": 1, "required_review_thread_resolution": False,
        **dict.fromkeys(("dismiss_stale_reviews_on_push", "require_code_owner_review", "require_last_push_approval"), True),
    }  # fmt: skip
    assert parameters["required_status_checks"]["required_status_checks"] == [CHECK]
    assert [path for path in fork.changed if not re.fullmatch(FORKS, path)] == []


def test_done_twice_it_changes_nothing(fork: Copy, hub: Hub) -> None:
    limits = adopt(fork, name="fraud").limits
    before, state = fork.files, hub.state
    again: list[dict[str, Any]] = [{"name": "fraud"}, {"owners": ""}]
    for more in again:  # it keeps its name
        hub.requests.clear()
        made = adopt(fork, **more)
        assert (made.done, made.limits, hub.written) == ([], limits, [])
        assert (fork.files, hub.state) == (before, state)
    fork.commit()
    fork.write("README.md", f"# Our own\n\n{fork.text('README.md')}")
    assert (adopt(fork).done, [*fork.changed]) == ([], ["README.md"])


def test_a_dry_run_says_what_a_real_one_does(fork: Copy, hub: Hub, aws: None) -> None:
    ways: list[dict[str, Any]] = [{}, {"account": ACCOUNT, "without_example": True, "runner": "inside"}]
    for more in ways:
        dry = adopt(fork, dry=True, **more)
        assert (fork.changed, hub.written) == ({}, [])
        real = adopt(fork, **more)
        assert (dry.done, dry.limits) == (real.done, real.limits)
        fork.reset()
        hub.reset()
    hub.environments["dev"] = Environment({}, [], "protected")
    assert "set environment dev: main deploys there" in adopt(fork, dry=True).done


def test_the_command(fork: Copy, hub: Hub) -> None:
    def mlops(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *words]
        return subprocess.run(command, cwd=fork.root, capture_output=True, text=True, env=os.environ | env)

    words = ("adopt", "acme/ml", "--owners", "@acme/ml", "--without-example", "--json")
    done = mlops(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["limits"][0] == ALONE
    assert "set environment prod: main deploys there" in json.loads(done.stdout)["done"]
    assert [path for path in fork.changed if not re.fullmatch(FORKS, path)] == []
    assert json.loads(mlops(*words).stdout)["done"] == []
    refused = mlops(*words, GITHUB_TOKEN="user:ben")
    assert refused.returncode == 2
    assert NOT_OURS in refused.stderr


def test_the_copy_still_renders(fork: Copy, hub: Hub) -> None:
    adopt(fork, account=ACCOUNT)
    command = [sys.executable, "-m", "infra.render", "dev"]
    done = subprocess.run(command, cwd=fork.root, capture_output=True, text=True)
    assert (done.returncode, "kind: Deployment" in done.stdout) == (0, True), done.stderr


# Interruptions.


@pytest.mark.parametrize("late", [False, True])
def test_cut_at_any_request_it_completes(fork: Copy, hub: Hub, aws: None, late: bool) -> None:
    fork.change("environments/delivery.yaml", "[dev, staging, prod]", "[dev]")  # as many kinds, fewer requests
    on_aws(fork)
    adopt(fork, account=ACCOUNT)
    merge(fork, hub)
    fork.change("README.md", "# ml\n", "# mlops: the template's\n")
    fork.commit()

    def fresh() -> None:
        hub.reset()
        hub.variables["AWS_REGION"] = "eu-west-1"
        hub.environments["dev"] = Environment({"AWS_REGION": "eu-west-1"}, ["release"], "custom")

    fresh()
    adopt(fork, account=ACCOUNT)
    files, state = fork.files, hub.state
    writing = [n for n, each in enumerate(hub.requests, 1) if each.method != "GET"]
    assert {each.method for each in hub.requests} == {"GET", "POST", "PUT", "PATCH"}
    reading = [] if late else [n for n in range(1, len(hub.requests) + 1) if n not in writing]
    for n in [*reading[:3], *writing, *reading[-3:]]:
        if n < 6:
            fork.reset()
        fresh()
        hub.fail_at, hub.fail_after = n, late
        if n in writing:
            with pytest.raises(UserError, match="does not answer"):
                adopt(fork, account=ACCOUNT)
            assert (SWITCH in hub.variables) == (late and n == writing[-1])
        adopt(fork, account=ACCOUNT)  # a request that only reads was asked again
        assert (fork.files, hub.state) == (files, state), n


def test_killed_at_any_file_it_completes(fork: Copy, hub: Hub, aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    on_aws(fork)
    for name in [*fork.root.glob("docs/proofs/*.json")][2:]:
        name.unlink()
    fork.commit()
    left = 0

    def dies(change: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*words: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            return change(*words, **more)

        return maybe

    run: dict[str, Any] = {"account": ACCOUNT, "without_example": True}
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, dies(getattr(Path, name)))
    adopt(fork, **run)
    files, state, count = fork.files, hub.state, -left
    assert count > 10
    for n in range(1, count + 1):
        fork.reset()
        hub.reset()
        left = n
        with pytest.raises(KeyboardInterrupt):
            adopt(fork, **run)
        assert hub.state["variables"] == {}
        adopt(fork, **run)
        assert (fork.files, hub.state) == (files, state), n


# What was there before.


def test_what_differs_is_set_right_and_what_a_team_added_stays(fork: Copy, hub: Hub) -> None:
    people, rule = [{"type": "User", "id": 7}], {"type": "required_linear_history"}
    hub.environments = {
        "dev": Environment({"MINE": "1"}, ["release/*"], "custom"), "prod": Environment({}, [], "", people, 30),
        "other": Environment(),
    }  # fmt: skip
    hub.private = False
    hub.variables |= {SWITCH: "[]", "MINE": "1"}
    hub.workflow_permissions["default_workflow_permissions"] = "write"
    reviews = {
        "required_approving_review_count": 2, "dismiss_stale_reviews_on_push": False, "require_code_owner_review": False,
        "require_last_push_approval": False, "required_review_thread_resolution": True,
    }  # fmt: skip
    theirs_too: dict[str, Any] = {"context": "theirs"}
    listed = [theirs_too, {"context": "required"}]  # from anybody
    checks = {"strict_required_status_checks_policy": True, "required_status_checks": listed}
    where = {"ref_name": {"include": ["refs/heads/release"], "exclude": ["refs/heads/main"]}}
    hub.rulesets[5] = {
        "id": 5, "name": "main", "target": "branch", "enforcement": "disabled", "source": "acme/ml", "conditions": where,
        "rules": [rule, {"type": "pull_request", "parameters": reviews}, {"type": "required_status_checks", "parameters": checks}],
        "bypass_actors": [{"actor_id": 5, "actor_type": "RepositoryRole", "bypass_mode": "always"}],
    }  # fmt: skip
    hub.rulesets[6] = copy.deepcopy(hub.rulesets[5]) | {"id": 6, "name": "theirs"}
    theirs = copy.deepcopy(hub.rulesets[6])
    made = adopt(fork)
    assert hub.environments == {
        "dev": Environment({"MINE": "1"}, ["release/*", "main"], "custom"), "staging": Environment({}, ["main"], "custom"),
        "prod": Environment({}, ["main"], "custom", people, 30), "other": Environment(),
    }  # fmt: skip
    assert hub.variables == {SWITCH: "[]", "MINE": "1"}
    assert hub.workflow_permissions["default_workflow_permissions"] == "read"
    ours = hub.rulesets[5]
    assert ours["enforcement"] == "active"
    assert ours["conditions"]["ref_name"] == {"include": ["refs/heads/release", "~DEFAULT_BRANCH"], "exclude": []}
    rules = {each["type"]: each.get("parameters") for each in ours["rules"]}
    assert {*rules} == {
        "required_linear_history",
        "pull_request",
        "required_status_checks",
        "deletion",
        "non_fast_forward",
    }
    ours_too = ("dismiss_stale_reviews_on_push", "require_code_owner_review", "require_last_push_approval")
    raised = reviews | dict.fromkeys(ours_too, True)
    assert raised.items() <= rules["pull_request"].items()
    contexts = [theirs_too, CHECK]
    assert (checks | {"required_status_checks": contexts}).items() <= rules["required_status_checks"].items()
    assert [len(hub.rulesets), hub.rulesets[6]] == [2, theirs]
    assert len(ours["bypass_actors"]) == 1
    assert [each.partition(":")[0] for each in made.limits] == [
        "environment dev", "rules of main", "dev, staging, prod", *["workflows"] * 3,
    ]  # fmt: skip
    assert made.limits[-1] == f"workflows: on since before, but fail until {MERGE}"
    assert "release/* may deploy there too" in made.limits[0]
    assert adopt(fork).done == []


@pytest.mark.parametrize(
    ("repository", "token", "said"),
    [
        ("acme/ml", "user:ben", NOT_OURS),
        ("acme/missing", "user:ann", NOT_OURS),
        ("acme", "user:ann", NOT_OURS),
        ("acme/moved", "user:ann", NOT_OURS),
        ("acme/ml", "ghp_wrong", "answered 401"),
    ],
)
def test_without_the_right_to_nothing_changes(
    fork: Copy, hub: Hub, monkeypatch: pytest.MonkeyPatch, repository: str, token: str, said: str
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", token)
    hub.moved = repository == "acme/moved"
    with pytest.raises(UserError, match=said):
        adopt(fork, "acme/ml" if hub.moved else repository)
    assert (fork.changed, hub.written) == ({}, [])
    hub.requests.clear()  # of a repository that the stand-in does not know


def test_a_right_that_is_missing_is_no_limit_of_the_plan(fork: Copy, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ask: Ask) -> Any:
        raise Refused(403, "Resource not accessible by personal access token")

    monkeypatch.setattr(hub, "repos_create_repo_ruleset", refuse, raising=False)
    with pytest.raises(UserError, match="not accessible by personal access token"):
        adopt(fork)
    assert SWITCH not in hub.variables


@pytest.mark.parametrize(
    "given",
    [
        {"name": "My Team"},
        {"account": "1234"},
        {"owners": "acme/ml"},
        {"runner": "self-hosted, linux"},
        {"owners": "@a\n* @b"},
        {"repository": "acme/ml"},
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(fork: Copy, hub: Hub, given: dict[str, Any]) -> None:
    if "repository" in given:
        hub.name, hub.full_name = "1st", "acme/1st"
        given = {"repository": "acme/1st"}
    with pytest.raises(UserError, match=r"must be|give another with --name"):
        adopt(fork, **given)
    assert (fork.changed, hub.written) == ({}, [])


@pytest.mark.parametrize(("name", "short"), [("Fraud.Model_v2", "fraud-model-v2"), ("ML", "ml")])
def test_names_with_dots_and_upper_case(fork: Copy, hub: Hub, name: str, short: str) -> None:
    hub.owner, hub.name, hub.full_name = "Acme", name, f"Acme/{name}"
    adopt(fork, f"aCME/{name.lower()}")
    assert [Road.load(fork.root).name, Road.load(fork.root).repository] == [short, f"Acme/{name}"]
    github = fork.config("environments/account/Pulumi.shared.yaml")["mlops-account:github"]
    assert github == {"repository": f"Acme/{name}", "subject": f"repo:Acme@123/{name}@456"}


def test_github_enterprise(fork: Copy, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_API_URL", f"{hub.url}/api/v3")
    assert adopt(fork).limits == adopt(fork).limits
    command = [sys.executable, "-c", "from cli.delivery import adopt; print(adopt._CHECK)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{'context': 'required'}\n"  # there another number is that of Actions


# What is not enforced.


def test_a_private_repository_on_the_free_plan(fork: Copy, hub: Hub) -> None:
    hub.plan = "free-private"
    made = adopt(fork)
    assert [each.partition(":")[0] for each in others(made)] == [
        *(f"environment {each}, where chosen branches deploy" for each in STAGES), "rules of main",
    ]  # fmt: skip
    assert "billing plan" in made.limits[0]
    assert "Upgrade to GitHub Pro" in others(made)[-1]
    assert ALONE not in made.limits
    assert hub.environments == {each: Environment() for each in STAGES}
    assert not [each for each in made.done if "rules of main" in each or "chosen branches" in each]
    again = adopt(fork)
    assert (again.done, again.limits) == ([], made.limits)
    hub.plan = "team"
    assert others(adopt(fork)) == []
    assert hub.environments == {each: Environment({}, ["main"], "custom") for each in STAGES}


def test_other_limits(fork: Copy, hub: Hub) -> None:
    hub.forbids, hub.customized, hub.branch = True, True, "trunk"
    hub.unknown = ("/infra/  @your-org/ml-platform\n", "/infra/  @acme/gone\n")
    made = adopt(fork, owners="")
    assert [each.partition(":")[0] for each in others(made)] == [
        "workflows", "roles in AWS", "that workflows may open pull requests", *["reviews by code owners"] * 2,
    ]  # fmt: skip
    assert "names nobody; give --owners" in others(made)[-2]
    assert others(made)[-1] == "reviews by code owners: Unknown owner: /infra/  @acme/gone"
    assert hub.environments["prod"].branches == ["trunk"]
    assert switch(made)[-1] == MERGE.replace("main", "trunk")
    assert len(others(adopt(fork, owners="@acme/ml"))) == 4  # those of the placeholder are over


# AWS.


def test_an_account(fork: Copy, hub: Hub, aws: None) -> None:
    made = adopt(fork, account=ACCOUNT)
    assert made.limits == [
        ALONE,
        f"dev, staging, prod: {API}",
        *(f"workflows: off until {each}" for each in (SIGN, ROLES, MERGE)),
    ]
    assert SWITCH not in hub.variables
    left = [
        line.strip() for file in fork.root.glob("environments/**/Pulumi.*") for line in file.open() if "0" * 12 in line
    ]
    assert left == [f"admins: arn:aws:iam::{'0' * 12}:role/yours"] * 3  # mlops doctor names them
    assert fork.config("environments/aws/Pulumi.dev.yaml")["mlops-aws:account"] == ACCOUNT
    road = Road.load(fork.root)
    assert road.store == f"s3://mlops-state-{ACCOUNT}/delivery"
    assert road.registry == f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com"
    assert fork.text("environments/delivery.yaml").count("#") == 6
    assert "# Small and cheap:" in fork.text("environments/aws/Pulumi.dev.yaml")
    assert fork.keys == []
    fork.commit()
    with pytest.raises(UserError, match=f"names {ACCOUNT}"):
        adopt(fork, account=OTHER)
    assert fork.changed == {}
    assert SWITCH not in hub.variables

    told = on_aws(fork)
    fork.commit()
    merge(fork, hub)
    made = adopt(fork, dry=True)
    assert (switch(made), fork.changed) == ([MERGE], {})
    made = adopt(fork, runner="inside")
    assert (others(made), switch(made), [*fork.changed]) == ([], [MERGE], ["environments/keyring.json"])
    assert SWITCH not in hub.variables
    merge(fork, hub)
    made = adopt(fork)
    assert (made.limits, made.done) == ([ALONE], [f"set variable {SWITCH} of actions"])
    keys = told["deliveryKeys"]
    assert [(key.role, key.environment, key.kms) for key in fork.keys] == [
        ("build", None, keys["dev"]), *(("approve", each, keys[each]) for each in STAGES),
    ]  # fmt: skip
    for each in STAGES:
        roles = {f"AWS_ROLE_{purpose.upper()}": arn for purpose, arn in told["roles"][each].items()}
        assert hub.environments[each].variables == roles | {"AWS_REGION": "us-east-1"}
    assert hub.variables == {
        "AWS_REGION": "us-east-1", SWITCH: '["dev", "staging", "prod"]', "MLOPS_RUNNER": "inside",
        **{f"AWS_ROLE_WATCH_{each.upper()}": told["roles"][each]["watch"] for each in STAGES},
        **{f"AWS_ROLE_PREVIEW_{each.upper()}": told["roles"][each]["preview"] for each in STAGES[:-1]},
    }  # fmt: skip
    assert adopt(fork).done == []
    on_aws(fork)  # made anew
    assert len(adopt(fork).done) == len(fork.keys) // 2 == 4
    assert adopt(fork).done == []


def test_from_this_machine_to_aws(fork: Copy, hub: Hub, aws: None) -> None:
    adopt(fork)
    assert switch(adopt(fork, account=ACCOUNT)) == [SIGN, ROLES, MERGE]  # its keys cannot sign there
    assert hub.variables == {}
    on_aws(fork)
    adopt(fork, account=ACCOUNT)
    signs = [(key.role, key.environment) for key in fork.keys if key.kms]
    assert signs == [("build", None), *(("approve", each) for each in STAGES)]


def test_outputs_that_cannot_be_read(fork: Copy, hub: Hub, aws: None) -> None:
    on_aws(fork)
    fork.write("environments/pulumi", "#!/bin/sh\necho no credentials >&2; exit 1\n")
    with pytest.raises(UserError, match="no credentials"):
        adopt(fork, account=ACCOUNT)
    assert SWITCH not in hub.variables


def test_another_layout(fork: Copy, hub: Hub, aws: None) -> None:
    """Two environments with other names, an account each."""
    fork.change("environments/delivery.yaml", "[dev, staging, prod]", "[test-eu, live]")
    for old, new, stack in (("dev", "test-eu", "shared"), ("prod", "live", "prod")):
        name = f"environments/aws/Pulumi.{new}.yaml"
        fork.git("mv", f"environments/aws/Pulumi.{old}.yaml", name)
        fork.change(name, "config:\n", f"config:\n  mlops-aws:accountStack: {stack}\n")
    fork.git("rm", "-q", "environments/aws/Pulumi.staging.yaml")
    own = (
        f"# Ours.\nconfig:\n  mlops-account:github: # of live\n    branch: release # not main\n"
        f'  mlops-account:account: "{OTHER}"\n  mlops-account:region: eu-west-1 # near\nencryptionsalt: v1:x\n'
    )
    fork.write("environments/account/Pulumi.prod.yaml", own.replace(" # of live", ""))
    told = {"shared": on_aws(fork, "shared", ["test-eu"]), "prod": on_aws(fork, "prod", ["live"])}
    fork.commit()
    made = adopt(fork, account=ACCOUNT)
    assert (others(made), switch(made)) == ([], [MERGE])
    merge(fork, hub)
    adopt(fork, account=ACCOUNT)
    ours = fork.text("environments/account/Pulumi.prod.yaml")
    added = '    repository: "acme/ml"\n    subject: "repo:acme@123/ml@456"\n'
    assert ours == own.replace(" # of live", "").replace("    branch", f"{added}    branch")
    assert {name: each.variables["AWS_REGION"] for name, each in hub.environments.items()} == {
        "test-eu": "us-east-1", "live": "eu-west-1",
    }  # fmt: skip
    assert hub.environments["live"].variables["AWS_ROLE_DEPLOY"] == told["prod"]["roles"]["live"]["deploy"]
    assert hub.variables == {
        "AWS_ROLE_PREVIEW_TEST_EU": told["shared"]["roles"]["test-eu"]["preview"], "AWS_REGION": "us-east-1",
        "AWS_ROLE_WATCH_TEST_EU": told["shared"]["roles"]["test-eu"]["watch"],
        "AWS_ROLE_WATCH_LIVE": told["prod"]["roles"]["live"]["watch"],
        SWITCH: '["test-eu", "live"]',
    }  # fmt: skip
    assert [key.kms for key in fork.keys][-1] == told["prod"]["deliveryKeys"]["live"]
    assert adopt(fork, account=ACCOUNT).done == []


@pytest.mark.parametrize("text", ["config:\n  mlops-account:github: {branch: main}\n", "# nothing yet\n"])
def test_a_file_of_a_form_it_does_not_know(fork: Copy, hub: Hub, text: str) -> None:
    fork.write("environments/account/Pulumi.shared.yaml", text)
    with pytest.raises(UserError, match=r"cannot be edited: write .*acme/ml"):
        adopt(fork)
    assert fork.text("environments/account/Pulumi.shared.yaml") == text
    assert hub.written == []


# The switch.


def ready(fork: Copy, hub: Hub) -> None:
    """On AWS, and only the switch is missing."""
    on_aws(fork)
    for each in STAGES:
        fork.change(f"environments/aws/Pulumi.{each}.yaml", "192.0.2.0/24", "198.51.100.0/24,0.0.0.0/0")
    adopt(fork, account=ACCOUNT)
    merge(fork, hub)


ROAD, AWS_PROD = "environments/delivery.yaml", "environments/aws/Pulumi.prod.yaml"
BREAKS: dict[str, tuple[Callable[[Copy], object], str, bool]] = {  # what needs no merge comes last
    "no store": (lambda f: f.change(ROAD, f"s3://mlops-state-{ACCOUNT}", ".mlops"), STORE, True),
    "no keys": (lambda f: f.write("environments/keyring.json", '{"keys": []}'), SIGN, True),
    "no roles": (lambda f: told(f, roles={"dev": {"preview": "arn"}}), ROLES.replace("dev, ", ""), False),
    "no runner": (lambda f: f.git("rm", "-q", AWS_PROD), "a runner reaches prod: name one (--runner LABEL)", False),
    "no runner for a folder": (
        lambda f: f.change(ROAD, f"s3://mlops-state-{ACCOUNT}", "/srv"),
        "a runner reaches /srv/delivery: name one (--runner LABEL)", True,
    ),
    "another road": (lambda f: f.change(ROAD, "0.95..1.0", "0.9..1.0"), MERGE, False),
    "another keyring": (lambda f: f.write("environments/keyring.json", f"{f.text('environments/keyring.json')}\n"), MERGE, False),
}  # fmt: skip


def told(fork: Copy, **outputs: Any) -> None:
    fork.write(".mlops/shared.json", json.dumps(json.loads(fork.text(".mlops/shared.json")) | outputs))


def test_the_switch_waits_for_each_thing_that_it_needs(fork: Copy, hub: Hub, aws: None) -> None:
    ready(fork, hub)
    whole, outputs = fork.git("rev-parse", "HEAD").strip(), json.loads(fork.text(".mlops/shared.json"))
    for name, (change, needed, merged) in BREAKS.items():
        fork.git("reset", "-q", "--hard", whole)
        told(fork, **outputs | ({"deliveryKeys": {}} if name == "no keys" else {}))
        merge(fork, hub)
        hub.variables.clear()
        change(fork)
        if merged:
            merge(fork, hub)
        assert (switch(adopt(fork)), SWITCH in hub.variables) == ([needed], False), name
        hub.variables[SWITCH] = '["dev"]'
        on = f"workflows: on since before, but fail until {needed}"
        assert (others(adopt(fork)), hub.variables[SWITCH]) == ([on], '["dev"]'), name
        if "runner" in name:
            assert (adopt(fork, runner="inside").limits, hub.variables[SWITCH]) == ([ALONE], json.dumps(STAGES))
            assert hub.variables["MLOPS_RUNNER"] == "inside"
            assert adopt(fork).limits == [ALONE]  # it stays

    fork.git("reset", "-q", "--hard", whole)
    told(fork, **outputs)
    merge(fork, hub)
    hub.variables.clear()
    made = adopt(fork)
    assert (made.limits, made.done[-1], hub.variables[SWITCH]) == (
        [ALONE],
        f"set variable {SWITCH} of actions",
        json.dumps(STAGES),
    )
    assert hub.written[-1] == "POST /repos/acme/ml/actions/variables"
    fork.change(AWS_PROD, ",0.0.0.0/0", "")
    assert adopt(fork).limits == [ALONE, f"prod: {API}"]
    assert adopt(fork, runner="inside").limits == adopt(fork).limits == [ALONE]


def test_the_switch_of_machines(fork: Copy, hub: Hub) -> None:
    for each in STAGES:
        fork.git("rm", "-q", f"environments/aws/Pulumi.{each}.yaml")
    fork.change(ROAD, "store: .mlops/", f"store: {fork.root}/.mlops/")
    adopt(fork)
    merge(fork, hub)
    assert switch(adopt(fork)) == ["a runner reaches dev, staging, prod: name one (--runner LABEL)"]
    made = adopt(fork, runner="machines")
    assert (made.limits, hub.variables) == ([ALONE], {SWITCH: json.dumps(STAGES), "MLOPS_RUNNER": "machines"})


def test_code_owners_own_all_but_the_models() -> None:
    rules = [line.split() for line in (ROOT / ".github/CODEOWNERS").read_text().splitlines() if line[0] != "#"]
    assert [rules[0][0], {rule for rule, _ in rules[1:]}] == ["*", {"/training/models/", "/tests/models/"}]
    assert [team for _, team in rules] == ["@your-org/ml-platform", *["@your-org/ml-engineers"] * 2]


# Files.


def test_without_the_example_its_two_folders_go_and_nothing_else(fork: Copy, hub: Hub) -> None:
    fork.write("training/models/ours/train.py", "")
    fork.commit()
    adopt(fork)
    fork.commit()
    adopt(fork, without_example=True)
    example = ("training/models/", "tests/models/")
    paths = [each for each in fork.git("ls-tree", "-r", "--name-only", "HEAD^").split("\n") if each.startswith(example)]
    theirs = {each for each in paths if each.count("/") > 2 and "/ours/" not in each}
    assert {*fork.changed} == theirs
    assert not [each for each in theirs if (fork.root / each).parent.exists()]


def test_a_proof_of_the_team_s_own_stays(fork: Copy, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    index = "docs/proofs/README.md"
    row = "| [gate2](gate2.json) | Ours. | yes | 1 | 2026-01-02 |\n"
    fork.write("docs/proofs/gate2.json", json.dumps(PROOF))
    fork.change(index, "| [hostile]", f"{row}| [hostile]")  # between the template's
    fork.write("docs/proofs/fuzz.json", json.dumps(PROOF))  # proved again
    fork.commit()
    adopt(fork)
    assert sorted(each.name for each in fork.root.glob("docs/proofs/*.json")) == ["fuzz.json", "gate2.json"]
    lines = fork.text(index).splitlines()
    assert [line.partition("(")[0] for line in lines[-2:]] == ["| [fuzz]", "| [gate2]"]
    assert len(lines) == 8
    monkeypatch.setattr("tests.proofs.__main__.FOLDER", fork.root / "docs/proofs")
    (fork.root / "docs/proofs/gate2.json").unlink()
    header, separator = proofs_index().splitlines()[4:6]
    assert [header, separator] == lines[4:6]


def test_a_fork_with_history_and_one_that_was_upgraded(fork: Copy, hub: Hub) -> None:
    record = "environments/template.json"
    fork.write(record, json.dumps({"commit": "0" * 40, "tree": "0" * 40}))
    fork.commit()
    adopt(fork)
    assert [*fork.root.glob("docs/proofs/*.json")]  # nobody knows here whose they are
    fork.reset()
    fork.git("checkout", "-q", "--orphan", "older")
    fork.git("rm", "-rqf", ".")
    fork.write("README.md", "# Before there was a road\n")
    fork.commit()
    fork.git("checkout", "-q", "main", "--", ".")
    fork.git("rm", "-qf", record)
    fork.commit()
    adopt(fork)
    assert json.loads(fork.text(record))["commit"] == fork.git("rev-parse", "HEAD").strip()


def test_files_that_a_team_has_removed_or_rewritten(fork: Copy, hub: Hub) -> None:
    shutil.rmtree(fork.root / "docs")
    (fork.root / ".github/CODEOWNERS").unlink()
    fork.write("README.md", "Ours, without a heading.\n")
    fork.commit()
    made = adopt(fork)
    assert not {*fork.changed} & {"README.md", ".github/CODEOWNERS"}
    assert not (fork.root / "docs").exists()
    assert others(made) == ["reviews by code owners: .github/CODEOWNERS names nobody; give --owners"]
