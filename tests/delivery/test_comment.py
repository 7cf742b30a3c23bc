"""What a pull request is told: the comment, of text that nobody can trust, and the comparison it is made of."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cli.delivery import comment, preview, verbs
from cli.delivery.github import GitHub
from cli.delivery.preview import Change, Gate, Live, Preview, Stack
from tests.delivery.api import Ask
from tests.delivery.forge import Forge
from tests.delivery.fork import Fork
from tests.delivery.runner import Run, act

RUN = "https://example.test/acme/ml/actions/runs/1"
BOT = "github-actions[bot]"
HOSTILE = [
    "`", "``", "```", "`" * 400, "``` ```", "\n```\n", "~~~", "```\n```html\n<script>alert(1)</script>\n", "`x` <b>y</b> `",
    "</details>", "\n\n</details>\n\n", "</summary></details><details open><summary>", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "<!--", "-->", comment.MARK, f"\n{comment.MARK}\n", "<!-- --!> <b>", "]]>", "<?php ?>",
    "@everyone", "@acme/admins", "#1", "GH-1", "acme/ml#1", "Fixes #1", "closes acme/ml#2", "0123456789abcdef" * 2 + "01234567",
    "![x](https://evil.test/x.png)", "[x](https://evil.test)", "[x]: https://evil.test\n\n[x]", "<https://evil.test>",
    "https://evil.test", "www.evil.test", "x@evil.test", "javascript:alert(1)", "[x](javascript:alert`1`)",
    "|", "\\|", "a | b\n|---|---|", "\\", "\\`", "\\\\`", "\n", "\r", "\r\n", "\n\n# heading\n\n", "\n\n---\n", "\n- item", "\n> quote",
    "    indented", "\t\t", " ", "", "\u202eevil", "\u2066x\u2069", "\u061c", "a\u200bb", "\u00ad", "\ufeff", "\u2028", "\x85", "\x0b\x0c",
    "\x1b[31mred\x1b[0m", "\x1b]8;;https://evil.test\x07", "\0", "\x7f", "\U000e0041\U000e007f", "\U0001f600", "\U0010ffff", "é" * 50,
    "&lt;script&gt;", "&#64;everyone", "&amp;", "$x$", "$`x`$", ":smile:", "**x**", "__x__", "~~x~~", "x" * 10_000,
]  # fmt: skip
OWN = """What this changes · ⚠ failed: passed: , stack objects replaced or deleted a month against the live none unchanged
no result … and more metric main this branch Rendered from branch, without any secret. Whatever is cut: artifacts of run .
: replace delete"""
WORDS = {*OWN.split()}
NUMBER = re.compile(r"\(?[$+−~↻-]*[\d,.]+\)?|⚠|-?inf|nan")
TAGS = re.compile(
    r"<!-- mlops:preview -->|</details>|<details><summary>(Training: )?<code>[^<>]*</code>"
    r"(: no result|: \d+ objects| <code>[^<>]*</code> by the gate)</summary>"
)


def skeleton(body: str) -> list[str]:
    """What GitHub's Markdown makes of it besides the contents of code; asserts that nothing there is anybody else's."""
    assert len(body) <= comment.MAX
    assert body.isascii() or body.encode(), "it can be sent"
    found, links = [], []
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    for token in (each for block in tokens for each in (block, *(block.children or []))):
        assert token.type not in ("image", "html_inline", "code_block"), token
        found.append(token.type)
        if token.type == "html_block":
            assert all(TAGS.fullmatch(line) for line in token.content.strip().split("\n")), token.content
            found.append(re.sub("<code>[^<>]*</code>", "", token.content))
        elif token.type == "link_open":
            links.append(token.attrs["href"])
        elif token.type == "text":
            assert all(each in WORDS or NUMBER.fullmatch(each) for each in token.content.split()), token.content
            found.append(token.content)
        elif token.type in ("code_inline", "fence"):
            assert token.info in ("", "diff", "text"), token
            assert all(each.isprintable() or each in "\n\t" for each in token.content)
    assert links == [RUN]
    told = [each for each in found if "details" in each]
    assert [each.startswith("</") for each in told] == [bool(n % 2) for n in range(len(told))], (
        "each is closed before the next"
    )
    assert all(each.count(comment.MARK) == (not n) for n, each in enumerate(each for each in found if "<!--" in each))
    return found


def made_of(word: str) -> Preview:
    """One string in every field there is."""
    return Preview(
        stacks=[
            Stack(name=word[:100], changes=[Change(action=each, object=word[:300], diff=word) for each in preview.ACTIONS], dollars=7),
            Stack(name=f"2{word}"[:100], problem=f"5{word}"[:2000]),
        ],
        live=[Live(name=word[:100], counts={word[:30]: 3}), Live(name=f"3{word}"[:100], problem=f"4{word}"[:2000])],
        gates=[Gate(model=word[:100], decision=word[:30], reasons=[word[:2000]] * 2, metrics={word[:100]: (None, 0.5)})],
    )  # fmt: skip


def shown(found: Preview, jobs: dict[str, str] | None = None) -> str:
    return comment.text(found, "0123456789", RUN, jobs or {})


PLAIN = skeleton(shown(made_of("x"), {"x": "success", "x2": "failure"}))


@pytest.mark.parametrize("word", HOSTILE, ids=ascii)
def test_every_field_is_shown_and_nothing_else(word: str) -> None:
    found = Preview.model_validate_json(made_of(word).model_dump_json())
    body = shown(found, {word: "success", f"{word}2": "failure"})
    assert skeleton(body) == PLAIN
    assert body.startswith(comment.MARK)


def test_jobs_may_have_names_that_are_no_text() -> None:
    assert skeleton(shown(made_of("x"), {"\ud800": "success", "\udfff@x": "failure"})) == PLAIN


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from([*HOSTILE[:-1], "x", " "]), max_size=4
).map("".join)
FLOATS = st.none() | st.floats()
PREVIEWS = st.builds(
    Preview,
    stacks=st.lists(
        st.builds(
            Stack, name=TEXT.map(lambda x: x[:100]), problem=st.just("") | TEXT,
            dollars=st.none() | st.floats(0, 1e9), dollars_before=st.none() | st.floats(0, 1e9),
            changes=st.lists(
                st.builds(Change, action=st.sampled_from(preview.ACTIONS), object=TEXT.map(lambda x: x[:300]), diff=TEXT | TEXT.map(lambda x: (x * 2000)[:20_000])),
                max_size=6,
            ),
        ),
        max_size=6,
    ),
    live=st.lists(st.builds(Live, name=TEXT.map(lambda x: x[:100]), problem=st.just("") | TEXT, counts=st.dictionaries(TEXT.map(lambda x: x[:30]), st.integers(0, 10**6), max_size=5)), max_size=3),
    gates=st.lists(
        st.builds(
            Gate, model=TEXT.map(lambda x: x[:100]), decision=TEXT.map(lambda x: x[:30]), reasons=st.lists(TEXT, max_size=3),
            metrics=st.dictionaries(TEXT.map(lambda x: x[:100]), st.tuples(FLOATS, FLOATS), max_size=3),
        ),
        max_size=2,
    ),
)  # fmt: skip
JOBS = st.dictionaries(TEXT, st.sampled_from(["success", "failure", "skipped", "cancelled", ""]), max_size=5)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(found=PREVIEWS, jobs=JOBS)
def test_no_content_gets_out_of_its_place(found: Preview, jobs: dict[str, str]) -> None:
    skeleton(shown(found, jobs))


def objects(count: int, diff: str = "-a: 1\n+a: 2", action: preview.Action = "update") -> list[Change]:
    return [Change(action=action, object=f"ConfigMap/mlops/{action}-{n}", diff=diff) for n in range(count)]


def test_two_hundred_objects_are_named_and_as_many_shown_as_fit() -> None:
    long = Stack(name="dev", changes=[*objects(2, action="replace"), *objects(200, "+x\n" * 400)])
    body = shown(Preview(stacks=[long, Stack(name="prod", changes=objects(3))]))
    skeleton(body)
    assert len(body) > comment.MAX * 0.9, "the room is used"
    assert body.count("ConfigMap/mlops/update") == 203
    assert body.count("> ⚠ `dev`: replace `ConfigMap/mlops/replace-") == 2
    assert body.count("```diff\n-a: 1\n+a: 2") == 5, "small ones, and the other stack's, stay whole"
    assert "| `dev` | ~200 ↻2 | ⚠ 2 |" in body
    assert "artifacts of the [run]" in body


@pytest.mark.parametrize("word", ["x", "`\n\0<&|", "\U000e0041"])
def test_the_worst_of_everything_fits(word: str) -> None:
    long = word * 5000
    stack = Stack(name=long[:100], changes=objects(2000, long[:200], "delete"), dollars=1e9, dollars_before=0)
    broken = Stack(name=long[:100], problem=long[:2000])
    live = Live(name=long[:100], counts={f"{n}{long}"[:30]: 10**6 for n in range(50)})
    gate = Gate(model=long[:100], decision=long[:30], reasons=[long[:2000]] * 100, metrics={f"{n}{long}"[:100]: (1e308, -1e308) for n in range(100)})  # fmt: skip
    whole = Preview(stacks=[stack, *[broken] * 99], live=[live] * 100, gates=[gate] * 20)
    skeleton(shown(whole, {f"{n}{long}": "failure" for n in range(1000)}))
    named = [Stack(name=f"{n}{long}"[:100], changes=objects(1), problem=word) for n in range(3000)]
    whole.stacks += named
    whole.live += [Live(name=each.name, counts=live.counts) for each in named[:300]]
    skeleton(shown(whole, {f"{n}{long}": "success" for n in range(1000)}))


def test_the_table_says_what_changes() -> None:
    body = shown(
        Preview(
            stacks=[
                Stack(name="dev", changes=[*objects(2), *objects(1, action="create")]),
                Stack(name="aws/dev", dollars=175.6, dollars_before=100),
                Stack(name="aws/new", changes=objects(1, action="create"), dollars=20),
            ],
            live=[
                Live(name="dev", counts={"update": 2}), Live(name="aws/dev", counts={}), Live(name="aws/prod", problem="no role"),
            ],
        ),
        {"test": "success", "cloud": "skipped"},
    )  # fmt: skip
    rows = [line for line in body.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `dev` | ~2 +1 | none |  | `update` 2 |",
        "| `aws/dev` | unchanged | none | $176 (+76) | unchanged |",
        "| `aws/new` | +1 | none | $20 |  |",
        "| `aws/prod` |  | | | ⚠ no result |",
    ]
    assert "passed: `test`\n" in body
    assert "```text\nno role\n```" in body
    assert "cloud" not in body


# what ci.yml's jobs left


def files(folder: Path, **contents: bytes | str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_parts_are_put_together(tmp_path: Path) -> None:
    one, two = made_of("x"), Preview(stacks=[Stack(name="y")])
    files(tmp_path / "preview", a=one.model_dump_json())
    files(tmp_path / "preview" / "more", b=two.model_dump_json())
    found = comment.read(tmp_path / "preview")
    assert (found.stacks, found.live, found.gates) == ([*one.stacks, *two.stacks], one.live, one.gates)
    assert comment.read(tmp_path / "nothing") == Preview()


def stack(**fields: Any) -> str:
    return json.dumps({"stacks": [{"name": "x"} | fields]})


BROKEN: dict[str, bytes | str] = {
    "empty": "", "truncated": made_of("x").model_dump_json()[:-9], "not JSON": b"PK\x03\x04\xff", "not UTF-8": b'{"stacks":[{"name":"\xff"}]}',
    "lone surrogate": stack(name="\ud800"), "a list": "[]", "null": "null", "deep": "[" * 200_000, "deep objects": '{"stacks":' * 50_000,
    "deep and closed": '{"stacks":' + "[" * 5000 + "]" * 5000 + "}", "unknown key": '{"stack":[]}', "wrong type": '{"stacks":{"name":"x"}}',
    "a number as a name": stack(name=1), "NaN": stack(dollars=float("nan")), "infinite": '{"stacks":[{"name":"x","dollars":1e999}]}',
    "nan as text": stack(dollars="nan"), "negative": stack(dollars_before=-1), "unknown action": stack(changes=[{"action": "x", "object": "y"}]),
    "long name": stack(name="x" * 10_000), "long diff": stack(changes=[{"action": "create", "object": "y", "diff": "x" * 30_000}]),
    "reasons": json.dumps({"gates": [{"model": "x", "decision": "y", "reasons": ["z"] * 100_000}]}),
    "stacks": json.dumps({"stacks": [{"name": "z"}] * 1000}), "huge number": f'{{"live":[{{"name":"x","counts":{{"y":{"9" * 5000}}}}}]}}',
    "many counts": json.dumps({"live": [{"name": "x", "counts": {f"{n}": "y" for n in range(50_000)}}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_preview_is_a_problem_to_show(tmp_path: Path, name: str) -> None:
    files(tmp_path, bad=BROKEN[name], good=made_of("x").model_dump_json())
    found = comment.read(tmp_path)
    assert [(each.name, each.problem.partition(":")[0]) for each in found.stacks[:1]] == [("bad.json", "not a preview")]
    assert len(found.stacks) == 3, "the other file counts"
    body = shown(found)
    skeleton(body)
    assert "| `bad.json` | ⚠ no result |" in body


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    for name in (b"\xff\xfe.json", b"`|@x\n.json", b"x" * 250 + b".json"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"{")
    body = shown(comment.read(tmp_path))
    skeleton(body)
    assert body.count("| ⚠ no result |") == 3


@pytest.mark.parametrize("how", ["bytes", "files"])
def test_too_much_is_not_read(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files(tmp_path / "preview", **{f"x{n}": "{}" for n in range(51 if how == "files" else 1)})
    if how == "bytes":
        os.truncate(folder / "x0.json", 10**12)  # as what a zip file of some kilobytes may become
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} is read"))
    assert [each.problem for each in comment.read(folder).stacks] == ["more files or bytes than a preview has"]


def test_only_files_of_the_folder_are_read(tmp_path: Path) -> None:
    folder = files(tmp_path / "preview")
    files(tmp_path / "outside", secret=made_of("x").model_dump_json())
    (folder / "link.json").symlink_to(tmp_path / "outside" / "secret.json")
    (folder / "folder").symlink_to(tmp_path / "outside")
    (folder / "gone.json").symlink_to("nowhere")
    (folder / "round.json").symlink_to("round.json")
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    assert comment.read(folder) == Preview()


# the comment on GitHub


class Place:
    """Pull requests on a forge, and runs of ci.yml for them without act."""

    def __init__(self, forge: Forge, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.forge, self.folder, self.work = forge, folder, forge.clone(folder / "work")
        self.commit()
        forge.push(self.work)
        self.run = Run(1, "comment.yml", "workflow_run", "", "", "main", {}, "ann", {}, status="completed")
        forge.runs.append(self.run)
        for name, value in {
            "GITHUB_TOKEN": self.run.token, "GITHUB_API_URL": forge.url, "GITHUB_REPOSITORY": "acme/ml",
            "GITHUB_EVENT_PATH": str(folder / "event.json"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)

    def commit(self) -> None:
        commit = ["git", "-C", self.work, "commit", "-q", "--allow-empty", "-m", "change"]
        subprocess.run(commit, check=True)

    def push(self, branch: str = "topic", fork: str = "") -> Run:
        self.commit()
        self.forge.push(self.work, branch, fork=fork)
        sha = self.forge.need(f"refs/forks/{fork}/{branch}" if fork else f"refs/heads/{branch}")
        source = {"full_name": fork or "acme/ml", "owner": {"login": fork.partition("/")[0] or "acme"}}
        ci = Run(len(self.forge.runs) + 10, "ci.yml", "pull_request", sha, sha, branch, source, "ann", {"name": "ci"}, status="completed")  # fmt: skip
        ci.jobs = {"test": "success"}
        self.forge.runs.append(ci)
        return ci

    def comments(self, run: Run, found: Preview | None = None, source: Any = True) -> list[str]:
        """The verb, after a run of ci.yml; which requests wrote something."""
        files(self.folder / "preview", stacks=(found or made_of("x")).model_dump_json())
        told = run.shown(self.forge) | {"head_repository": run.payload if source is True else source}
        (self.folder / "event.json").write_text(json.dumps({"action": "completed", "workflow_run": told}))
        since = len(self.forge.requests)
        self.run.status = "in_progress"
        verbs.comment(self.folder / "preview")
        self.run.status = "completed"
        return [each.method for each in self.forge.requests[since:] if each.method != "GET"]

    def say(self, number: int, login: str | None, body: str) -> dict[str, Any]:
        made = self.forge.issues_create_comment(Ask({"issue_number": str(number)}, {}, {"body": body}, login or ""))
        if login is None:  # their account is gone
            made["user"] = None
        return made

    def ours(self) -> list[dict[str, Any]]:
        found = [each for each in self.forge.comments.values() if (each["user"] or {}).get("login") == BOT]
        return [each for each in found if each["body"].startswith(comment.MARK)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with Forge(tmp_path / "forge") as forge:
        yield Place(forge, tmp_path, monkeypatch)
        assert forge.problems == []


def test_ten_pushes_are_one_comment(place: Place) -> None:
    run = place.push()
    place.forge.open_pull("topic")
    assert place.comments(run) == ["POST"]
    (first,) = place.ours()
    for _ in range(9):
        run = place.push()
        assert place.comments(run) == ["PATCH"]
        assert place.comments(run) == [], "the same again"
    assert [*place.forge.comments.values()] == [first]
    assert (run.sha[:7] in first["body"], f"/runs/{run.id})" in first["body"]) == (True, True)


def test_it_is_found_behind_three_hundred_others(place: Place) -> None:
    run = place.push()
    number = place.forge.open_pull("topic")
    for n in range(320):
        place.say(number, "ben", f"{n}")
    assert [place.comments(run), place.comments(place.push())] == [["POST"], ["PATCH"]]
    assert len(place.forge.comments) == 321
    assert [*place.forge.comments.values()][320] == place.ours()[0]


def test_what_others_say_stays(place: Place) -> None:
    run = place.push()
    number = place.forge.open_pull("topic")
    others = [place.say(number, who, f"{comment.MARK}\nmine") for who in ("mallory", "dependabot[bot]", "github-actions", None)]  # fmt: skip
    others += [place.say(number, BOT, "another workflow"), place.say(number, BOT, f"quoted: {comment.MARK}")]
    elsewhere = place.say(place.forge.open_pull("other", fork="") if place.push("other") else 0, BOT, comment.MARK)
    before = json.dumps([*others, elsewhere])
    assert [place.comments(run), place.comments(place.push())] == [["POST"], ["PATCH"]]
    assert json.dumps([*others, elsewhere]) == before
    assert len(place.forge.comments) == len(others) + 2


def test_of_two_of_ours_the_first_stays(place: Place) -> None:
    run = place.push()
    number = place.forge.open_pull("topic")
    first = place.say(number, BOT, f"{comment.MARK}\none")
    place.say(number, BOT, f"{comment.MARK}\ntwo")
    assert place.comments(run) == ["DELETE", "PATCH"]
    assert place.ours() == [first]
    place.say(number, BOT, first["body"])
    assert place.comments(run) == ["DELETE"]
    assert place.ours() == [first]


def test_a_run_that_is_not_of_the_pull_request_as_it_is_says_nothing(place: Place) -> None:
    old = place.push()
    number = place.forge.open_pull("topic")
    new = place.push()
    assert place.comments(old) == [], "it has newer commits"
    assert place.comments(new, source=None) == [], "the fork was deleted"
    assert place.comments(place.push("topic", fork="eve/ml")) == [], "a branch of that name, without a pull request"
    place.forge.pulls[number]["state"] = "closed"
    assert place.comments(new) == [], "it is closed"
    assert place.forge.comments == {}


def test_what_github_lists_is_compared_again() -> None:
    """It ignores a filter that it does not understand; and the repository of a pull request may be deleted."""
    run = {"head_repository": {"full_name": "eve/ml", "owner": {"login": "eve"}}, "head_branch": "b", "head_sha": "1"}
    theirs = {"ref": "b", "sha": "1", "repo": {"full_name": "mallory/ml"}}
    right = {"ref": "b", "sha": "1", "repo": {"full_name": "eve/ml"}}
    wrong = [theirs, theirs | {"repo": None}, right | {"ref": "c"}, right | {"sha": "2"}]
    for heads, number in (([*wrong, right], 4), (wrong, None)):
        listed = [{"number": n, "head": each} for n, each in enumerate(heads)]
        github = cast(GitHub, SimpleNamespace(all=lambda path, listed=listed: listed))
        assert comment.pull_request(github, {"workflow_run": run}) == number


@pytest.mark.parametrize("branch", ["topic", "a&state=closed", "b#1", "c+d%20e", "é"])
def test_branches_of_one_name_are_told_apart(place: Place, branch: str) -> None:
    runs, numbers = [], []
    for fork in ("", "eve/ml", "mallory/ml"):
        runs.append(place.push(branch, fork=fork))
        numbers.append(place.forge.open_pull(branch, fork=fork))
    for run in runs:
        assert place.comments(run) == ["POST"]
    told = {each["issue_url"].rpartition("/")[2]: each["body"] for each in place.ours()}
    assert [run.sha[:7] in told[str(number)] for run, number in zip(runs, numbers, strict=True)] == [True] * 3


def test_jobs_are_named_whatever_they_are_called(place: Place) -> None:
    run = place.push()
    place.forge.open_pull("topic")
    run.jobs = {f"{n} {word}": "success" for n, word in enumerate(HOSTILE[:-1])} | {"\ud800@everyone": "failure"}
    assert place.comments(run) == ["POST"]
    (told,) = place.ours()
    assert "⚠ failed: `\\ud800@everyone`\n" in told["body"]
    shutil.rmtree(place.folder / "preview")
    assert place.comments(run, Preview()) == ["PATCH"], "a run without any preview"


CI = """
name: ci
on: pull_request
jobs:
  stacks:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1
      - { run: test "$FROM" != acme/ml, env: { FROM: "${{ github.event.pull_request.head.repo.full_name }}" } }
      - uses: actions/upload-artifact@043fb46d1a93c77aae656e7c1c64a875d1fc6a0a
        if: always()
        with: { name: preview-stacks, path: preview, if-no-files-found: ignore }
