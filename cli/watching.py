"""What the log says of data and models, and the trainings that follow from it."""

import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.markup import escape
from rich.table import Table

from cli.terminal import Why, err, state
from mlops.errors import GateError, UserError
from mlops.retraining import Action, RetrainingLog

if TYPE_CHECKING:
    from mlops.contract import Window
    from monitoring.watch import Watched

_ALL = datetime(1970, 1, 1, tzinfo=UTC)
Report = Annotated[str, typer.Option(help="html, or evidently (if it is installed).")]


def drift(
    window: Annotated[str | None, typer.Option(help="START..END, two dates; the newest days if not given.")] = None,
    report: Report = "html",
) -> None:
    """Compare the data of the log with that of the training, by feature, in days. Exit code 3: an alarm."""
    from mlops.contract import Window
    from monitoring.drift_report import rows, write

    watched = _watched(Window.parse(window) if window else None)
    found = watched.drift
    page = write(state.model, state.environment.home / "reports", watched, report)
    value = {"decision": found.decision, "why": found.why, "days": [str(day) for day in found.days], "rows": found.rows,
             "reference": found.reference, "shifts": [shift.as_dict() for shift in found.shifts],
             "untestable": found.untestable, "unreadable": found.unreadable, "report": page}  # fmt: skip
    heads = ("feature", "tier", "effect", "bound", "by chance", "against recent", "")
    table = Table(*heads, title=escape(f"{found.decision}: {found.why}"))
    for row in rows(found):
        table.add_row(*map(escape, row))
    state.result(value, table)
    err.print(
        f"{found.rows} rows of {len(found.days)} days, compared with {found.reference}; report {page}", soft_wrap=True
    )
    if found.alarms:
        raise GateError("drift", len(found.alarms), found.why)


def quality(days: Annotated[int, typer.Option(help="How many of the newest are shown.", min=1)] = 28) -> None:
    """Loss, calibration and AUC of what serves, by day, from outcomes that have matured."""
    found = _watched().quality
    table = Table("day", "rows", "with outcome", "loss", "gap", "AUC", title=f"{found.model_version[:12]}")
    for day, rows, n, loss, gap, auc in found.days.tail(days).iter_rows():
        table.add_row(str(day), str(rows), str(n), f"{loss:.4f}", f"{gap:+.4f}", "" if auc is None else f"{auc:.3f}")
    for name, estimate in (("loss", found.loss), ("gap", found.gap)):
        shown = f"{estimate.mean:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]" if estimate else "too few days"
        table.add_row(f"{found.window} days", "", "", *([shown, ""] if name == "loss" else ["", shown]), "")
    newest = {name: vars(each) if each else None for name, each in (("loss", found.loss), ("gap", found.gap))}
    state.result({"model_version": found.model_version, "window": found.window, **newest, "auc": found.auc,
                  "days": found.days.to_dicts()}, table)  # fmt: skip


def retrain(
    if_due: Annotated[bool, typer.Option("--if-due", help="Only if the contract says that it is time.")] = False,
    action: Annotated[str, typer.Option(help="retrain, or recalibrate: an intercept for the champion.")] = "retrain",
    why: Why = "",
) -> None:
    """Make a new model from the prediction log and its outcomes. Exit code 3: refused, by the gate or for its rows; with
    --if-due that is an answer like another: the alert RetrainingFailed tells of it."""
    from monitoring.watch import due

    if action not in get_args(Action):
        raise UserError("action", action, "write retrain or recalibrate")
    log = RetrainingLog(state.model)
    log.give_up()
    if not if_due:
        _renew(log, "recalibrate" if action == "recalibrate" else "retrain", why or "by hand")
        return
    wanted = due(_watched(), log.read()) if state.model.releases.read() else None
    if wanted is None:
        state.result({"due": False}, "no training is due")
        return
    try:
        _renew(log, *wanted)
    except GateError as refused:
        state.result({"due": True, "refused": refused.hint}, str(refused))


def _renew(log: RetrainingLog, action: Action, why: str) -> None:
    from monitoring.fresh import read_fresh
    from training import pipeline
    from training.definition import load_definition

    watched = _watched(since=_ALL)
    unseen, least = len(watched.unseen), watched.contract.gate.min_days
    if watched.today is None or unseen < least:
        hint = f"has {unseen} matured days that the champion has not seen, the gate needs {least}; see `mlops quality`"
        raise UserError("log", state.model_name, hint)
    definition = load_definition(state.model_name)
    run = log.begin(watched.contract.retraining, action, why, watched.today)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # of a node that is drained: recorded at once
    try:
        with err.status("retrain") as status:
            status.update("read the log")
            fresh = read_fresh(state.model, watched.contract, watched.matured)
            if fresh.problems:
                raise GateError("rows", run.run, "; ".join(fresh.problems))
            trained = pipeline.renew(state.environment, definition, action, fresh.rows, status.update)
        decision, reasons = trained.verdict.decision, "; ".join(trained.verdict.reasons)
        log.end(run, "passed" if decision == "passed" else "refused", reasons or why, trained.digest)
    except BaseException as error:
        refused = isinstance(error, GateError)
        log.end(run, "refused" if refused else "failed", error.hint if refused else f"{type(error).__name__}: {error}")
        raise
    text = f"{trained.digest[:12]}  {action}, {decision} by the gate  report {trained.report}"
    state.result({"due": True, "run": run.run, "action": action, "digest": trained.digest, "gate": decision,
                  "reasons": trained.verdict.reasons, "metrics": trained.metrics}, text)  # fmt: skip
    if decision == "refused":
        raise GateError("gate", trained.digest[:12], f"refused: {reasons}")


def _watched(window: "Window | None" = None, since: datetime | None = None) -> "Watched":
    from monitoring.watch import Watch

    with err.status("read the log"):
        found = Watch(state.model).look(window, since)
    if found is None:
        raise UserError("model", state.model_name, "nothing is released yet: the log has nothing to compare")
    return found
