"""One comment on a pull request that says what the change does, updated in place. What it is made of is not trusted."""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cli.delivery.github import GitHub
from cli.delivery.preview import ACTIONS, Change, Gate, Live, Preview, Stack
from mlops.errors import UserError

MARK, MAX = "<!-- mlops:preview -->", 60_000
_BOT = "github-actions[bot]"
_SIGNS = {"create": "+", "update": "~", "delete": "−", "replace": "↻"}
_MAX_FILES, _MAX_BYTES = 50, 20_000_000
Part = TypeVar("Part", Stack, Live, Gate)


def read(folder: Path) -> Preview:
    """The files that the jobs of ci.yml left: each a part of a preview. Raises UserError if one is something else."""
    whole, files = Preview(), sorted(folder.rglob("*.json"))
    if len(files) > _MAX_FILES or sum(file.stat().st_size for file in files) > _MAX_BYTES:
        raise UserError("preview", str(folder), "has more files or bytes than a preview")
    for file in files:
        try:
            part = Preview.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise UserError("preview", file.name, f"is not a preview: {error.error_count()} problems") from None
        whole.stacks += part.stacks
        whole.live += part.live
        whole.gates += part.gates
    return whole


def text(preview: Preview, commit: str, run: str, jobs: dict[str, str]) -> str:
    """Markdown of at most MAX characters: what does not fit, the longest first, is shortened, then left to the run's
    summary."""
    head = "\n".join([MARK, f"### What this changes · {_code(commit[:7])}", *_checks(jobs), "", *_table(preview), ""])
    sections = [
        *map(_stack, filter(lambda each: each.problem or each.changes, preview.stacks)),
        *map(_gate, preview.gates),
    ]
    foot = f"\nRendered from main and from this branch, without any secret. [Run]({run})"
    chosen, room = [full for full, _ in sections], MAX - len(head) - len(foot) - 100
    for shorter in ([short for _, short in sections], [""] * len(sections)):
        for index in sorted(range(len(sections)), key=lambda each: -len(chosen[each])):
            if sum(map(len, chosen)) + len(chosen) > room:
                chosen[index] = shorter[index]
    cut = [] if chosen == [full for full, _ in sections] else ["More of it is in the run's summary."]
    return "\n".join([head, *filter(None, chosen), *cut, foot])[:MAX]


def put(github: GitHub, number: int, body: str) -> str:
    """What was done: created, updated or unchanged."""
    own = [each for each in github.all(f"issues/{number}/comments") if _is_own(each)]
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
    head = f"{run['head_repository']['owner']['login']}:{run['head_branch']}"
    for pull in github.all(f"pulls?state=open&head={head}"):
        if pull["head"]["sha"] == run["head_sha"]:
            return pull["number"]
    return None


def event() -> dict[str, Any]:
    return json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text("utf-8"))


def _is_own(comment: dict[str, Any]) -> bool:
    return comment["user"]["login"] == _BOT and comment["body"].startswith(MARK)


def _table(preview: Preview) -> list[str]:
    if not preview.stacks:
        return []
    lines = ["| stack | objects | replaced or deleted | a month | against the live stack |", "|---|---|---|---|---|"]
    live = {each.name: each for each in preview.live}
    for stack in preview.stacks:
        if stack.problem:
            lines.append(f"| {_code(stack.name)} | ⚠ cannot be rendered | | | |")
            continue
        gone = sum(each.action in ("replace", "delete") for each in stack.changes)
        lines.append(
            f"| {_code(stack.name)} | {_counts(stack.changes)} | {f'⚠ {gone}' if gone else 'none'} | {_cost(stack)} "
            f"| {_live(live.get(stack.name))} |"
        )
    warned = [
        (stack, each) for stack in preview.stacks for each in stack.changes if each.action in ("replace", "delete")
    ]
    lines += ["", *(f"> ⚠ {_code(stack.name)}: {each.action} {_code(each.object)}" for stack, each in warned[:20])]
    return [*lines, f"> … and {len(warned) - 20} more"] if len(warned) > 20 else lines


def _counts(changes: list[Change]) -> str:
    found = {action: sum(each.action == action for each in changes) for action in reversed(ACTIONS)}
    return " ".join(f"{_SIGNS[action]}{count}" for action, count in found.items() if count) or "unchanged"


def _cost(stack: Stack) -> str:
    if stack.dollars is None:
        return ""
    more = stack.dollars - (stack.dollars_before or 0)
    return f"${stack.dollars:,.0f} ({more:+,.0f})"


def _live(live: Live | None) -> str:
    if live is None or live.problem:
        return "" if live is None else "⚠ no preview"
    return " ".join(f"{_code(action)} {count}" for action, count in sorted(live.counts.items())) or "unchanged"


def _stack(stack: Stack) -> tuple[str, str]:
    """With the differences, and without."""
    if stack.problem:
        title = f"{stack.name}: cannot be rendered"
        return _details(title, _fence(stack.problem, "text")), _details(title, "")
    named = [f"{_SIGNS[each.action]} {_code(each.object)}" for each in stack.changes]
    full = [f"{name}\n\n{_fence(each.diff, 'diff')}\n" for name, each in zip(named, stack.changes, strict=True)]
    title = f"{stack.name}: {len(stack.changes)} objects"
    return _details(title, "\n".join(full)), _details(title, "\n".join(f"- {name}" for name in named))


def _gate(gate: Gate) -> tuple[str, str]:
    lines = ["| metric | main | this branch |", "|---|---|---|"]
    for name, values in gate.metrics.items():
        before, after = ("" if value is None else f"{value:.4f}" for value in values)
        lines.append(f"| {_code(name)} | {before} | {after} |")
    lines += ["", *(f"- {_code(reason)}" for reason in gate.reasons)]
    title = f"Training: {gate.model} {gate.decision} by the gate"
    return _details(title, "\n".join(lines)), _details(title, "")


def _checks(jobs: dict[str, str]) -> list[str]:
    failed = [name for name, conclusion in jobs.items() if conclusion not in ("success", "skipped")]
    if not jobs:
        return []
    return (
        [f"⚠ failed: {', '.join(map(_code, failed))}"]
        if failed
        else [f"{len(jobs)} checks passed, policies among them."]
    )


def _details(title: str, body: str) -> str:
    return f"<details><summary>{_plain(title)}</summary>\n\n{body}\n</details>\n"


def _fence(content: str, language: str) -> str:
    """No text can end its own fence."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{_printable(content)}\n{fence}"


def _code(value: str) -> str:
    """In a line or a table's cell: shown as it is, and nothing else."""
    return f"`{_printable(value).replace('`', chr(0x2BC)).replace('|', '¦').replace(chr(10), ' ')[:300] or ' '}`"


def _plain(value: str) -> str:
    shown = _printable(value).replace("\n", " ")[:300]
    return re.sub(r"[^\w\s.,:;()/+-]", lambda found: f"&#{ord(found[0])};", shown)


def _printable(value: str) -> str:
    """Control characters and those that turn the direction of text are shown by their number."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]",
        lambda found: f"\\u{ord(found[0]):04x}",
        value,
    )
