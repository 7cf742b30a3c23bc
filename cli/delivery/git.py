"""This repository's history."""

import os
import subprocess
from pathlib import Path

from mlops.environment import ROOT
from mlops.errors import UserError


def git(*words: str, root: Path = ROOT, data: bytes | None = None) -> str:
    here = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", "-C", str(root), *words], input=data, capture_output=True, env=here)
    if done.returncode:
        raise UserError("git", " ".join(words)[:80], done.stderr.decode(errors="replace").strip()[-300:])
    return done.stdout.decode(errors="replace").strip()


def head(root: Path = ROOT) -> str:
    return git("rev-parse", "HEAD", root=root)


def is_ancestor(older: str, newer: str) -> bool:
    try:
        git("merge-base", "--is-ancestor", older, newer)
    except UserError:
        return False
    return True


def worktree(commit: str) -> Path:
    """A folder with that commit: this one, if it is checked out here."""
    commit = git("rev-parse", "--verify", f"{commit}^{{commit}}")
    if commit == head():
        return ROOT
    folder = ROOT / ".mlops" / "commits" / commit
    if not (folder / ".git").exists():
        git("worktree", "prune")
        git("worktree", "add", "--force", "--detach", str(folder), commit)
    return folder


def changed(before: str) -> list[str]:
    """Files that differ between two commits of main; all of them if the earlier one is not known."""
    try:
        return (
            git("diff", "--name-only", before, "HEAD").splitlines()
            if before.strip("0")
            else git("ls-files").splitlines()
        )
    except UserError:
        return git("ls-files").splitlines()
