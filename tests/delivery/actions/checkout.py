"""actions/checkout: the commit of the run, or `ref`, out of the forge's repository."""

import os
import subprocess
from pathlib import Path

given, sha, name = os.environ["REF"], os.environ["GITHUB_SHA"], os.environ["GITHUB_REF"]
depth, folder, remote = os.environ["DEPTH"], Path(os.environ["FOLDER"]), Path(os.environ["FORGE_GIT"]).as_uri()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


folder.mkdir(parents=True, exist_ok=True)
git("init", "-q", "-b", "main")
git("remote", "add", "origin", remote)
wanted = given or sha
if depth == "0":
    git("fetch", "-q", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*", wanted)
    commit = git("ls-remote", "origin", f"refs/heads/{wanted}").partition("\t")[0] or wanted
else:
    git("fetch", "-q", f"--depth={depth}", "origin", wanted)
    commit = git("rev-parse", "FETCH_HEAD")
branch = given if git("ls-remote", "--heads", "origin", f"refs/heads/{given}") else ""
branch = branch or ("" if given else name.removeprefix("refs/heads/") if name.startswith("refs/heads/") else "")
git("checkout", "-q", *(["-B", branch] if branch else ["--detach"]), commit)
with open(os.environ["GITHUB_OUTPUT"], "a") as outputs:
    outputs.write(f"commit={git('rev-parse', 'HEAD')}\n")
