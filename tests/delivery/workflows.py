"""Workflow files: which event starts them, and what act needs to be told to carry them out as GitHub does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.delivery.api import Api, Refused

if TYPE_CHECKING:
    from tests.delivery.forge import Run

FOLDER = ".github/workflows"
POLICY = '"$FORGE_PYTHON" "$FORGE_ACTIONS/environment.py"'
WORST = ("failure", "cancelled", "success", "skipped")


def parsed(text: str) -> dict[str, Any]:
    told = yaml.safe_load(text)
    return {"on" if key is True else key: value for key, value in told.items()}  # YAML 1.1's idea of `on`


def at(api: Api, commit: str) -> Iterator[tuple[str, dict[str, Any]]]:
    names = api.git("ls-tree", "--name-only", commit, f"{FOLDER}/").splitlines()
    for name in names:
        if name.endswith((".yml", ".yaml")):
            yield name.rpartition("/")[2], parsed(api.git("show", f"{commit}:{name}"))


def trigger(told: dict[str, Any], event: str) -> dict[str, Any] | None:
    """The filters of an event that the workflow waits for."""
    on = told.get("on", {})
    on = {on: None} if isinstance(on, str) else dict.fromkeys(on) if isinstance(on, list) else on
    if event not in on:
        return None
    return {"schedule": on[event]} if isinstance(on[event], list) else on[event] or {}


def matches(patterns: list[str], value: str) -> bool:
    """GitHub's filters: a later pattern wins, `!` excludes, `*` stops at a slash."""
    verdict = False
    for pattern in patterns:
        plain = (
            re.escape(pattern.removeprefix("!"))
            .replace(r"\*\*/", "(.*/)?")
            .replace(r"\*\*", ".*")
            .replace(r"\*", "[^/]*")
        )
        if re.fullmatch(plain.replace(r"\?", "[^/]"), value):
            verdict = not pattern.startswith("!")
    return verdict


def wanted(filters: dict[str, Any], event: str, about: dict[str, Any], paths: list[str]) -> bool:
    branch = about.get("branch", "main")
    if event == "pull_request":
        branch = about["pull"]["base"]["ref"]
        if about["action"] not in filters.get("types", ["opened", "synchronize", "reopened"]):
            return False
    elif event == "workflow_run":
        branch = about["of"]["head_branch"]
        if about["of"]["name"] not in filters.get("workflows", []):
            return False
    if event in ("workflow_run", "repository_dispatch") and about["action"] not in filters.get(
        "types", [about["action"]]
    ):
        return False
    if event == "push" and "tags" in filters and "branches" not in filters:
        return False
    found = [any(matches(filters["paths"], path) for path in paths)] if "paths" in filters else []
    if "paths-ignore" in filters:
        found.append(not all(matches(filters["paths-ignore"], path) for path in paths))
    if event in ("push", "pull_request", "workflow_run"):
        found.append(
            matches(filters.get("branches", ["**"]), branch) and not matches(filters.get("branches-ignore", []), branch)
        )
    return all(found)