"""


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Fork]:
    with Forge(tmp_path / "forge") as forge:
        yield Fork(tmp_path / "fork", forge)
        assert forge.problems == []


@pytest.mark.skipif(act() is None, reason="act is not installed: go install github.com/nektos/act")
def test_the_workflows_comment_and_run_nothing_of_the_pull_request(fork: Fork) -> None:
    forge, flows = fork.forge, fork.work / ".github" / "workflows"
    for file in flows.iterdir():
        file.unlink() if file.name != "comment.yml" else None
    (flows / "ci.yml").write_text(CI)
    fork.commit("made from the template")
    forge.push(fork.work)
    files(fork.work / "preview", stacks=made_of("</details>@everyone").model_dump_json())
    for name in ("cli/delivery/comment.py", "cli/main.py", "Makefile"):
        (fork.work / name).write_text("raise SystemExit('executed')\n")
    fork.commit("theirs")
    forge.push(fork.work, "topic", fork="mallory/ml")
    theirs = forge.open_pull("topic", fork="mallory/ml")
    ci, run = forge.runs
    assert (ci.conclusion, ci.reads_only, run.workflow, run.conclusion) == (
        "success",
        True,
        "comment.yml",
        "success",
    ), run.log
    (told,) = forge.comments.values()
    assert (told["user"]["login"], told["issue_url"].endswith(f"/{theirs}")) == (BOT, True)
    assert f"· `{fork.head[:7]}`\npassed: `stacks`\n" in told["body"]
    assert skeleton(told["body"].replace(f"{forge.url}/acme/ml/actions/runs/{ci.id}", RUN))

    files(fork.work / "preview", stacks=Preview().model_dump_json(), other="{")
    fork.commit("again")
    assert [each.conclusion for each in forge.push(fork.work, "topic", fork="mallory/ml")] == ["success"] * 2
    assert [*forge.comments.values()] == [told], "the same one"
    assert (fork.head[:7] in told["body"], "`other.json` | ⚠ no result" in told["body"]) == (True, True)
    forge.rerun(ci)
    assert "has newer commits" in forge.runs[-1].log

    forge.push(fork.work, "topic")
    number = forge.open_pull("topic")
    assert [each.conclusion for each in forge.runs[-2:]] == ["failure", "success"], "of a run that failed as well"
    assert [each["issue_url"].rpartition("/")[2] for each in forge.comments.values()] == [str(theirs), str(number)]


# what is compared


def object_of(kind: str, name: str, namespace: str = "mlops", **content: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}, **content}


def test_changes_of_objects() -> None:
    before = [
        object_of("ConfigMap", "rules-0123456789", data={"a.yaml": "one:\n  - two\n  - three …\n  - four\n"}),
        object_of("ConfigMap", "same-0123456789", data={}),
        object_of("ConfigMap", "left", data={}),
        object_of("ConfigMap", "left", "kube-system", data={}),
        object_of("Deployment", "app", spec={"replicas": 1, "selector": {"a": "b"}}),
        object_of("Deployment", "web", spec={"replicas": 1, "selector": {"a": "b"}}),
        object_of("Job", "setup-0123456789", spec={"template": 1}),
        object_of("Job", "once", spec={"template": 1}),
        {"type": "aws:ec2/vpc:Vpc", "name": "mlops", "cidrBlock": "10.0.0.0/16"},
        {"type": "aws:sns/topic:Topic", "name": "mlops"},
    ]
    after = [
        object_of("ConfigMap", "rules-9876543210", data={"a.yaml": "one:\n  - two\n  - 3\n  - four\n"}),
        object_of("ConfigMap", "same-0123456789", data={}),
        object_of("ConfigMap", "left", data={}),
        object_of("Deployment", "app", spec={"replicas": 2, "selector": {"a": "b"}}),
        object_of("Deployment", "web", spec={"replicas": 1, "selector": {"a": "c"}}),
        object_of("Job", "setup-9876543210", spec={"template": 2}),
        object_of("Job", "once", spec={"template": 2}),
        object_of("Service", "new", spec={}),
        {"type": "aws:ec2/vpc:Vpc", "name": "mlops", "cidrBlock": "10.1.0.0/16"},
        {"type": "aws:sns/topic:Topic", "name": "mlops", "displayName": "…"},
    ]
    found = {each.object: each for each in preview.changes(before, after)}
    assert {name: each.action for name, each in found.items()} == {
        "ConfigMap/mlops/rules": "update", "ConfigMap/kube-system/left": "delete", "Deployment/mlops/app": "update",
        "Deployment/mlops/web": "replace", "Job/mlops/setup": "update", "Job/mlops/once": "replace", "Service/mlops/new": "create",
        "aws:ec2/vpc:Vpc/mlops": "replace", "aws:sns/topic:Topic/mlops": "update",
    }  # fmt: skip
    lines = found["ConfigMap/mlops/rules"].diff.splitlines()
    assert [line for line in lines if line[0] in "+-"] == [
        "-      - three …", "+      - 3", "-  name: rules-0123456789", "+  name: rules-9876543210",
    ]  # fmt: skip
    assert "+displayName: …" in found["aws:sns/topic:Topic/mlops"].diff
    (huge,) = preview.changes([], [object_of("ConfigMap", "huge", data={"a": "line\n" * 10_000})])
    assert (len(huge.diff) < 20_100, huge.diff.endswith("… and more")) == (True, True)


def test_stacks_are_those_of_all_programs(tmp_path: Path) -> None:
    assert {"dev", "prod", "aws/dev", "account/shared"} <= {*preview.stacks()}
    for name in ("Pulumi.a.b.yaml", "aws/Pulumi.c.yaml", "account/Pulumi.d.yaml", "delivery.yaml"):
        (tmp_path / "environments" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "environments" / name).touch()
    assert [*preview.stacks(tmp_path)] == ["a.b", "aws/c", "account/d"]


def rendered(fork: Fork, base: str) -> tuple[int, str, dict[str, Stack]]:
    """`mlops ci render` of what is checked out."""
    folder = fork.folder / "preview"
    done = subprocess.run(
        [sys.executable, "-m", "cli", "ci", "render", str(folder)], cwd=fork.work, capture_output=True, text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "MLOPS_"))}
        | {"BASE": base, "PYTHONPATH": str(fork.work)},
    )  # fmt: skip
    return done.returncode, done.stderr, {each.name: each for each in comment.read(folder).stacks}


def test_two_commits_are_rendered_and_compared(fork: Fork) -> None:
    environments = fork.work / "environments"
    kept = (environments / "Pulumi.kind.yaml", environments / "account" / "Pulumi.shared.yaml")
    for file in {*environments.glob("**/Pulumi.*.yaml")} - {*kept}:
        file.unlink()
    base = fork.commit("before")
    kept[1].rename(kept[1].with_name("Pulumi.other.yaml"))
    fork.change("infra/workload.py", ("[:10]", "[:9] + '0'"))
    fork.commit("after")
    code, log, stacks = rendered(fork, base)
    assert (code, [*stacks]) == (0, ["kind", "account/other", "account/shared"]), log
    actions = {name: {each.action for each in stack.changes} for name, stack in stacks.items()}
    assert actions == {"kind": {"update"}, "account/other": {"create"}, "account/shared": {"delete"}}
    assert "ConfigMap/mlops/prometheus" in {each.object for each in stacks["kind"].changes}

    kept[0].unlink()
    fork.change("infra/account/__main__.py", ("import ", "raise SystemExit('broken <b>')\nimport "))
    fork.commit("broken")
    code, log, stacks = rendered(fork, fork.head)
    assert (code, {*stacks}) == (2, {"account/other"}), log
    assert "broken <b>" in stacks["account/other"].problem
    assert "this branch cannot be rendered" in log


@pytest.mark.parametrize(
    ("script", "counts", "problem"),
    [
        ("""echo '{"changeSummary": {"same": 3, "update": 2}}'""", {"update": 2}, ""),
        ("""echo '{"changeSummary": {"same": 3}}'""", {}, ""),
        ("""echo '{"changeSummary": {"update": 2}}'; echo no credentials >&2; exit 255""", {}, "no credentials"),
        ("echo '[]'", {}, "[]"), ("exit 3", {}, "exit code 3"),
    ],
)  # fmt: skip
def test_what_pulumi_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, counts: dict[str, int], problem: str
) -> None:
    (tmp_path / "pulumi").write_text(f'#!/bin/sh\n[ "$1" = preview ] || exit 0\n{script}\n')
    (tmp_path / "pulumi").chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PULUMI_BACKEND_URL": "file://x", "PULUMI_CONFIG_PASSPHRASE": "x"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert preview.live("dev") == Live(name="dev", counts=counts, problem=problem)
