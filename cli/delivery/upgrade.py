"""A newer version of the template, merged three-way into a fork on a branch of its own.

Trees and blobs are merged, nothing is checked out: the user's work tree stays as it is, an interruption leaves nothing half
done, and as the merge starts with every file of the fork, it deletes none."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mlops.errors import UserError

RECORD = "environments/template.json"
EXAMPLE = (
    "training/models/",
    "tests/models/",
    "docs/proofs/",
)  # what the template adds here is its example, its evidence
OWNED, OWNED_FILES = (*EXAMPLE, "environments/", "requirements/"), ("README.md", ".github/CODEOWNERS")
_REFS, _BRANCHES = "refs/mlops/template", "upgrade"
_QUIET = ("-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false")
_SERVER = ("GIT_SSH", "GIT_SSL", "GIT_ASKPASS")  # how a server is reached, not which repository is meant
_WHOLE = "no text, so it is the fork's as a whole"


class Entry(NamedTuple):
    mode: str
    blob: str


@dataclass(frozen=True)
class Result:
    branch: str  # empty if the fork has this version already
    base: str
    target: str
    changed: list[str]
    conflicts: list[str]
    kept: list[str]  # the fork's side won
    gone: list[str]  # no longer in the template, still in the fork


def upgrade(source: str, to: str | None, base: str | None, root: Path, say: Callable[[str], None]) -> Result:
    head, record = _clean_head(root), {}
    with suppress(OSError, ValueError, TypeError):
        record = dict(json.loads((root / RECORD).read_text("utf-8")))
    wanted = str(base or record.get("commit", "missing"))
    if not re.fullmatch("[0-9a-f]{7,64}", wanted):
        hint = "must be the commit of the template that this fork comes from: mlops upgrade SOURCE --base COMMIT"
        raise UserError("base" if base else f"commit in {RECORD}", wanted, hint)
    say("fetch")
    base, target = _fetch(root, source, to, wanted, "" if base else str(record.get("tree")))
    if base == target:
        say(f"already at {target[:12]}")
        return Result("", base, target, [], [], [], [])
    branch = f"{_BRANCHES}/{target[:12]}"
    if _git(root, "for-each-ref", f"--no-merged={head}", f"refs/heads/{branch}"):
        hint = f"is not merged: merge it, or delete it (git branch -D {branch}) and upgrade again"
        raise UserError("branch", branch, hint)
    say("merge")
    lines = (line.split("\t", 1) for line in _git(root, "ls-tree", "-r", "-z", head).split("\0")[:-1])
    ours = {path: Entry(*about.split()[::2]) for about, path in lines}
    tree, lists = _merge(root, base, head, target, ours)
    lists["changed"] = [path for path, entry in tree.items() if ours.get(path) != entry]
    result = Result(branch, base, target, **{name: sorted(map(_shown, found)) for name, found in lists.items()})
    tree[RECORD] = Entry("100644", _write(root, json.dumps(record | {"commit": target}, indent=2) + "\n"))
    _git(root, "branch", "--no-track", "--force", branch, _commit(root, head, tree, result))  # not if it is checked out
    return result


def _clean_head(root: Path) -> str:
    try:
        prefix, common = _git(root, "rev-parse", "--show-prefix", "--git-common-dir").split("\n")
    except UserError as error:
        raise UserError("folder", str(root), f"is no git repository: {error.hint}") from None
    if prefix:
        raise UserError("folder", str(root), "is a part of another git repository, and must be one of its own")
    for refs in (_REFS, f"refs/heads/{_BRANCHES}"):
        for lock in (root / common / refs).rglob("*.lock"):
            lock.unlink()  # of a call that was killed
    head = _run(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", most=1)[1].strip()
    if not head:
        raise UserError("HEAD", "missing", "commit the fork first")
    if changes := _git(root, "--no-optional-locks", "status", "--porcelain", "-z", "--untracked-files=normal"):
        raise UserError("work tree", _shown(changes.split("\0")[0][3:]), "is not committed: commit or stash it first")
    return head


def _fetch(root: Path, source: str, to: str | None, base: str, tree: str) -> tuple[str, str]:
    """Base and target as commits, both of them of SOURCE and here. A fork that was made from the template has a first commit
    of its own; what both have then is the `tree` of the base."""
    source = os.path.abspath(source) if os.path.exists(source) else source  # git would start at `root`
    lines = _ask(root, source, "ls-remote").splitlines()
    refs = {name: commit for commit, name in (line.split("\t") for line in lines)}
    name = next((name for name in (f"refs/tags/{to}", f"refs/heads/{to}", to or "HEAD") if name in refs), None)
    if name is None:
        raise UserError("to", to or "HEAD", "is no tag or branch of SOURCE")
    target = refs.get(f"{name}^{{}}", refs[name])  # an annotated tag's commit
    options = ("--quiet", "--no-tags", "--refmap=", "--no-write-fetch-head", "--no-auto-maintenance")
    # Everything only if the target's history lacks the base, which alone a server may refuse to send.
    everything = [f"+refs/{kind}/*:{_REFS}/{kind}/*" for kind in ("heads", "tags")]
    for more, refspecs in (("--no-prune", [f"+{name}:{_REFS}/target"]), ("--prune", everything)):
        _ask(root, source, "fetch", *options, "--no-recurse-submodules", more, refspecs=refspecs)
        commit = _run(root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}", most=128)[1].strip()
        fetched = [refspec.split(":")[1].removesuffix("/*") for refspec in refspecs]
        if commit and _git(root, "for-each-ref", f"--contains={commit}", *fetched):
            return commit, target
    for line in _git(root, "log", "--format=%H %T", f"--glob={_REFS}/*").splitlines():
        if line.endswith(f" {tree}"):
            return line.split()[0], target
    raise UserError("base", base, "is no commit of SOURCE; if this clone is shallow: git fetch --unshallow")


def _ask(root: Path, source: str, *words: str, refspecs: Sequence[str] = ()) -> str:
    try:
        return _git(root, *words, "--", source, *refspecs)
    except UserError as error:
        raise UserError("SOURCE", source, f"cannot be read: {error.hint}") from None


def _merge(
    root: Path, base: str, head: str, target: str, ours: dict[str, Entry]
) -> tuple[dict[str, Entry], dict[str, list[str]]]:
    tree, conflicts, kept, gone = dict(ours), [], [], []
    folders = {str(folder) for path in ours for folder in PurePosixPath(path).parents}
    renamed = ((old, new) for _, _, old, new in _changes(root, base, head) if old != new)
    # A model that began as a copy of the example is, to git, the example renamed: no change may follow it there.
    moved = {old: new for old, new in renamed if not _owned(old) and not _owned(new)}
    for before, theirs, old, new in _changes(root, base, target):
        here = old if old in ours else moved.get(old)
        if here and (theirs is None or new not in (old, here)):
            gone.append(here)
        if theirs is None or new == RECORD:
            continue
        place = here if here and new == old else new
        lost, deleted = kept if _owned(place) else conflicts, before and not here
        if place not in tree:
            if place.startswith(EXAMPLE) or (deleted and _owned(old) and _owned(place)):
                continue
            if place in folders or any(str(folder) in ours for folder in PurePosixPath(place).parents):
                lost.append(f"{place}: not added, something of the fork is in its place")
                continue
            if deleted and not _owned(old):
                conflicts.append(f"{place}: deleted in the fork, changed in the template")
        elif place != here:
            before = None  # both added it
        mine = tree.get(place) or (tree[here] if here else theirs)
        tree[place], clash = _three_way(root, before, mine, theirs, _owned(place))
        if clash:
            lost.append(f"{place}: {clash}")
    return tree, {"conflicts": conflicts, "kept": kept, "gone": gone}


def _three_way(root: Path, base: Entry | None, ours: Entry, theirs: Entry, owned: bool) -> tuple[Entry, str]:
    """The merged file, and what of it is in conflict, if anything."""
    if ours == base or theirs in (base, ours):
        return theirs if ours == base else ours, ""
    if not {ours.mode, theirs.mode} <= {"100644", "100755"}:
        return ours, _WHOLE
    base = base if base and base.mode.startswith("100") else Entry("", "")
    mode = max(ours.mode, theirs.mode) if not base.mode else theirs.mode if ours.mode == base.mode else ours.mode
    if ours.blob == base.blob or theirs.blob in (base.blob, ours.blob):
        return Entry(mode, theirs.blob if ours.blob == base.blob else ours.blob), ""
    texts = [_run(root, "cat-file", "blob", blob)[1] if blob else "" for blob in (ours.blob, base.blob, theirs.blob)]
    if any("\0" in text for text in texts):
        return Entry(mode, ours.blob), _WHOLE
    with tempfile.TemporaryDirectory() as folder:
        words = ["merge-file", "-p", "-q", "-L", "fork", "-L", "base", "-L", "template"]
        for name, text in zip(("fork", "base", "template"), texts, strict=True):
            words.append(os.path.join(folder, name))
            Path(words[-1]).write_bytes(_raw(text))
        hunks, merged = _run(root, *words, most=127)
        if hunks and owned:
            merged = _run(root, *words, "--ours")[1]
    return Entry(mode, _write(root, merged)), f"{hunks} hunk{'s' * (hunks > 1)}" if hunks else ""


def _changes(root: Path, old: str, new: str) -> Iterator[tuple[Entry | None, Entry | None, str, str]]:
    """Each changed file before and after, and its path before and after."""
    parts = iter(_git(root, "diff-tree", "-r", "-z", "-M", "-l0", old, new).split("\0")[:-1])
    for part in parts:
        mode, mode_after, blob, blob_after, kind = part[1:].split()
        path, before, after = next(parts), Entry(mode, blob), Entry(mode_after, blob_after)
        renamed = next(parts) if kind.startswith("R") else path
        yield None if kind == "A" else before, None if kind == "D" else after, path, renamed


def _commit(root: Path, head: str, tree: dict[str, Entry], result: Result) -> str:
    message = f"Upgrade the template from {result.base[:12]} to {result.target[:12]}\n"
    lists = {"In conflict": result.conflicts, "The fork's": result.kept, "No longer in the template": result.gone}
    message += "".join(f"\n{title}:\n  " + "\n  ".join(found) + "\n" for title, found in lists.items() if found)
    with tempfile.TemporaryDirectory() as folder:
        index = os.path.join(folder, "index")
        entries = "".join(f"{entry.mode} {entry.blob}\t{path}\0" for path, entry in tree.items())
        _run(root, "update-index", "-z", "--index-info", data=entries, index=index)
        made = _run(root, "write-tree", index=index)[1].strip()
    who = {"user.name": "mlops upgrade", "user.email": "mlops@localhost"}
    unset = [f"{key}={who[key]}" for key in who if not _run(root, "config", key, most=1)[1].strip()]
    options = [word for each in unset for word in ("-c", each)]
    return _run(root, *options, "commit-tree", made, "-p", head, data=message)[1].strip()


def _owned(path: str) -> bool:
    return path.startswith(OWNED) or path in OWNED_FILES


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(path: str) -> str:
    return _raw(path).decode("utf-8", "backslashreplace")


def _write(root: Path, text: str) -> str:
    return _run(root, "hash-object", "-w", "--stdin", data=text)[1].strip()


def _git(root: Path, *words: str) -> str:
    return _run(root, *words)[1].removesuffix("\n")


def _run(root: Path, *words: str, data: str = "", most: int = 0, index: str = "") -> tuple[int, str]:
    """Exit code, which must not be above `most`, and output; any bytes pass through as surrogates."""
    here = {name: text for name, text in os.environ.items() if not name.startswith("GIT_") or name.startswith(_SERVER)}
    here |= {"GIT_INDEX_FILE": index} if index else {}
    try:
        done = subprocess.run(["git", "-C", root, *_QUIET, *words], input=_raw(data), capture_output=True, env=here)
    except FileNotFoundError:
        raise UserError("git", "missing", "install it") from None
    if not 0 <= done.returncode <= most:
        said = done.stderr.decode(errors="replace").strip()[-300:] or f"ended with {done.returncode}"
        raise UserError("git", " ".join(words)[:80], said)
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape")
