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

ACCOUNT, OTHER = "123456789012", "210987654321"
STAGES = ["dev", "staging", "prod"]
SWITCH = "MLOPS_ENVIRONMENTS"
FORKS = r"(training|tests)/models/.+|environments/.+|requirements/.+|README\.md|\.github/CODEOWNERS|docs/proofs/.+"
PROOF = {"proof": "mine", "holds": True, "seconds": 60, "date": "2026-01-02"}


class Hub(Forge):
    """What only this command asks of GitHub."""

    branch = "main"
    unknown: tuple[str, ...] = ()  # lines of CODEOWNERS
    forbids = customized = moved = False

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
        self.git("checkout", "-q", ".")
        self.git("clean", "-qfdx")

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
    with Hub(tmp_path / "hub") as hub:
        monkeypatch.setenv("GITHUB_API_URL", hub.url)
        monkeypatch.setenv("GITHUB_TOKEN", "user:ann")
        yield hub
        assert hub.problems == []


def adopt(
    fork: Copy, repository: str = "acme/ml", name: str = "", owners: str = "@acme/ml", account: str = "",
    without_example: bool = False, dry: bool = False,
) -> Adoption:  # fmt: skip
    made = Adoption(fork.root, name, owners, account, without_example, GitHub(repository), dry)
    made.run()
    return made


def on_aws(fork: Copy, stack: str = "shared", stages: list[str] = STAGES) -> dict[str, Any]:
    """What `make account` leaves; inside moto."""
    purposes = ("preview", "infrastructure", "build", "deploy", "train", "promote")
    kms = boto3.client("kms", region_name="us-east-1")
    made = {
        "roles": {
            stage: {
                each: f"arn:aws:iam::{ACCOUNT}:role/{stage}-{each}"
                for each in purposes
                if each != "build" or stage == stages[0]
            }
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
    assert made.limits == []
    assert Road.load(fork.root).model_dump() == {
        "name": "fraud", "repository": "acme/ml", "environments": STAGES, "store": ".mlops/delivery", "registry": "",
        "replay": {"staging": "0.95..1.0"},
    }  # fmt: skip
    assert '"  # OWNER/NAME on GitHub\n' in fork.text("environments/delivery.yaml")
    assert fork.text("README.md").startswith("# fraud\n\nTraining, ")
    assert "@acme/ml\n" in fork.text(".github/CODEOWNERS")
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
    assert hub.variables == {SWITCH: '["dev", "staging", "prod"]'}
    assert hub.workflow_permissions == {
        "default_workflow_permissions": "read", "can_approve_pull_request_reviews": True,
    }  # fmt: skip
    (rules,) = hub.rulesets.values()
    assert (rules["name"], rules["enforcement"], rules["target"]) == ("main", "active", "branch")
    assert rules["conditions"]["ref_name"] == {"include": ["~DEFAULT_BRANCH"], "exclude": []}
    parameters = {each["type"]: each.get("parameters", {}) for each in rules["rules"]}
    assert {*parameters} == {"deletion", "non_fast_forward", "pull_request", "required_status_checks"}
    assert parameters["pull_request"]["require_code_owner_review"]
    assert parameters["required_status_checks"]["required_status_checks"] == [{"context": "required"}]
    assert hub.written[-1] == "POST /repos/acme/ml/actions/variables"
    assert made.done[-1] == f"set variable {SWITCH} of actions"
    assert [path for path in fork.changed if not re.fullmatch(FORKS, path)] == []


def test_done_twice_it_changes_nothing(fork: Copy, hub: Hub) -> None:
    adopt(fork, name="fraud")
    before, state = fork.files, hub.state
    for again in ({"name": "fraud"}, {"owners": ""}):  # it keeps its name
        hub.requests.clear()
        made = adopt(fork, **again)
        assert (made.done, made.limits, hub.written) == ([], [], [])
        assert (fork.files, hub.state) == (before, state)
    fork.commit()
    fork.write("README.md", f"# Our own\n\n{fork.text('README.md')}")
    assert (adopt(fork).done, [*fork.changed]) == ([], ["README.md"])


def test_a_dry_run_says_what_a_real_one_does(fork: Copy, hub: Hub, aws: None) -> None:
    for more in ({}, {"account": ACCOUNT, "without_example": True}):
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
    assert json.loads(done.stdout)["limits"] == []
    assert "set environment prod: main deploys there" in json.loads(done.stdout)["done"]
    assert [path for path in fork.changed if not re.fullmatch(FORKS, path)] == []
    assert json.loads(mlops(*words).stdout)["done"] == []
    refused = mlops(*words, GITHUB_TOKEN="user:ben")
    assert refused.returncode == 2
    assert "is not administered by its user" in refused.stderr


def test_the_copy_still_renders(fork: Copy, hub: Hub) -> None:
    adopt(fork, account=ACCOUNT)
    shown = "from infra import render; render.main() if hasattr(render, 'main') else None"
    assert shown
    for stack in ("dev", "aws/dev", "account/shared"):
        done = subprocess.run(
            [sys.executable, "-m", "infra.render", stack], cwd=fork.root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "repo:acme@123/ml@456:environment:prod" in done.stdout


# Interruptions.


def test_cut_at_any_request_it_completes(fork: Copy, hub: Hub, aws: None) -> None:
    on_aws(fork)
    fork.commit()
    hub.variables["AWS_REGION"] = "eu-west-1"
    adopt(fork, account=ACCOUNT)
    files, state, count = fork.files, hub.state, len(hub.requests)
    assert count > 40
    writing = [n for n, each in enumerate(hub.requests, 1) if each.method != "GET"]
    for n in range(1, count + 1):
        for hub.fail_after in (False, True) if n in writing else (False,):
            if n in (1, 2, 3):
                fork.reset_files() if hasattr(fork, "reset_files") else None
            hub.reset()
            hub.variables["AWS_REGION"] = "eu-west-1"
            hub.fail_at = n
            if n in writing:
                with pytest.raises(UserError, match="does not answer"):
                    adopt(fork, account=ACCOUNT)
                last = n == writing[-1] and hub.fail_after
                assert (SWITCH in hub.variables) == last
                adopt(fork, account=ACCOUNT)
            else:
                adopt(fork, account=ACCOUNT)  # what only reads is asked again
            assert (fork.files, hub.state) == (files, state), n
