"""The one open pull request that promotes to the last environment: it changes a single file, and merging it deploys."""

from cli.delivery.builds import Build
from cli.delivery.git import git, is_ancestor
from cli.delivery.github import GitHub, run_url
from cli.delivery.markdown import code
from cli.delivery.road import Road
from infra.images import released
from mlops.environment import ROOT
from mlops.errors import UserError


def propose(road: Road, github: GitHub, build: Build, why: str = "") -> str:
    """Its address, '' if main has that build already. `why`: of a rollback, which no proposal of a newer build overrules."""
    environment, file = road.last, str(released(road.last).relative_to(ROOT))
    branch, main = f"promote/{environment}", github.file(file, github.ask("GET", "")["default_branch"])
    if main == build.text:
        return ""
    if (opened := github.opened(branch)) and (proposed := github.file(file, branch)):
        newer = is_ancestor(build.commit, Build.parse(proposed, branch).commit)
        if proposed == build.text or (newer and not why):
            return opened["html_url"]
    title = f"{'Pin' if why else 'Promote'} {build.commit[:12]} {'in' if why else 'to'} {environment}"
    return github.propose(branch, {file: build.text}, title, _body(build, environment, main, why))


def _body(build: Build, environment: str, before: str, why: str) -> str:
    lines = [f"Rolled back: {code(why)}. Merging this keeps it so.", ""] if why else []
    lines += [f"Merging this deploys build `{build.digest[:12]}` to {environment}; nothing is built again.", ""]
    lines += [
        "| artifact | digest |",
        "|---|---|",
        *(f"| {name} | `{each}` |" for name, each in build.artifacts.items()),
    ]
    try:
        old = Build.parse(before, environment).commit if before else ""
        said = git(
            "log", "--no-merges", "--max-count=50", "--format=%h %s", f"{old}..{build.commit}" if old else build.commit
        )
    except UserError:  # a shallow clone
        said = ""
    lines += ["", "Commits:", *(f"- {code(line)}" for line in said.splitlines())] if said else []
    return "\n".join([*lines, "", f"Proven by {run_url()}"])
