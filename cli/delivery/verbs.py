"""`mlops ci VERB`: what workflows call, one command a step; input comes from the environment."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.delivery.road import Road
from cli.terminal import err, state
from mlops.environment import ROOT
from mlops.errors import GateError, UserError

app = typer.Typer(no_args_is_help=True, help="What pipelines do; each verb is one step of a workflow.")
Environment = Annotated[str, typer.Option(envvar="ENVIRONMENT")]
Built = Annotated[
    str, typer.Option("--build", envvar="BUILD", help="What was built, as JSON; empty: what is released.")
]
To = Annotated[str, typer.Option(envvar="TO", help="Digest of the build, or its beginning; empty: what ran before.")]
Reason = Annotated[str, typer.Option("--why", envvar="WHY")]
Model = Annotated[str, typer.Option(envvar="MODEL", help="If there are several.")]
Base = Annotated[str, typer.Option(envvar="BASE", help="The commit to compare with.")]
Folder = Annotated[Path, typer.Argument(envvar="PREVIEW")]


def _say(text: str) -> None:
    err.print(text, highlight=False, markup=False)


@app.command()
def build(
    push: Annotated[
        bool, typer.Option("--push", help="Push, store and attest; else only show that it can be built.")
    ] = False,
    platform: Annotated[str, typer.Option(envvar="PLATFORM", help="linux/amd64 or linux/arm64.")] = "",
) -> None:
    """Build the wheel and the images of this commit, once for all environments."""
    from cli.delivery.build import build as make
    from cli.delivery.github import output, summary

    made = make(Road.load(), push, platform, _say)
    output(build=made.model_dump_json())
    rows = "".join(f"\n| {name} | `{each}` |" for name, each in made.artifacts.items())
    summary(f"### Build `{made.short}`\n\n| artifact | digest |\n|---|---|{rows}")
    state.result({"build": made.model_dump(), "digest": made.digest}, f"build {made.short}")


@app.command()
def infrastructure(environment: Environment, build: Built = "") -> None:
    """Bring infra/aws of an environment to what the build's commit says."""
    from cli.cluster import Cluster
    from cli.delivery.builds import require
    from cli.delivery.pulumi import stacks
    from cli.delivery.targets import OnCluster

    road, cluster, made = Road.load(), Cluster.of(environment), _build(build, environment)
    if cluster is None or len(stacks(environment)) == 1:
        raise UserError("environment", environment, "has nothing in AWS: environments/aws has no file for it")
    require(road, made, environment)
    OnCluster(road, cluster).run(f"aws/{environment}", made, _say)


@app.command()
def deploy(environment: Environment, build: Built = "", why: Reason = "") -> None:
    """Verify a build, bring it to an environment, prove it there; if that fails, bring back what ran before."""
    from cli.delivery.deploy import deploy as run

    made = _build(build, environment)
    _told(environment, run(Road.load(), environment, made, why or f"commit {made.commit[:12]}", _say))


@app.command()
def previous(environment: Environment, to: To = "") -> None:
    """Which build an environment would go back to."""
    from cli.delivery.deploy import previous as find
    from cli.delivery.github import output

    found = find(Road.load(), environment, to).build
    output(build=found.model_dump_json())
    state.result(found.model_dump(), found.short)


@app.command()
def rollback(environment: Environment, why: Reason, to: To = "") -> None:
    """Go back to a build that ran in an environment, and withdraw what is replaced."""
    from cli.delivery.deploy import rollback as run

    _told(environment, run(Road.load(), environment, to, why, _say))


def _build(text: str, environment: str):
    from cli.delivery.builds import Build

    return Build.parse(text, "BUILD") if text else Build.released(environment)


