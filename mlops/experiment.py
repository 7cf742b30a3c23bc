"""`mlops experiment`: an A/B test that a person asked for. How long it takes comes first, and a page with the result last."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from mlops.errors import Fault
from mlops.releases import Release
from mlops.terminal import Why, state

app = typer.Typer(no_args_is_help=True, help="A/B tests: is the challenger better, and by how much?")


@app.command()
def start(
    digest: Annotated[str, typer.Argument(help="The challenger's digest, or its beginning.")],
    effect: Annotated[float, typer.Option(help="The smallest gain in loss that matters.", min=0.0001)] = 0.01,
    days: Annotated[int, typer.Option(help="How many days you would wait for it.", min=2)] = 28,
    weight: Annotated[float, typer.Option(help="Share of the entities that the challenger answers.", min=0.01, max=0.99)] = 0.5,
    why: Why = "",
) -> None:
    """How many days an effect needs to show; then, if you would wait so long, both models answer."""
    from mlops import door
    from monitoring.experiment import spread_of_a_day
    from monitoring.sequential import days_needed

    environment, model = state.environment, state.model_name
    spread, source = spread_of_a_day(environment, model, digest)
    needed = days_needed(spread, effect) if spread is not None else None
    if spread is None:
        state.say(f"how many days it takes is not known: {source}")
    elif needed is None or needed > days:
        raise Fault(
            "effect", effect, f"needs {needed or 'more than 1000'} days to show with 80 % power ({source}); wait for it with "
            f"--days {needed or ''}, or look for a larger effect",
        )  # fmt: skip
    state.target("experiment")
    done = door.release(environment, model, digest, why or f"A/B for an effect of {effect:g}", mode="ab", weight=weight)
    told = f"{needed} days show {effect:g} with 80 % power ({source})" if needed else "see mlops experiment status"
    value = done.model_dump(mode="json") | {"days_needed": needed, "spread": spread}
    state.result(value, f"epoch {done.epoch}: experiment {done.experiment}, {done.champion[:12]} against {digest[:12]}; {told}")


@app.command()
def status() -> None:
    """What the judge says now, with numbers."""
    from monitoring.experiment import examine

    release, verdict = examine(state.environment, state.model_name)
    value = {"release": release.model_dump(mode="json"), "verdict": verdict.as_dict()}
    state.result(value, table(release, value["verdict"]))


@app.command()
def stop(
    promote: Annotated[bool, typer.Option("--promote", help="The challenger becomes the champion.")] = False,
    why: Why = "",
) -> None:
    """End the trial that is on, one way or the other; its result stays as a page."""
    from mlops import trials
    from monitoring.experiment import examine, page

    environment, model = state.environment, state.model_name
    release, verdict = examine(environment, model)
    if promote and verdict.decision != "forward" and not why:
        raise Fault("why", "", f"it was not shown to be better ({verdict.reasons[0]}); say why it is promoted all the same: --why '…'")
    state.target("experiment")
    trials.keep(environment.store, model, release, verdict.as_dict())
    reason = why or f"experiment {release.experiment}: {verdict.decision}"
    done = (trials.promote if promote else trials.back)(environment.store, model, release, reason)
    place = f"{environment.bucket}/{page(environment.store, model, release)}"
    value = done.model_dump(mode="json") | {"page": place, "decision": verdict.decision}
    state.result(value, f"epoch {done.epoch}: {done.champion[:12]} serves; the result: {place}")


def table(release: Release, verdict: dict[str, Any]) -> Table:
    title = (
        f"{release.champion[:12]} against {(release.challenger or '')[:12]}: {verdict['decision']}, {escape('; '.join(verdict['reasons']))}"
    )
    shown = Table("criterion", "", "n", "found", "from", "to", "against", title=title)
    for row in verdict["criteria"]:
        numbers = ("" if row[name] is None else f"{row[name]:+.4f}" for name in ("estimate", "low", "high"))
        shown.add_row(escape(row["name"]), row["verdict"], str(row["n"]), *numbers, f"{row['bound']:g}")
    return shown
