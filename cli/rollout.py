"""Rollouts in progress, and A/B experiments."""

import os
import sys
from contextlib import nullcontext, suppress
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from cli.terminal import Why, out, state, verdict_table
from mlops.errors import UserError
from mlops.releases import Release, describe
from mlops.verdict import Verdict

app = typer.Typer(no_args_is_help=True, help="The rollout in progress: status, pause, resume, promote, abort.")


@app.command()
def status(watch: Annotated[bool, typer.Option("--watch", help="Again and again, until it ends.")] = False) -> None:
    """The judge's verdict now, with its figures."""
    from monitoring.analysis import examine

    if watch:
        _watch()
    else:
        state.result(*_shown(*examine(state.model)))


def _watch() -> None:
    """A table that changes, or where that is no terminal one answer for each change; then how it ended."""
    from monitoring.analysis import looks

    model, last = state.model, None
    piped = state.as_json or not out.is_terminal
    with suppress(KeyboardInterrupt), nullcontext() if piped else Live(console=out, auto_refresh=False) as live:
        for look in looks(model):
            value, table = _shown(*look)
            if live:
                live.update(table, refresh=True)
            elif look != last:
                state.result(value, table)
                sys.stdout.flush()
            last = look
    if (ended := model.releases.current()) and last and ended.rollout != last[0].rollout:
        text = f"revision {ended.revision}: {describe(ended)}, by {ended.by}: {ended.why}"
        state.result({"release": ended.model_dump(mode="json")}, text)


def _shown(release: Release, verdict: Verdict) -> tuple[dict[str, Any], Table]:
    value = {"release": release.model_dump(mode="json"), "verdict": verdict.as_dict()}
    return value, verdict_table(describe(release), value["verdict"])


@app.command()
def pause(why: Why) -> None:
    """Do not advance it; it can still be aborted."""
    _set_paused(True, why)


@app.command()
def resume(why: Why) -> None:
    """Advance it again."""
    _set_paused(False, why)


@app.command()
def promote(
    full: Annotated[bool, typer.Option("--full", help="Skip all steps: the challenger becomes the champion.")] = False,
    why: Why = "",
) -> None:
    """Advance to the next step now, whatever the judge says."""
    from mlops import promotion, rollout

    release, verdict = _judged("promote")
    if verdict.decision != "advance" and not why:
        hint = f"the judge does not say advance ({verdict.reasons[0]}); say why you promote it anyway: --why '…'"
        raise UserError("why", "", hint)
    reason = why or f"rollout {release.rollout}: {verdict.decision}"
    if full:
        _end(rollout.promote(state.model, release, reason), release)
        return
    champion = promotion.champion(state.model)
    if champion is None or champion.digest != release.champion:
        raise UserError("champion", release.champion[:12], "is not valid any more; release another model")
    done = rollout.advance(state.model, release, champion.contract.judge, reason)
    state.result(done.model_dump(mode="json"), f"revision {done.revision}: {describe(done)}")


@app.command()
def abort(why: Why = "") -> None:
    """The champion alone answers again; the result stays as a page."""
    from mlops import rollout

    release, verdict = _judged("abort")
    _end(rollout.abort(state.model, release, why or f"rollout {release.rollout}: {verdict.decision}"), release)


def experiment(
    digest: Annotated[str, typer.Argument(help="The challenger's digest, or its beginning.")],
    effect: Annotated[float, typer.Option(help="The smallest gain in loss that matters.", min=0.0001)] = 0.02,
    days: Annotated[int, typer.Option(help="How many days you are ready to wait.", min=2)] = 28,
    weight: Annotated[float, typer.Option(help="The challenger's share of the entities.", min=0.01, max=0.99)] = 0.5,
    why: Why = "",
) -> None:
    """Start an A/B test: how many days the effect needs to show, then both models answer."""
    from mlops import promotion
    from monitoring.analysis import daily_std
    from monitoring.sequential import days_needed

    model = state.model
    std, source = daily_std(model, digest)
    needed = days_needed(std, effect) if std is not None else None
    if std is not None and (needed is None or needed > days):
        wait = f"needs {needed or 'more than 1000'} days to show with 80 % power ({source})"
        raise UserError("effect", effect, f"{wait}; wait longer with --days, or look for a larger effect")
    shows = f"{needed} days show {effect:g} with 80 % power ({source})" if needed else source
    if os.environ.get("MLOPS_COMMAND"):  # in a cluster who reads the log cannot sign
        start = f"mlops release {digest} --mode ab --weight {weight:g} --why '…'"
        plan = {"days_needed": needed, "daily_std": std, "next": state.pasteable(start)}
        state.result(plan, state.pasteable(f"{shows}; start it: {start}"))
        return
    state.announce("experiment")
    done = promotion.release(model, digest, why or f"A/B for an effect of {effect:g}", mode="ab", weight=weight)
    value = done.model_dump(mode="json") | {"days_needed": needed, "daily_std": std}
    state.result(value, f"revision {done.revision}: rollout {done.rollout}, {describe(done)}; {shows}")


def _judged(verb: str) -> tuple[Release, Verdict]:
    """In a cluster by the judge's last word: there who signs cannot read the log."""
    from mlops import rollout
    from monitoring.analysis import examine

    if os.environ.get("MLOPS_COMMAND"):
        release = rollout.current(state.model)
        said = rollout.newest_verdict(state.model, release)
        state.announce(f"rollout {verb}")
        return release, said[1] if said else Verdict("inconclusive", ["the judge has not looked yet"], [], [])
    release, verdict = examine(state.model)
    state.announce(f"rollout {verb}")
    rollout.save_verdict(state.model, release, verdict)
    return release, verdict


def _set_paused(paused: bool, why: str) -> None:
    from mlops import rollout

    state.announce("rollout pause" if paused else "rollout resume")
    done = rollout.set_paused(state.model, paused, why)
    state.result(done.model_dump(mode="json"), f"revision {done.revision}: {describe(done)}")


def _end(done: Release, release: Release) -> None:
    from monitoring.analysis import write_page

    page = f"{state.environment.bucket}/{write_page(state.model, release)}"
    text = f"revision {done.revision}: {done.champion[:12]} serves; the result: {page}"
    state.result(done.model_dump(mode="json") | {"page": page}, text)
