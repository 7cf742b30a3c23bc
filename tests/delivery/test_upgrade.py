from __future__ import annotations

import difflib
import json
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from cli.delivery.upgrade import EXAMPLE, OWNED, OWNED_FILES, RECORD, Result, upgrade
from mlops.environment import ROOT
from mlops.errors import UserError

GIT = shutil.which("git") or "git"
USER = [
    "-c",
    "user.name=test",
    "-c",
    "user.email=test@test",
    "-c",
    "commit.gpgsign=false",
    "-c",
    "core.hooksPath=/dev/null",
]
Files = dict[str, bytes]


class Repository:
    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            path.mkdir(parents=True)
            self.git("init", "-q", "-b", "main")

    def raw(self, *words: str, data: bytes = b"") -> bytes:
        return subprocess.run([GIT, *USER, *words], cwd=self.path, input=data, check=True, capture_output=True).stdout

    def git(self, *words: str) -> str:
        return self.raw(*words).decode().strip()

    def commit(self, files: dict[str, bytes | str | None]) -> str:
        """None deletes a file."""
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "-A")
        self.git("commit", "-qm", "a change", "--allow-empty")
        return self.git("rev-parse", "HEAD")

    def entries(self, revision: str) -> dict[str, list[str]]:
        """Mode, type and object of each file."""
        lines = os.fsdecode(self.raw("ls-tree", "-rz", revision)).split("\0")[:-1]
        return {path: about.split() for about, path in (line.split("\t", 1) for line in lines)}

    def files(self, revision: str) -> Files:
        names = {name: blob for name, (_, _, blob) in self.entries(revision).items()}
        rest, found = self.raw("cat-file", "--batch", data="\n".join([*names.values(), ""]).encode()), {}
        for name in names:
            about, _, rest = rest.partition(b"\n")
            size = int(about.split()[2])
            found[name], rest = rest[:size], rest[size + 1 :]
        return found

    def seen(self) -> tuple[object, ...]:
        """All that an upgrade must leave as it is, but for its own branch."""
        files = {}
        for path in sorted(self.path.rglob("*")):
            if ".git" not in path.relative_to(self.path).parts and not path.is_dir():
                files[path] = (path.lstat().st_mtime_ns, os.readlink(path) if path.is_symlink() else path.read_bytes())
        inside = self.path / ".git"
        own = ("refs/mlops/", "refs/heads/upgrade/")
        refs = [line for line in self.git("show-ref", "--head").splitlines() if not line.split()[1].startswith(own)]
        kept = [(inside / name).read_bytes() for name in ("HEAD", "index", "config")]
        return files, refs, kept, (inside / "FETCH_HEAD").exists(), (inside / "worktrees").exists()


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's git settings nor its user's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def text(*changed: tuple[int, str], size: int = 30, name: str = "line") -> str:
    lines = {number: f"{name} {number}" for number in range(size)} | dict(changed)
    return "".join(f"{line}\n" for line in lines.values())


BASE: dict[str, bytes | str | None] = {
    "README.md": text(name="readme"),
    "cli/main.py": text(name="main"),
    "cli/old.py": text(name="old"),
    "cli/same.py": text(name="same"),
    "environments/Pulumi.dev.yaml": text(name="dev"),
    "environments/Pulumi.prod.yaml": text(name="prod"),
    "requirements/app.txt": text(name="app"),
    "training/models/example/model.py": text(name="example"),
    "tests/models/example/test_example.py": text(name="test"),
    "tests/models/test_every_model.py": text(name="every"),
}