def _told(environment: str, outcome) -> None:
    from cli.delivery.github import summary

    before = outcome.before.short if outcome.before else "nothing"
    summary(
        f"### {environment}: `{outcome.build.short}`\n\nBefore: `{before}`. Took {outcome.seconds:.0f} s. {outcome.proven}.\n\n"
        f"To go back: run the workflow rollback with environment {environment}."
    )
    value = {"digest": outcome.build.digest, "commit": outcome.build.commit, "seconds": round(outcome.seconds, 1)}
    state.result(value, f"{environment} runs {outcome.build.short}: {outcome.proven}")


@app.command()
def promote(
    build: Built, why: Annotated[str, typer.Option(envvar="WHY", help="Of a rollback that is to stay.")] = ""
) -> None:
    """Open the pull request that promotes a build to the last environment, or move it on."""
    from cli.delivery.builds import Build
    from cli.delivery.github import GitHub, summary
    from cli.delivery.promotion import propose

    road, made = Road.load(), Build.parse(build, "BUILD")
    url = propose(road, GitHub(), made, why)
    text = f"merging {url} deploys {made.short} to {road.last}" if url else f"{road.last} has {made.short} already"
    summary(text)
    state.result({"url": url}, text)


@app.command()
def train(
    environment: Environment,
    model: Model = "",
    action: Annotated[str, typer.Option(envvar="ACTION", help="retrain or recalibrate, from the prediction log.")] = "",
    why: Annotated[str, typer.Option(envvar="WHY", help="Of that action.")] = "",
) -> None:
    """Train in an environment. Exit code 3: refused by the gate."""
    from cli.delivery.github import output, summary
    from cli.delivery.training import train as run

    found, code = run(environment, model, action, why)
    if "gate" not in found:
        raise UserError(found["error"]["key"], found["error"]["value"], found["error"]["hint"])
    rows = "".join(f"\n| {name} | {value} |" for name, value in found["metrics"].items())
    reasons = "".join(f"\n- {each}" for each in found["reasons"])
    summary(
        f"### {environment}: `{found['digest'][:12]}` {found['gate']}\n\n| metric | value |\n|---|---|{rows}\n{reasons}"
    )
    output(digest=found["digest"], gate=found["gate"])
    if code:
        raise GateError("gate", found["digest"][:12], f"refused: {'; '.join(found['reasons'])}")
    follows = "the platform rolls it out (retraining.release)" if action else "next: promote.yml with this digest"
    state.result(found, f"{found['digest'][:12]} passed; {follows}")


@app.command()
def release(
    environment: Environment,
    digest: Annotated[str, typer.Option(envvar="DIGEST")],
    why: Reason,
    mode: Annotated[str, typer.Option(envvar="MODE")] = "shadow",
    model: Model = "",
    archive: Annotated[Path | None, typer.Option(envvar="ARCHIVE", help="Of `mlops bundle export`.")] = None,
) -> None:
    """Import a model from another environment, verify it again, and release it; the first one of an environment at once."""
    from cli.delivery.github import summary
    from cli.delivery.targets import target

    there, named = target(Road.load(), environment), _named(model)
    if archive:
        digest = there.mlops(*named, "bundle", "import", data=archive.read_bytes())["digest"]
    mode = mode if there.mlops(*named, "status")["release"] else "full"
    found = there.mlops(*named, "release", digest, "--mode", mode, "--why", why)
    summary(
        f"### {environment}: `{digest[:12]}` released as {mode}\n\nRevision {found['revision']}. Back: the workflow rollback."
    )
    state.result(found, f"{environment}: revision {found['revision']}, {mode} {digest[:12]}")


