"""What act ignores and GitHub does not, read from the workflows' text: permissions, groups, time-outs, environments, inputs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cli.delivery import verbs
from cli.delivery.road import Road
from infra.account.components.github import WORKFLOWS as ROLES
from infra.account.outputs import PURPOSES
from mlops.environment import ROOT

GITHUB = ROOT / ".github"
FILES = sorted((GITHUB / "workflows").glob("*.yml"))
TEXTS = {path.name: path.read_text() for path in FILES}
PARSED: dict[str, dict[Any, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
ACTIONS = {
    "actions/checkout", "actions/setup-python", "actions/upload-artifact", "actions/download-artifact",
    "aws-actions/configure-aws-credentials", "aws-actions/amazon-ecr-login", "pulumi/actions",
}  # fmt: skip
LEVELS = ("none", "read", "write")
EVENTS = {name: set(each[True] if isinstance(each[True], dict) else [each[True]]) for name, each in PARSED.items()}
each_file = pytest.mark.parametrize("name", PARSED)


def jobs(name: str) -> list[tuple[str, dict[str, Any]]]:
    return list(PARSED[name]["jobs"].items())


def steps(name: str) -> list[dict[str, Any]]:
    return [step for _, job in jobs(name) for step in job.get("steps", [])]


def called(job: dict[str, Any]) -> str:
    return job.get("uses", "").rpartition("/")[2]


def inputs(name: str) -> dict[str, Any]:
    return PARSED[name][True]["workflow_call"]["inputs"]


@each_file
def test_actions_are_few_and_pinned_with_their_version(name: str) -> None:
    setup = yaml.safe_load((GITHUB / "actions" / "setup" / "action.yml").read_text())
    used = [step["uses"] for step in [*steps(name), *setup["runs"]["steps"]] if "uses" in step]
    assert {each.partition("@")[0] for each in used if not each.startswith("./")} <= ACTIONS
    lines = [line for line in TEXTS[name].splitlines() if "uses: " in line and "uses: ./" not in line]
    assert [line for line in lines if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []


def test_an_action_has_one_version() -> None:
    found = re.findall(
        r"uses: ([\w/-]+)@(\S+ # \S+)", "\n".join([*TEXTS.values(), (GITHUB / "actions/setup/action.yml").read_text()])
    )
    assert len({action for action, _ in found}) == len(set(found))


def test_the_pulumi_of_pipelines_is_in_step_with_the_sdk() -> None:
    versions = set(re.findall(r"pulumi-version: (\S+)", "\n".join(TEXTS.values())))
    assert versions == {version("pulumi")}
    assert len(re.findall("uses: pulumi/actions", "\n".join(TEXTS.values()))) == len(
        re.findall("pulumi-version", "\n".join(TEXTS.values()))
    )


@each_file
def test_nothing_is_granted_at_the_top_and_little_below(name: str) -> None:
    assert PARSED[name]["permissions"] == {}
    for job, told in jobs(name):
        assert "permissions" in told, job
        assert set(told["permissions"].values()) <= {"read", "write"}, job
        if {"pull_request", "workflow_run"} & EVENTS[name]:
            assert told["permissions"].get("contents", "read") == "read", (
                f"{job}: what outsiders start writes nothing here"
            )


@each_file
def test_every_job_has_a_name_and_an_end(name: str) -> None:
    """A job that calls a workflow cannot have a time-out: those of the called one count."""
    for job, told in jobs(name):
        assert told["name"], job
        assert ("uses" in told) != (0 < told.get("timeout-minutes", 0) <= 90), job


@each_file
def test_a_called_workflow_asks_for_no_more_than_its_caller_grants(name: str) -> None:
    """Otherwise GitHub starts no job at all, and no checker says so."""
    for job, told in jobs(name):
        if not called(told):
            continue
        for inner, asked in jobs(called(told)):
            granted = told["permissions"]
            over = {
                scope
                for scope, level in asked["permissions"].items()
                if LEVELS.index(level) > LEVELS.index(granted.get(scope, "none"))
            }
            assert over == set(), f"{job} grants less than {inner} asks for"


@each_file
def test_inputs_of_a_call_are_declared_and_given(name: str) -> None:
    for job, told in jobs(name):
        if called(told):
            declared, given = inputs(called(told)), told.get("with", {})
            assert set(given) <= set(declared), job
            assert {each for each, about in declared.items() if about.get("required")} <= set(given), job
            assert "secrets" not in told, job


@each_file
def test_no_expression_reaches_a_shell_and_no_secret_but_the_token_is_used(name: str) -> None:
    assert [step["run"] for step in steps(name) if "${{" in step.get("run", "")] == []
    assert "secrets." not in TEXTS[name]
    assert not re.search(r"AWS_(ACCESS_KEY|SECRET)|AKIA", TEXTS[name]), "roles, no keys"
    assert all(
        step.get("with", {}).get("persist-credentials") is False
        for step in steps(name)
        if "actions/checkout" in step.get("uses", "")
    )


@each_file
def test_a_step_is_one_command_that_exists(name: str) -> None:
    known = typer.main.get_command(verbs.app).commands  # ty: ignore[missing-attribute]
    for run in (step["run"] for step in steps(name) if "run" in step):
        assert "\n" not in run.strip(), run
        if found := re.match(r"\.venv/bin/mlops ci (\S+)", run):
            assert found.group(1) in known
            command = known[found.group(1)]
            options = {option for each in command.params for option in each.opts}
            assert {word for word in run.split() if word.startswith("--")} <= options


@each_file
def test_a_command_gets_what_it_needs_from_its_environment(name: str) -> None:
    for _, told in jobs(name):
        for step in told.get("steps", []):
            if not (found := re.match(r"\.venv/bin/mlops ci (\S+)(.*)", step.get("run", ""))):
                continue
            command = typer.main.get_command(verbs.app).commands[found.group(1)]  # ty: ignore[missing-attribute]
            given = {*PARSED[name].get("env", {}), *told.get("env", {}), *step.get("env", {})}
            arguments = len([word for word in found.group(2).split() if not word.startswith("--")])
            needed = [each for each in command.params if each.required][arguments:]
            assert {each.envvar for each in needed} <= given, step
            asks = found.group(1) in ("comment", "promote", "watch", "drill", "audit", "update")
            assert ("GITHUB_TOKEN" in given) >= asks, step


@each_file
def test_environments_are_those_of_the_road_and_named_only_once_they_exist(name: str) -> None:
    """Naming a missing one makes it, open to all: the switch comes first."""
    for job, told in jobs(name):
        if "environment" not in told:
            continue
        conditions = str(told.get("if", "")) + "".join(
            str(PARSED[name]["jobs"][each].get("if", "")) for each in needs(told)
        )
        assert "vars.MLOPS_ENVIRONMENTS" in conditions, job
        if "${{" not in told["environment"]:
            assert told["environment"] in Road.load().environments, job
    choices = [
        about.get("options", [])
        for key, about in ((PARSED[name][True] or {}).get("workflow_dispatch") or {}).get("inputs", {}).items()
        if key in ("environment", "from")
    ]
    assert {each for options in choices for each in options} - {"here"} <= set(Road.load().environments)


def needs(job: dict[str, Any]) -> list[str]:
    found = job.get("needs", [])
    return [found] if isinstance(found, str) else found


@each_file
def test_what_deploys_waits_in_a_line_and_is_never_stopped(name: str) -> None:
    groups = [PARSED[name].get("concurrency"), *(told.get("concurrency") for _, told in jobs(name))]
    for group in filter(None, groups):
        if {"pull_request", "workflow_run"} & EVENTS[name] or group["group"] == "watch":
            continue  # the newest says all that the others would
        assert group["queue"] == "max", f"{group['group']}: GitHub would drop all but the last"
        assert "cancel-in-progress" not in group
    if name not in ("ci.yml", "comment.yml"):
        changes = [
            job
            for job, told in jobs(name)
            if any(re.search("ci (deploy|rollback|release)", step.get("run", "")) for step in told.get("steps", []))
        ]
        for job in changes:
            assert PARSED[name]["jobs"][job]["concurrency"]["group"] == "deploy-${{ inputs.environment }}", job


@each_file
def test_without_environments_a_sentence_says_why_nothing_happens(name: str) -> None:
    if name in ("ci.yml", "comment.yml", "deploy.yml", "production.yml"):
        return
    closed = PARSED[name]["jobs"]["closed"]
    assert closed["if"] == "vars.MLOPS_ENVIRONMENTS == ''"
    assert "mlops adopt makes it yours" in closed["steps"][0]["run"]


def test_workflows_that_are_named_exist() -> None:
    names = {each["name"] for each in PARSED.values()}
    assert set(PARSED["comment.yml"][True]["workflow_run"]["workflows"]) <= names
    assert {f"{each}.yml" for files in ROLES.values() for each in files} <= set(PARSED)
    assert set(re.findall(r"./.github/workflows/(\S+)", "\n".join(TEXTS.values()))) <= set(PARSED)


@pytest.mark.parametrize("purpose", ROLES)
def test_a_role_is_assumed_by_the_workflows_that_it_trusts(purpose: str) -> None:
    used = re.compile(rf"vars\.AWS_ROLE_{purpose.upper()}(_[A-Z]+)? }}}}")
    users = {name.removesuffix(".yml") for name, text in TEXTS.items() if used.search(text)}
    assert users == set(ROLES[purpose])


def test_every_role_that_a_workflow_assumes_is_one_of_ours() -> None:
    assert {each.lower() for text in TEXTS.values() for each in re.findall(r"AWS_ROLE_([A-Z]+)", text)} == set(PURPOSES)


def test_what_runs_code_of_a_pull_request_has_no_secret_and_what_comments_runs_none_of_it() -> None:
    for job, told in jobs("ci.yml"):
        assert set(told["permissions"].values()) <= {"read"} or job == "cloud", job
    cloud = PARSED["ci.yml"]["jobs"]["cloud"]
    assert "head.repo.full_name == github.repository" in cloud["if"]
    assert "prod" not in json.dumps(cloud)
    for step in steps("comment.yml"):
        assert "ref" not in step.get("with", {}), "the code is main's"
        assert "working-directory" not in step


def test_the_check_that_the_rules_require_knows_all_jobs() -> None:
    told = PARSED["ci.yml"]["jobs"]
    assert set(told["required"]["needs"]) == set(told) - {"required", "cloud"}
    for results, ends in (
        ("success skipped", 0),
        ("success failure", 1),
        ("cancelled success", 1),
        ("success success", 0),
    ):
        done = subprocess.run(["bash", "-e", "-c", told["required"]["steps"][0]["run"]], env={"RESULTS": results})
        assert done.returncode == ends, results


CHECKERS = {
    "actionlint": ["actionlint"],
    "zizmor": ["zizmor", "--offline", "--persona", "auditor", "--no-progress", ".github"],
    "shellcheck": ["shellcheck", ".github/tools", ".ci/run", "environments/pulumi", "environments/account/up"],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_finds_nothing(checker: str) -> None:
    command = CHECKERS[checker]
    if shutil.which(command[0]) is None and not (Path.home() / "go" / "bin" / command[0]).exists():
        pytest.skip(f"{checker} is not installed")
    program = shutil.which(command[0]) or str(Path.home() / "go" / "bin" / command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