def make(
    tmp_path: Path, kind: str = "copy", base: dict[str, bytes | str | None] | None = None
) -> tuple[Repository, Repository]:
    """A template, and a fork that is recorded to come from its only commit."""
    template = Repository(tmp_path / "template")
    commit = template.commit(BASE if base is None else base)
    if kind == "shared":
        template.git("clone", "-q", str(template.path), str(tmp_path / "fork"))
    elif kind == "shallow":
        template.git("clone", "-q", "--depth=1", f"file://{template.path}", str(tmp_path / "fork"))
    else:
        shutil.copytree(template.path, tmp_path / "fork", ignore=shutil.ignore_patterns(".git"), symlinks=True)
        Repository(tmp_path / "fork").path.joinpath(".keep").touch()
        subprocess.run([GIT, "init", "-qb", "main", str(tmp_path / "fork")], check=True)
        (tmp_path / "fork" / ".keep").unlink()
    fork = Repository(tmp_path / "fork")
    fork.commit({RECORD: f'{{"commit": "{commit}", "name": "ours"}}'})
    return template, fork


def run(template: Repository | str, fork: Repository, to: str | None = None, base: str | None = None) -> Result:
    before, said = fork.seen(), []
    result = upgrade(
        str(template.path if isinstance(template, Repository) else template), to, base, fork.path, said.append
    )
    assert fork.seen() == before
    assert said[0] == "fetch"
    if result.branch:
        assert fork.git("rev-parse", f"{result.branch}^@") == fork.git("rev-parse", "HEAD")
        assert fork.entries("HEAD").keys() <= fork.entries(result.branch).keys()
        assert result.target in fork.files(result.branch)[RECORD].decode()
    else:
        assert said[-1] == f"already at {result.target[:12]}"
    return result


@pytest.mark.parametrize("kind", ["copy", "shared", "shallow"])
def test_everything_of_the_template_arrives_and_nothing_of_the_fork_is_lost(tmp_path: Path, kind: str) -> None:
    template, fork = make(tmp_path, kind)
    fork.commit(
        {
            "training/models/example/model.py": None,
            "tests/models/example/test_example.py": None,
            "training/models/churn/model.py": text((9, "churn"), name="example"),  # to git a rename
            "tests/models/churn/test_churn.py": "assert churn\n",
            "cli/main.py": text((2, "fork's"), name="main"),
            "cli/ours.py": "ours\n",
            "README.md": text((2, "fork's"), name="readme"),
            "environments/Pulumi.prod.yaml": None,
            "environments/Pulumi.live.yaml": "live\n",
        }
    )
    target = template.commit(
        {
            "training/models/example/model.py": text((20, "template's"), name="example"),
            "training/models/example/more.py": "more\n",
            "tests/models/test_more.py": "more\n",
            "tests/models/test_every_model.py": text((20, "template's"), name="every"),
            "cli/main.py": text((20, "template's"), name="main"),
            "cli/new.py": "new\n",
            "README.md": text((20, "template's"), name="readme"),
            "environments/Pulumi.prod.yaml": text((20, "template's"), name="prod"),
            "environments/Pulumi.next.yaml": "next\n",
            "requirements/app.txt": text((20, "template's"), name="app"),
        }
    )
    os.utime(fork.path / "cli" / "same.py", (1, 1))  # git would note that in its index
    result = run(template, fork)
    assert result.branch == f"upgrade/{target[:12]}"
    assert result.target == target
    assert (result.conflicts, result.kept, result.gone) == ([], [], [])
    arrived = {
        "README.md": text((2, "fork's"), (20, "template's"), name="readme").encode(),
        "cli/main.py": text((2, "fork's"), (20, "template's"), name="main").encode(),
        "cli/new.py": b"new\n",
        "environments/Pulumi.next.yaml": b"next\n",
        "requirements/app.txt": text((20, "template's"), name="app").encode(),
        "tests/models/test_every_model.py": text((20, "template's"), name="every").encode(),
    }
    assert result.changed == sorted(arrived)
    recorded = {RECORD: f'{{\n  "commit": "{target}",\n  "name": "ours"\n}}\n'.encode()}
    assert fork.files(result.branch) == fork.files("HEAD") | arrived | recorded
    assert fork.git("log", "-1", "--format=%an <%ae>", result.branch) == "mlops upgrade <mlops@localhost>"