@app.command()
def export(
    environment: Environment,
    digest: Annotated[str, typer.Option(envvar="DIGEST")],
    archive: Annotated[Path, typer.Option(envvar="ARCHIVE")],
    to: Annotated[str, typer.Option(envvar="TARGET", help="The environment that it is for: the next one.")],
    model: Model = "",
    visibility: Annotated[
        str, typer.Option(envvar="VISIBILITY", help="Of the repository whose artifacts carry it.")
    ] = "",
) -> None:
    """Write a model of an environment into an archive, to be released in the next one."""
    from cli.delivery.targets import target

    road = Road.load()
    if road.before(to) != environment:
        raise UserError("from", environment, f"is not what comes before {to}: that is {road.before(to)}")
    if visibility == "public":
        hint = "anybody could download the model and its golden rows; carry it by hand: mlops bundle export, import"
        raise UserError("repository", "public", hint)
    if not (data := target(road, environment).raw(*_named(model), "bundle", "export", digest)):
        raise UserError("digest", digest, "could not be exported; why is said above")
    archive.write_bytes(data)
    state.result({"bytes": archive.stat().st_size}, f"{archive.stat().st_size} bytes in {archive}")


@app.command()
def rollback_model(environment: Environment, why: Reason, model: Model = "") -> None:
    """Release the model that was observed serving before."""
    from cli.delivery.github import summary
    from cli.delivery.targets import target

    found = target(Road.load(), environment).mlops(*_named(model), "rollback", "--why", why)
    summary(f"### {environment}: back to `{found['champion'][:12]}`\n\nRevision {found['revision']}.")
    state.result(found, f"{environment}: revision {found['revision']}, back to {found['champion'][:12]}")


def _named(model: str) -> list[str]:
    return ["--model", model] if model else []


@app.command()
def render(folder: Folder, base: Base) -> None:
    """Render all environments before and after a change, and write what differs into a folder."""
    from cli.delivery.git import worktree
    from cli.delivery.preview import Preview, compare

    found = Preview(stacks=compare(worktree(base), _say))
    _write(folder, "stacks", found)
    if broken := [f"{each.name}: {each.problem}" for each in found.stacks if each.problem.startswith("this branch")]:
        raise UserError("render", broken[0].partition(":")[0], broken[0])


@app.command()
def preview(folder: Folder, environment: Environment) -> None:
    """What `pulumi preview` finds against what is there."""
    from cli.delivery.preview import Preview, live
    from cli.delivery.pulumi import stacks

    _write(folder, f"live-{environment}", Preview(live=[live(name) for name in stacks(environment)]))


@app.command()
def gate(folder: Folder, base: Base) -> None:
    """Train as before and after a change, and write what the gate says into a folder, if it touches a training."""
    from cli.delivery.git import changed, worktree
    from cli.delivery.preview import Preview
    from cli.delivery.training import compare

    if not any(each.startswith(("training/", "mlops/", "requirements/")) for each in changed(base)):
        state.result({"gates": []}, "nothing of a training changed")
        return
    _write(folder, "gates", Preview(gates=compare(worktree(base), _say)))


def _write(folder: Path, name: str, found) -> None:
    from cli.delivery.comment import text
    from cli.delivery.github import run_url, summary

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(found.model_dump_json(), "utf-8")
    summary(text(found, os.environ.get("GITHUB_SHA", ""), run_url(), {}))


@app.command()
def comment(folder: Folder) -> None:
    """Put what the jobs of ci.yml wrote into one comment on the pull request."""
    from cli.delivery import comment as comments
    from cli.delivery.github import GitHub

    github, event = GitHub(), comments.event()
    number = comments.pull_request(github, event)
    if number is None:
        state.result({"comment": ""}, "the pull request is closed, or has newer commits: their run comments")
        return
    run = event["workflow_run"]
    ended = [(each["name"], each["conclusion"] or "") for each in github.all(f"actions/runs/{run['id']}/jobs", "jobs")]
    jobs = dict(
        sorted(ended, key=lambda each: each[1] not in ("success", "skipped"))
    )  # of two with a name the one that failed
    body = comments.text(comments.read(folder), run["head_sha"], run["html_url"], jobs)
    done = comments.put(github, number, body)
    state.result({"comment": done, "number": number}, f"comment on #{number}: {done}")


@app.command()
def watch(environment: Environment) -> None:
    """Infrastructure that drifted, and locks that nobody holds: one issue each."""
    from cli.delivery.watch import drift, stale_lock

    road = Road.load()
    _report(
        f"drift-{environment}",
        f"Infrastructure of {environment} is not what was deployed",
        drift(road, environment, _say),
    )
    _report(f"lock-{environment}", f"The state of {environment} is locked", stale_lock(road, environment))


