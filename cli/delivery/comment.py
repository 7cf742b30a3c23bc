"""One comment on a pull request that says what the change does, updated in place. What it is made of is not trusted."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from cli.delivery.github import BOT, GitHub
from cli.delivery.markdown import code, fence, tag
from cli.delivery.preview import ACTIONS, Change, Gate, Live, Preview, Stack

MARK, MAX = "<!-- mlops:preview -->", 60_000
_SIGNS = {"create": "+", "update": "~", "delete": "−", "replace": "↻"}
_MAX_FILES, _MAX_BYTES = 50, 5_000_000
_Section = tuple[str, list[tuple[str, str]]]  # its title; its lines, each with what is shown below it if there is room


def read(folder: Path) -> Preview:
    """The files that the jobs of ci.yml left, each a part of a preview. What is something else is shown as a problem: a
    comment on earlier commits must not stay instead."""
    whole = Preview()
    files = sorted(each for each in folder.rglob("*.json") if each.is_file() and not each.is_symlink())
    if len(files) > _MAX_FILES or sum(file.stat().st_size for file in files) > _MAX_BYTES:
        return Preview(stacks=[Stack(name=folder.name[:100], problem="more files or bytes than a preview has")])
    for file in files:
        try:
            part = Preview.model_validate_json(file.read_bytes())
        except ValidationError as error:
            problem = f"not a preview: {error.error_count()} problems"
            part = Preview(stacks=[Stack(name=ascii(file.name)[1:-1][:100], problem=problem)])
        whole.stacks += part.stacks
        whole.live += part.live
        whole.gates += part.gates
    return whole


def text(preview: Preview, commit: str, run: str, jobs: dict[str, str]) -> str:
    """Markdown of at most MAX characters. Differences that do not fit are left out, then lines, the longest sections'
    first."""
    head = "\n".join([MARK, f"### What this changes · {code(commit[:7])}", *_checks(jobs), "", *_table(preview), ""])
    foot = f"\nRendered from main and from this branch, without any secret. Whatever is cut: artifacts of the [run]({run})."
    problems = [each for each in [*preview.stacks, *preview.live] if each.problem]
    changed = [each for each in preview.stacks if each.changes and not each.problem]
    sections = [*map(_problem, problems), *map(_stack, changed), *map(_gate, preview.gates)]
    shown = [""] * len(sections)
    room = left = MAX - len(head) - len(foot) - 100
    shortest = sorted(range(len(sections)), key=lambda each: sum(len(a) + len(b) for a, b in sections[each][1]))
    for done, index in enumerate(shortest):
        shown[index] = _details(*sections[index], left // (len(sections) - done))
        left -= len(shown[index]) + 2
    return "\n".join([head, *_first(shown, room), foot])


def put(github: GitHub, number: int, body: str) -> str:
    """What was done: created, updated or unchanged. The oldest stays, where links and answers to it are."""
    own = [each for each in github.all(f"issues/{number}/comments") if _is_own(each)]
    for each in own[1:]:  # of runs at the same time
        github.ask("DELETE", f"issues/comments/{each['id']}", missing=True)
    if not own:
        github.ask("POST", f"issues/{number}/comments", body=body)
        return "created"
    if own[0]["body"] == body:
        return "unchanged"
    github.ask("PATCH", f"issues/comments/{own[0]['id']}", body=body)
    return "updated"


def pull_request(github: GitHub, event: dict[str, Any]) -> int | None:
    """The one that a run of ci.yml was for, asked of GitHub and not of any file of the run; None if it moved on."""
    run = event["workflow_run"]
    if not (fork := run["head_repository"]):  # deleted since
        return None
    branch = quote(f"{fork['owner']['login']}:{run['head_branch']}", safe="")
    wanted = (fork["full_name"], run["head_branch"], run["head_sha"])
    for pull in github.all(f"pulls?state=open&head={branch}"):
        head = pull["head"]
        if ((head["repo"] or {}).get("full_name"), head["ref"], head["sha"]) == wanted:
            return pull["number"]
    return None


def event() -> dict[str, Any]:
    return json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text("utf-8"))


def _is_own(comment: dict[str, Any]) -> bool:
    return (comment["user"] or {}).get("login") == BOT and (comment.get("body") or "").startswith(MARK)


def _table(preview: Preview) -> list[str]:
    stacks, live = {each.name: each for each in preview.stacks}, {each.name: each for each in preview.live}
    if not (names := dict.fromkeys([*stacks, *live])):
        return []
    rows = [f"| {code(name)} | {_changed(stacks.get(name))} | {_live(live.get(name))} |" for name in names]
    warned = [
        f"> ⚠ {code(stack.name)}: {each.action} {code(each.object)}"
        for stack in preview.stacks for each in stack.changes if each.action in ("replace", "delete")
    ]  # fmt: skip
    header = ["| stack | objects | replaced or deleted | a month | against the live stack |", "|---|---|---|---|---|"]
    return [*header, *_first(rows, 15_000), "", *_first(warned, 2_000)]


def _changed(stack: Stack | None) -> str:
    if stack is None or stack.problem:
        return f"{'⚠ no result' if stack else ''} | |"
    gone = sum(each.action in ("replace", "delete") for each in stack.changes)
    return f"{_counts(stack.changes)} | {f'⚠ {gone}' if gone else 'none'} | {_cost(stack)}"


def _counts(changes: list[Change]) -> str:
    found = {action: sum(each.action == action for each in changes) for action in reversed(ACTIONS)}
    return " ".join(f"{_SIGNS[action]}{count}" for action, count in found.items() if count) or "unchanged"


def _cost(stack: Stack) -> str:
    if stack.dollars is None:
        return ""
    more = "" if stack.dollars_before is None else f" ({stack.dollars - stack.dollars_before:+,.0f})"
    return f"${stack.dollars:,.0f}{more}"


def _live(live: Live | None) -> str:
    if live is None or live.problem:
        return "⚠ no result" if live else ""
    return " ".join(f"{code(action)} {count}" for action, count in sorted(live.counts.items())) or "unchanged"


def _problem(found: Stack | Live) -> _Section:
    return f"{tag(found.name)}: no result", [("", fence(found.problem, "text"))]


def _stack(stack: Stack) -> _Section:
    lines = [
        (f"- {code(f'{_SIGNS[each.action]} {each.object}')}", f"\n\n{fence(each.diff, 'diff')}\n")
        for each in stack.changes
    ]
    return f"{tag(stack.name)}: {len(lines)} objects", lines


def _gate(gate: Gate) -> _Section:
    lines = ["| metric | main | this branch |", "|---|---|---|"]
    for name, values in gate.metrics.items():
        before, after = ("" if value is None else f"{value:.4f}" for value in values)
        lines.append(f"| {code(name)} | {before} | {after} |")
    lines += ["", *(f"- {code(reason)}" for reason in gate.reasons)]
    return f"Training: {tag(gate.model)} {tag(gate.decision)} by the gate", [(line, "") for line in lines]


def _checks(jobs: dict[str, str]) -> list[str]:
    """By name: what they are called is the pull request's own claim."""
    passed = [code(name) for name, conclusion in jobs.items() if conclusion == "success"]
    failed = [code(name) for name, conclusion in jobs.items() if conclusion not in ("success", "skipped")]
    told = (("⚠ failed", failed), ("passed", passed))
    return [f"{what}: {', '.join(_first(names, 2_000))}" for what, names in told if names]


def _first(lines: list[str], room: int) -> list[str]:
    """As many as fit."""
    for index, line in enumerate(lines):
        room -= len(line) + 2
        if room < 0:
            return [*lines[:index], f"… and {len(lines) - index} more"]
    return lines


def _details(title: str, lines: list[tuple[str, str]], room: int) -> str:
    room -= len(title) + 60
    left, shown = room - sum(len(line) + 2 for line, _ in lines), []
    for line, below in lines:
        fits = len(below) <= left
        left -= len(below) if fits else 0
        shown.append(line + below if fits else line)
    body = "\n".join(_first(shown, room))
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>\n"