def test_conflicts_are_left_to_a_person_but_in_the_forks_files_the_fork_wins(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    fork.commit(
        {
            "cli/main.py": text((2, "fork's"), (20, "fork's"), name="main"),
            "cli/both.py": "same\nfork's\n",
            "cli/equal.py": "equal\n",
            "cli/same.py": None,
            "README.md": text((2, "fork's"), (20, "fork's"), name="readme"),
            "environments/both.yaml": "same\nfork's\n",
        }
    )
    template.commit(
        {
            "cli/main.py": text((2, "template's"), (12, "template's"), (20, "template's"), name="main"),
            "cli/both.py": "same\ntemplate's\n",
            "cli/equal.py": "equal\n",
            "cli/same.py": text((2, "template's"), name="same"),
            "README.md": text((2, "template's"), (12, "template's"), name="readme"),
            "environments/both.yaml": "same\ntemplate's\n",
        }
    )
    result = run(template, fork)
    deleted = "cli/same.py: deleted in the fork, changed in the template"
    assert result.conflicts == ["cli/both.py: 1 hunk", "cli/main.py: 2 hunks", deleted]
    assert result.kept == ["README.md: 1 hunk", "environments/both.yaml: 1 hunk"]
    assert result.changed == ["README.md", "cli/both.py", "cli/main.py", "cli/same.py"]
    files = fork.files(result.branch)
    assert files["cli/both.py"] == b"same\n<<<<<<< fork\nfork's\n=======\ntemplate's\n>>>>>>> template\n"
    assert files["cli/main.py"].count(b"<<<<<<< fork\nfork's\n=======\ntemplate's\n>>>>>>> template\n") == 2
    assert files["README.md"].decode() == text((2, "fork's"), (12, "template's"), (20, "fork's"), name="readme")
    assert files["environments/both.yaml"] == b"same\nfork's\n"
    message = fork.git("log", "-1", "--format=%B", result.branch)
    assert all(f"\n  {line}" in message for line in result.conflicts + result.kept)


def test_what_the_template_deletes_or_renames_stays_and_is_listed(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    fork.commit(
        {
            "cli/old.py": text((2, "fork's"), name="old"),
            "cli/main.py": None,
            "cli/entry.py": text(name="main"),
            "training/models/example/model.py": text((2, "fork's"), name="example"),
        }
    )
    template.commit(
        {
            "cli/old.py": None,
            "cli/renamed.py": text((20, "template's"), name="old"),
            "cli/same.py": None,
            "cli/main.py": text((20, "template's"), name="main"),
            "environments/Pulumi.dev.yaml": None,
            "environments/Pulumi.test.yaml": text(name="dev"),
            "training/models/example/model.py": None,
            "training/models/example/other.py": text(name="example"),
        }
    )
    result = run(template, fork)
    assert result.gone == [
        "cli/old.py",
        "cli/same.py",
        "environments/Pulumi.dev.yaml",
        "training/models/example/model.py",
    ]
    assert (result.conflicts, result.kept) == ([], [])
    assert result.changed == ["cli/entry.py", "cli/renamed.py", "environments/Pulumi.test.yaml"]
    files = fork.files(result.branch)
    assert files["cli/renamed.py"].decode() == text((2, "fork's"), (20, "template's"), name="old")
    assert files["cli/entry.py"].decode() == text((20, "template's"), name="main")  # the fork's own rename is followed


def test_a_rename_that_both_made_or_the_fork_deleted_before(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    gone = dict.fromkeys(("cli/old.py", "cli/same.py", "cli/main.py", "environments/Pulumi.dev.yaml"))
    mine = {
        "cli/new.py": text((2, "fork's"), name="old"),
        "training/models/example/model.py": None,
        "cli/x.py": "fork's\n",
    }
    fork.commit(gone | mine)
    moved = {
        "cli/new.py": text((20, "template's"), name="old"),
        "cli/other.py": text(name="same"),
        "cli/x.py": text(name="main"),
    }
    into = {"environments/Pulumi.test.yaml": text(name="dev"), "training/share.py": text(name="example")}
    template.commit(gone | moved | into | {"training/models/example/model.py": None})
    result = run(template, fork)
    deleted = "cli/other.py: deleted in the fork, changed in the template"
    assert (result.conflicts, result.kept, result.gone) == ([deleted, "cli/x.py: 1 hunk"], [], [])
    assert result.changed == ["cli/new.py", "cli/other.py", "cli/x.py", "training/share.py"]
    assert fork.files(result.branch)["cli/new.py"].decode() == text((2, "fork's"), (20, "template's"), name="old")


def test_what_the_fork_deleted_may_become_a_file_of_an_environment(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    fork.commit({"cli/same.py": None})
    template.commit(
        {"cli/same.py": None, "environments/same.py": text(name="same"), RECORD: '{"commit": "of its own template"}'}
    )
    result = run(template, fork)
    assert result.conflicts == ["environments/same.py: deleted in the fork, changed in the template"]
    assert (result.changed, result.kept) == (["environments/same.py"], [])


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    fork.commit({"docs": "fork's\n", "environments/eu/x.yaml": "fork's\n"})
    template.commit({"docs/a.md": "a\n", "environments/eu": "eu\n", "cli/same.py": None, "cli/same.py/a.py": "a\n"})
    result = run(template, fork)
    there = "not added, something of the fork is in its place"
    assert result.conflicts == [f"cli/same.py/a.py: {there}", f"docs/a.md: {there}"]
    assert result.kept == [f"environments/eu: {there}"]
    assert (result.changed, result.gone) == ([], ["cli/same.py"])


def test_binary_files_modes_links_and_names_that_are_no_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"docs/\xff\xfe \"\n\t'.txt")
    base = {
        "a.png": b"\0a",
        "b.png": b"\0b",
        "README.md": b"\0r",
        "run.sh": text(),
        "both.sh": text(),
        odd: b"\xff\n" * 9,
    }
    template, fork = make(tmp_path, base={**base, "crlf.txt": b"1\r\n2\r\n3\r\n4\r\n", "link": "x"})
    for repository, side in ((template, b"template's"), (fork, b"fork's")):
        (repository.path / "link").unlink()
        (repository.path / "link").symlink_to("docs" if side == b"fork's" else "cli")
    (template.path / "run.sh").chmod(0o755)
    (fork.path / "both.sh").chmod(0o755)
    (template.path / "new").symlink_to("cli")
    fork.commit(
        {"b.png": b"\0fork", "README.md": b"\0fork", "run.sh": text((2, "fork's")), odd: b"\xfe\n" + b"\xff\n" * 9}
    )
    fork.commit({"crlf.txt": b"0\r\n1\r\n2\r\n3\r\n4\r\n"})
    template.commit(
        {"a.png": b"\0A", "b.png": b"\0template", "README.md": b"\0template", "both.sh": text((2, "template's"))}
    )
    template.commit({odd: b"\xff\n" * 9 + b"\xfd\r", "crlf.txt": b"1\r\n2\r\n3\r\n4\r\n5"})
    result = run(template, fork)
    whole = "no text, so it is the fork's as a whole"
    assert result.conflicts == [f"b.png: {whole}", f"link: {whole}"]
    assert result.kept == [f"README.md: {whole}"]
    shown = "docs/\\xff\\xfe \"\n\t'.txt"
    assert result.changed == ["a.png", "both.sh", "crlf.txt", shown, "new", "run.sh"]
    files = fork.files(result.branch)
    modes = {name: mode for name, (mode, _, _) in fork.entries(result.branch).items()}
    assert (files["a.png"], files["b.png"], files["README.md"]) == (b"\0A", b"\0fork", b"\0fork")
    assert files[odd] == b"\xfe\n" + b"\xff\n" * 9 + b"\xfd\r"
    assert files["crlf.txt"] == b"0\r\n1\r\n2\r\n3\r\n4\r\n5"
    assert (files["run.sh"].decode(), modes["run.sh"]) == (text((2, "fork's")), "100755")
    assert (files["both.sh"].decode(), modes["both.sh"]) == (text((2, "template's")), "100755")
    assert (files["link"], files["new"], modes["link"], modes["new"]) == (b"docs", b"cli", "120000", "120000")


def test_a_second_call_changes_nothing_before_and_after_the_merge(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    template.commit({"cli/new.py": "new\n"})
    branch = run(template, fork).branch
    tip = fork.git("rev-parse", branch)
    with pytest.raises(UserError, match=f"merge it, or delete it \\(git branch -D {branch}\\)"):
        run(template, fork)
    assert fork.git("rev-parse", branch) == tip
    fork.git("merge", "-q", "--squash", branch)  # as GitHub's button does: the branch itself is never merged
    fork.commit({})
    assert run(template, fork).branch == ""
    assert fork.git("rev-parse", branch) == tip
    fork.git("merge", "-qm", "merged", branch)
    assert run(template, fork) == Result("", *[template.git("rev-parse", "HEAD")] * 2, [], [], [], [])


def test_a_merged_branch_is_replaced_unless_it_is_checked_out(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    base = template.git("rev-parse", "HEAD")
    template.commit({"cli/new.py": "new\n"})
    branch = run(template, fork).branch
    fork.git("merge", "-q", "--ff-only", branch)
    assert run(template, fork, base=base[:7]).base == base
    fork.git("merge", "-q", branch)
    fork.git("checkout", "-q", branch)
    with pytest.raises(UserError, match=branch):
        run(template, fork, base=base)


def test_the_next_version_is_merged_from_the_recorded_one(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    template.commit({"cli/main.py": text((20, "template's"), name="main")})
    fork.git("merge", "-q", run(template, fork).branch)
    fork.commit({"cli/main.py": text((20, "fork's"), name="main")})
    template.commit({"cli/main.py": text((2, "later"), (20, "template's"), name="main")})
    result = run(template, fork)
    assert result.conflicts == []
    assert fork.files(result.branch)["cli/main.py"].decode() == text((2, "later"), (20, "fork's"), name="main")


def test_a_tag_a_branch_and_by_default_the_head_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template, fork = make(tmp_path)
    first = template.commit({"a": "1"})
    template.git("tag", "-am", "first", "v1")
    second = template.commit({"a": "2"})
    template.git("branch", "v1")
    third = template.commit({"a": "3"})
    monkeypatch.chdir(tmp_path)
    assert [run("template", fork, to).target for to in ("v1", "refs/heads/v1", None)] == [first, second, third]


def test_a_base_beside_the_targets_history(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    template.git("checkout", "-qb", "side")
    base = template.commit({"cli/side.py": "1\n"})
    template.git("checkout", "-q", "main")
    template.commit({"cli/main.py": None})
    fork.commit({"cli/side.py": "1\n"})
    result = run(template, fork, base=base)
    assert (result.base, result.gone) == (base, ["cli/main.py", "cli/side.py"])


def test_clear_errors(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    template.commit({"a": "1"})
    own = fork.git("rev-parse", "HEAD")
    template.git("clone", "-q", "--depth=1", f"file://{template.path}", str(tmp_path / "shallow"))
    for key, value, source, to, base in (
        ("SOURCE", str(tmp_path / "none"), str(tmp_path / "none"), None, None),
        ("SOURCE", str(tmp_path / "shallow"), str(tmp_path / "shallow"), None, None),
        ("to", "v9", template, "v9", None),
        ("to", "main:refs/heads/main", template, "main:refs/heads/main", None),
        ("base", own, template, None, own),
        ("base", "0" * 40, template, None, "0" * 40),
        ("base", "main", template, None, "main"),
    ):
        with pytest.raises(UserError) as error:
            run(source, fork, to, base)
        assert (error.value.key, error.value.value) == (key, value)
    fork.path.joinpath("cli", "same.py").write_text("edited")
    fork.path.joinpath("z.py").write_text("new")
    with pytest.raises(UserError, match=r"work tree is 'cli/same\.py'"):
        run(template, fork)
    fork.git("checkout", "-q", "cli/same.py")
    with pytest.raises(UserError, match=r"work tree is 'z\.py'"):
        run(template, fork)
    fork.path.joinpath("z.py").unlink()
    for broken in ("{", "[]", "{}", '{"commit": "-v"}', None):
        fork.commit({RECORD: broken})
        with pytest.raises(UserError, match="mlops upgrade SOURCE --base COMMIT"):
            run(template, fork)
    assert run(template, fork, base=template.git("rev-parse", "HEAD^")).changed == ["a"]
    (tmp_path / "plain").mkdir()
    for folder, hint in ((tmp_path / "plain", "is no git repository"), (fork.path / "cli", "is a part of another")):
        with pytest.raises(UserError, match=hint):
            upgrade(str(template.path), None, None, folder, print)
    with pytest.raises(UserError, match="commit the fork first"):
        upgrade(str(template.path), None, None, Repository(tmp_path / "unborn").path, print)


def test_hooks_and_settings_of_the_user_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template, fork = make(tmp_path, "shared")
    template.commit({"a": "1\n", "cli/main.py": text((20, "template's"), name="main")})
    template.git("tag", "theirs")
    fork.git("tag", "mine")
    hook = tmp_path / "hooks" / "reference-transaction"
    hook.parent.mkdir()
    for name in ("reference-transaction", "post-checkout", "pre-commit", "fsmonitor"):
        hook.with_name(name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        hook.with_name(name).chmod(0o755)
    for setting in (
        f"core.hooksPath {hook.parent}", f"core.fsmonitor {hook.parent}/fsmonitor", "core.autocrlf true", "diff.renames false",
        "commit.gpgsign true", "fetch.prune true", "fetch.pruneTags true", "status.showUntrackedFiles no", "core.quotePath true",
        "branch.autoSetupMerge always", "merge.conflictStyle diff3", "user.name Somebody", "core.splitIndex true",
    ):  # fmt: skip
        fork.git("config", *setting.split(" ", 1))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    before = fork.path / ".git" / "refs" / "remotes" / "origin"
    branch = upgrade("origin", "main", None, fork.path, print).branch
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.delenv(name)
    assert not (tmp_path / "ran").exists()
    assert fork.files(branch)["a"] == b"1\n"
    assert fork.git("tag") == "mine"
    assert not (before / "main").exists()  # in packed-refs, as the clone left it
    assert fork.git("rev-parse", "origin/main") == template.git("rev-parse", "main^")
    assert fork.git("log", "-1", "--format=%an", branch) == "Somebody"


def test_what_says_how_a_server_is_reached_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fork = make(tmp_path)
    monkeypatch.setenv("GIT_SSH_COMMAND", "echo the right key >&2; false")
    with pytest.raises(UserError, match=r"SOURCE is 'git@host:template': cannot be read: the right key"):
        run("git@host:template", fork)


STAND_IN = """#!/bin/sh
read -r count < "$COUNTER"
echo $((count + 1)) > "$COUNTER"
[ "$count" = "$LAST" ] && kill -9 $VICTIM $$
exec "$REAL" "$@"
"""


def test_killed_at_every_call_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template, fork = make(tmp_path)
    base = {"cli/main.py": text((2, "fork's"), name="main"), "README.md": text((2, "fork's"), name="readme")}
    fork.commit(dict(base))
    template.commit(
        {"cli/main.py": text((20, "template's"), name="main"), "README.md": text((2, "template's"), name="readme")}
    )
    whole = run(template, fork)
    merged = fork.git("rev-parse", f"{whole.branch}^{{tree}}")
    fork.git("branch", "-qD", whole.branch)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(STAND_IN)
    (tmp_path / "bin" / "git").chmod(0o755)
    counter, path, before = tmp_path / "counter", os.environ["PATH"], fork.seen()

    def call(last: int, everything: bool) -> int:
        """Exit code of a process that runs an upgrade; it or only its git is killed."""
        counter.write_text("0\n")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{path}")
        if not (child := os.fork()):
            code = 1
            with suppress(UserError):
                os.environ |= {"COUNTER": str(counter), "REAL": GIT, "LAST": str(last), "VICTIM": ""}
                os.environ["VICTIM"] = str(os.getpid()) if everything else ""
                upgrade(str(template.path), None, None, fork.path, lambda _: None)
                code = 0
            os._exit(code)
        monkeypatch.setenv("PATH", path)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    last = 0
    while (code := call(last, everything=True)) == -signal.SIGKILL:
        assert fork.seen() == before
        assert fork.git("branch", "--format=%(refname:short)") == "main"
        assert last % 3 or call(last, everything=False) == 1
        assert fork.git("branch", "--format=%(refname:short)") == "main"
        assert run(template, fork) == whole
        assert fork.git("rev-parse", f"{whole.branch}^{{tree}}") == merged
        fork.git("branch", "-qD", whole.branch)
        shutil.rmtree(fork.path / ".git" / "refs" / "mlops")
        last += 1
    assert code == 0
    assert last >= 15


def test_locks_of_a_killed_git_are_removed(tmp_path: Path) -> None:
    template, fork = make(tmp_path)
    target = template.commit({"a": "1"})
    for name in ("refs/mlops/template/target.lock", f"refs/heads/upgrade/{target[:12]}.lock"):
        (fork.path / ".git" / name).parent.mkdir(parents=True)
        (fork.path / ".git" / name).touch()
    assert run(template, fork).changed == ["a"]


def owned(path: str) -> bool:
    return path.startswith(OWNED) or path in OWNED_FILES


def edited(rng: random.Random, content: bytes, who: str) -> bytes:
    lines = content.split(b"\n")[:-1]
    for _ in range(rng.randint(1, 4)):
        at, new = rng.randint(0, len(lines)), f"{who} {rng.getrandbits(40)}".encode()
        lines[at : at + rng.choice([0, 0, 1, 2])] = [new] * rng.randint(0 if len(lines) > 3 else 1, 2)
    return b"".join(line + b"\n" for line in lines)


def changed(rng: random.Random, base: Files, who: str) -> Files:
    folders = [
        "cli",
        "docs",
        "environments",
        "requirements",
        "training/models/example",
        "tests/models",
        f"training/models/{who}",
    ]
    files = dict(base)
    for name in base:
        what = rng.choice(["edit", "edit", "edit", "delete", "move", "", ""])
        if what == "edit":
            files[name] = edited(rng, files[name], who)
        elif what:
            content = files.pop(name)
            if what == "move":
                files[f"{rng.choice(folders)}/moved{rng.randrange(12)}"] = rng.choice(
                    [content, edited(rng, content, who)]
                )
    for _ in range(3):
        files[f"{rng.choice(folders)}/new{rng.randrange(4)}"] = edited(rng, b"common\n" * rng.randint(0, 3), who)
    return files


def test_random_forks_lose_nothing(tmp_path: Path) -> None:
    conflicts = kept = 0
    for seed in range(16):
        rng, folder = random.Random(seed), tmp_path / str(seed)
        names = [*OWNED_FILES, *(f"{each}{name}" for each in ("cli/", "docs/", *OWNED) for name in "ab")]
        base = {name: edited(rng, b"".join(b"%d\n" % rng.getrandbits(40) for _ in range(8)), "base") for name in names}
        ours, theirs = changed(rng, base, "fork"), changed(rng, base, "template")
        template, fork = make(folder, base=dict(base))
        fork.commit({**dict.fromkeys(base.keys() - ours.keys()), **ours})
        template.commit({**dict.fromkeys(base.keys() - theirs.keys()), **theirs})
        result = run(template, fork)  # which finds every path of the fork
        merged = fork.files(result.branch)
        conflicts, kept = conflicts + len(result.conflicts), kept + len(result.kept)
        for name, content in ours.items():
            own = Counter(line for line in content.split(b"\n") if line.startswith(b"fork "))
            assert not own - Counter(merged[name].split(b"\n")), (seed, name)
        for name in merged.keys() - ours.keys() - {RECORD}:
            assert not name.startswith(EXAMPLE), (seed, name)
            assert not (owned(name) and name in base), (seed, name)
        assert not any(b"<<<<<<<" in content for name, content in merged.items() if owned(name)), seed
        everywhere = {line for content in merged.values() for line in content.split(b"\n")}
        for name, content in theirs.items():
            if not owned(name):
                lines = [line for line in content.split(b"\n") if line.startswith(b"template ")]
                assert everywhere.issuperset(lines), (seed, name)
        assert {*result.gone} >= (base.keys() - theirs.keys()) & ours.keys(), seed
    assert conflicts > 8
    assert kept > 8


def versions() -> list[str]:
    """Tags of this repository, or commits here and there in its history."""

    def ask(*words: str) -> list[str]:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.split() if done.returncode == 0 else []

    if ask("rev-parse", "--is-shallow-repository") != ["false"]:
        return []
    commits = ask("rev-list", "--first-parent", "HEAD")
    return ask("tag", "--list", "v*", "--merged", "HEAD") or [
        commits[len(commits) * part // 8] for part in (1, 4) if commits[8:]
    ]


@pytest.mark.parametrize("version", versions() or [pytest.param("", marks=pytest.mark.skip("no history here"))])
def test_a_fork_of_each_earlier_version_is_upgraded_to_this_one(tmp_path: Path, version: str) -> None:
    here, fork = Repository(ROOT), Repository(tmp_path / "fork")
    base, head = here.git("rev-parse", f"{version}^{{commit}}"), here.git("rev-parse", "HEAD")
    (tmp_path / "fork.tar").write_bytes(here.raw("archive", base))
    shutil.unpack_archive(tmp_path / "fork.tar", fork.path, filter="tar")
    older, newer = here.files(base), here.files(head)
    for name in sorted(older.keys() & newer.keys()):
        before, after = older[name].splitlines(keepends=True), newer[name].splitlines(keepends=True)
        block = difflib.SequenceMatcher(None, before, after, autojunk=False).find_longest_match()
        if before != after and block.size >= 12 and not owned(name):
            break
    else:
        pytest.skip("no file of that version was only edited")
    for lines, start in ((before, block.a), (after, block.b)):
        lines.insert(start + block.size // 2, b"# the fork's line\n")
    own = {"training/models/own/model.py": "own\n", "README.md": older["README.md"] + b"the fork's line\n"}
    fork.commit(own | {name: b"".join(before), RECORD: f'{{"commit": "{base}"}}'})
    result = run(str(ROOT), fork)
    merged = fork.files(result.branch)
    assert result.conflicts == []
    assert merged[name] == b"".join(after)
    assert b"the fork's line\n" in merged["README.md"]
    assert merged["training/models/own/model.py"] == b"own\n"
    for name, content in newer.items():
        if not owned(name):
            assert merged[name].replace(b"# the fork's line\n", b"") == content, name
    assert merged.keys() >= {name for name in newer if not name.startswith(EXAMPLE)}


def test_a_fork_that_was_made_from_the_template_is_found_by_its_files(tmp_path: Path) -> None:
    """GitHub gives it one first commit of its own, which the template does not have."""
    template, fork = Repository(tmp_path / "template"), Repository(tmp_path / "fork")
    template.commit({"first": "of all"})
    base = template.commit(BASE)
    first = fork.commit({name: content.decode() for name, content in template.files(base).items()})
    record = json.dumps({"commit": first, "tree": fork.git("rev-parse", f"{first}^{{tree}}")})
    fork.commit({RECORD: record, "own.py": "mine\n"})
    template.commit({"cli/main.py": text((3, "new"), name="main")})
    result = run(template, fork)
    assert (result.base, result.changed, result.conflicts) == (base, ["cli/main.py"], [])