def inputs(filters: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Of a dispatch, as strings, with defaults; act checks none of this."""
    declared, made = filters.get("inputs") or {}, {}
    if unexpected := given.keys() - declared.keys():
        raise Refused(422, f"Unexpected inputs provided: {sorted(unexpected)}")
    for name, each in declared.items():
        value = given.get(name, each.get("default"))
        if value is None and each.get("required"):
            raise Refused(422, f"Required input '{name}' not provided")
        value = {True: "true", False: "false", None: "" if each.get("type") != "boolean" else "false"}.get(value, value)
        if each.get("type") == "choice" and str(value) not in map(str, each["options"]):
            raise Refused(422, f"Provided value '{value}' for input '{name}' not in the list of allowed values")
        made[name] = str(value)
    return made


def context(payload: dict[str, Any], event: str, branch: str, name: str) -> dict[str, Any]:
    number = payload.get("number")
    ref = f"refs/pull/{number}/merge" if event == "pull_request" else f"refs/heads/{branch}"
    told = {"ref": ref, "ref_name": ref.split("/", 2)[2], "event_name": event, "workflow": name, "event": payload}
    told |= {
        "head_ref": branch if number else "",
        "base_ref": payload.get("pull_request", {}).get("base", {}).get("ref", ""),
    }
    return {"github": told, "inputs": payload.get("inputs", {})}


def text(template: str, known: dict[str, Any]) -> str:
    """Expressions of a concurrency group: contexts, ==, != and ||."""

    def value(expression: str) -> Any:
        if literal := re.fullmatch(r"'(.*)'", expression := expression.strip()):
            return literal[1]
        at: Any = known
        for part in expression.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        return {"true": True, "false": False}.get(expression, at)

    def term(expression: str) -> Any:
        if pair := re.fullmatch(r"(.+?)\s*(==|!=)\s*(.+)", expression.strip()):
            return (value(pair[1]) == value(pair[3])) == (pair[2] == "==")
        return value(expression)

    def said(match: re.Match[str]) -> str:
        found = [term(each) for each in match[1].split("||")]
        result = next((each for each in found if each), found[-1])
        return "" if result is None else str(result)

    return re.sub(r"\$\{\{(.*?)\}\}", said, template)


def prepare(work: Path) -> None:
    """Rewrites the copy that act reads: without `concurrency`, whose `queue` it refuses; environments as it knows none."""
    for file in (work / FOLDER).glob("*.y*ml"):
        told = parsed(file.read_text())
        told.pop("concurrency", None)
        for job in told.get("jobs", {}).values():
            job.pop("concurrency", None)
            environment = job.pop("environment", None)
            name = environment.get("name") if isinstance(environment, dict) else environment
            if name and "steps" in job:
                expression = "".join(re.findall(r"^\$\{\{(.*)\}\}$", str(name).strip())).strip() or f"'{name}'"
                if "${{" in expression:
                    raise ValueError(f"{file.name}: an environment's name of several parts: {name}")
                for key in job.keys() - {
                    "if",
                    "needs",
                    "strategy",
                }:  # which GitHub evaluates before it knows the environment
                    job[key] = _own_variables(job[key], f"fromJSON(vars.FORGE_VARIABLES)[{expression}]")
                first = {"name": f"environment {name}", "run": POLICY, "shell": "bash"}
                job["steps"].insert(0, first | {"env": {"FORGE_ENVIRONMENT": f"${{{{ {expression} }}}}"}})
        file.write_text(yaml.safe_dump(told, sort_keys=False, width=10**6))


def _own_variables(value: Any, where: str, bare: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _own_variables(each, where, key == "if") for key, each in value.items()}
    if isinstance(value, list):
        return [_own_variables(each, where) for each in value]
    if isinstance(value, str) and (bare or "${{" in value):
        return re.sub(r"\bvars\.(\w+)", rf"{where}.\1", value)
    return value


def actions(work: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The actions that the repository uses, with their stand-ins; without one a job fails."""
    files = [*(work / FOLDER).glob("*.y*ml"), *(work / ".github/actions").glob("*/action.y*ml")]
    uses = {use for file in files for use in re.findall(r"uses: *['\"]?([^\s'\"]+)", file.read_text())}
    for use in sorted(use for use in uses if not use.startswith(".")):
        owner, name = use.partition("@")[0].split("/")[:2]
        stand_in = folder / (owner if name == "actions" else name)
        if stand_in.is_dir():
            yield use, stand_in


def read(run: Run, lines: Iterable[str]) -> None:
    """What act tells, into the run."""
    jobs, title = run.told["jobs"], run.told.get("name", run.workflow)
    callers = {re.sub(r"\\?\$\\?\{\\?\{.*?\\?\}\\?\}", ".*", re.escape(str(each.get("name", key)))): key for key, each in jobs.items() if "uses" in each}  # fmt: skip
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            told: dict[str, Any] = {"msg": line}
        if told.get("msg", "").startswith(("LocalRepositoryCache", "Couldn't get a valid docker")):
            continue
        line = f"{told.get('job', '').strip()}: {told.get('msg', '').rstrip()}\n".removeprefix(": ")
        run.log += re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])|\r", "", line)  # as on a terminal
        if told.get("command") == "summary":
            run.summary += told["content"]
        if "jobID" not in told:
            continue
        name, first = told["jobID"], told["job"].partition("/")[0].strip()
        if first != title or "uses" in jobs.get(name, {"uses": ""}):
            caller = next((key for pattern, key in callers.items() if re.fullmatch(rf"{pattern}(-\d+)?", first)), first)
            name = f"{caller} / {name}"
        if told.get("command") == "set-output":
            run.outputs.setdefault(name, {})[told["name"]] = told["arg"]
        if "jobResult" in told:
            result = "cancelled" if run.conclusion and told["jobResult"] == "failure" else told["jobResult"]
            names = [name, name.partition(" / ")[0]]
            names += [f"{name} ({', '.join(map(str, told['matrix'].values()))})"] if told["matrix"] else []
            for each in names:
                run.jobs[each] = min(result, run.jobs.get(each, "skipped"), key=WORST.index)
    for name in jobs:
        run.jobs.setdefault(name, run.conclusion or "skipped")  # cancelled