@app.command()
def drill(environment: Environment) -> None:
    """Whether what serves could be restored from a backup: one issue."""
    from cli.delivery.watch import restore

    _report(f"restore-{environment}", f"{environment} cannot be restored", restore(environment, _say))


@app.command()
def audit() -> None:
    """Known vulnerabilities of what images contain: one issue."""
    from cli.delivery.watch import audit as find

    _report("packages", "Packages have known vulnerabilities", find(_say))


@app.command()
def update() -> None:
    """Newer dependencies, a week old at least, as one pull request."""
    from cli.delivery.github import GitHub
    from cli.delivery.watch import update as run

    url = run(GitHub(), _say)
    state.result({"url": url}, url or "everything is as new as it may be")


def _report(key: str, title: str, problem: str) -> None:
    from cli.delivery.github import GitHub, summary
    from cli.delivery.watch import report

    done = report(GitHub(), key, title, problem)
    summary(f"- {title}: {'yes' if problem else 'no'}{f', issue {done}' if done else ''}")
    state.result({"problem": problem, "issue": done}, f"{title}: {'yes' if problem else 'no'}")


def adopt(
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on GitHub.")],
    name: Annotated[str, typer.Option(help="Of the project; the repository's if not given.")] = "",
    owners: Annotated[str, typer.Option(help="Who must agree to changes of production: @OWNER/TEAM or @USER.")] = "",
    aws_account: Annotated[str, typer.Option(help="Its 12 digits, if the environments are on AWS.")] = "",
    runner: Annotated[str, typer.Option(help="Label of a runner of yours, for jobs that touch an environment.")] = "",
    without_example: Annotated[
        bool, typer.Option("--without-example", help="Remove the example's two folders.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Make this copy of the template your own: its files and its repository on GitHub. May be killed and repeated."""
    from cli.delivery.adopt import Adoption
    from cli.delivery.github import GitHub

    adoption = Adoption(ROOT, name, owners, aws_account, without_example, GitHub(repository), dry_run, runner=runner)
    adoption.run()
    lines = [f"{'would ' if dry_run else ''}{each}" for each in adoption.done] or ["nothing left to do here"]
    off = [each for each in adoption.limits if each.startswith("workflows: off")]
    lines += [f"note: {each}" for each in adoption.limits if each not in off] + off
    if dry_run:
        lines.append("nothing was changed")
    elif any(each.startswith(("write", "remove", "trust")) for each in adoption.done):
        lines.append("commit what changed, merge it by a pull request, then adopt again (docs/delivery.md)")
    state.result({"done": adoption.done, "limits": adoption.limits}, "\n".join(lines))


def upgrade(
    source: Annotated[str, typer.Argument(help="The template: an address or a folder, as git fetch takes it.")],
    to: Annotated[str | None, typer.Option(help="Its tag or branch; its default branch if not given.")] = None,
    base: Annotated[
        str | None, typer.Option(help="The commit that this copy was made from, if it is not recorded.")
    ] = None,
) -> None:
    """Merge a newer version of the template into a branch of its own. Exit code 2: it has conflicts to resolve."""
    from cli.delivery.upgrade import upgrade as merge

    found = merge(source, to, base, ROOT, _say)
    if not found.branch:
        state.result(vars(found), f"this is version {found.target[:12]} already")
        return
    lines = [f"{found.branch}: {len(found.changed)} files changed; look at it, then: git merge {found.branch}"]
    lines += [
        f"  {what}: {path}"
        for what, paths in (
            ("conflict", found.conflicts),
            ("yours was kept", found.kept),
            ("no longer in the template", found.gone),
        )
        for path in paths
    ]
    state.result(vars(found), "\n".join(lines))
    if found.conflicts:
        raise typer.Exit(2)
