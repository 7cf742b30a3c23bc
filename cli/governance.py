"""Who released what on which evidence; deletion of what is known of one entity."""

import sys
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cli.terminal import read_moment, state
from mlops.contract import Contract
from mlops.errors import UserError
from mlops.moments import shown
from mlops.releases import describe

_MARKS = {"verified": "green", "not signed": "yellow", "missing": "red", "invalid": "red"}


def audit(
    start: Annotated[str, typer.Argument(metavar="FROM", help="A date or moment (ISO 8601, UTC without a zone).")],
    end: Annotated[str, typer.Argument(metavar="TO", help="The first one that does not count.")],
) -> None:
    """Who released what, when, why, and on which evidence, verified again now. Exit code 2: something does not verify."""
    from mlops.audit import audit

    found = list(audit(state.model, read_moment("FROM", start), read_moment("TO", end)))
    invalid, unsigned = [x.revision for x in found if not x.holds], [x.revision for x in found if not x.signed]
    said = f"{len(found)} records; not signed: {unsigned or 'none'}; with evidence that does not verify: {invalid or 'none'}"
    table = Table("", "at", "release", "by", "why", "evidence", caption=said)
    for each in found:
        about, lines = each.release, []
        for one in each.evidence:
            details = one.attestation.details if one.attestation else {}
            figures = [f"{name} {value:.4g}" for name, value in details.get("metrics", {}).items()]
            words = [one.why or "; ".join(details.get("reasons", [])), ", ".join(figures)]
            text = f"{one.kind} {one.digest[:12]} {details.get('decision', '')} {one.state}: {'; '.join(filter(None, words))}"
            lines.append(f"[{_MARKS[one.state]}]{escape(' '.join(text.split()).rstrip(':'))}[/]")
        texts = (shown(about.at), describe(about), about.by, about.why) if about else ("", "unreadable", "", "")
        table.add_row(str(each.revision), *map(escape, texts), "\n".join(lines))
    records = [each.model_dump(mode="json") for each in found]
    state.result({"records": records, "not_signed": unsigned, "invalid": invalid}, table)
    if invalid:
        raise typer.Exit(2)


def forget(
    entity: Annotated[
        list[str], typer.Argument(help="As the log has it (a|b), or COLUMN=VALUE for each of its columns; -: stdin.")
    ],
    why: Annotated[str, typer.Option(help="The reason; it is recorded.")],
) -> None:
    """Delete the rows of an entity from prediction log, outcomes and snapshot; again after an hour, until it is complete."""
    from mlops import promotion
    from monitoring import retention

    champion = promotion.champion(state.model)
    contract = champion.contract if champion else None
    value = _entity(entity, contract)
    state.announce("forget")
    done = retention.forget(state.model, contract, value, why)
    again = (
        f"run it again after {shown(done.at + retention.SPOOLED)}: the app may hold rows that are not in the bucket yet"
    )
    if damaged := done.found["damaged"]:
        again = f"{damaged} damaged files may have more: delete them (damaged/ in the bucket), and run it again"
    counts = ", ".join(f"{count} {name}" for name, count in done.found.items() if name != "damaged")
    text = f"deleted: {counts}; {'complete: nothing was left' if done.complete else again}"
    state.result(done.model_dump(mode="json", include={"at", "by", "why", "found", "complete"}), text)


def _entity(words: list[str], contract: Contract | None) -> str:
    columns = contract.entity if contract else []
    given = dict(word.partition("=")[::2] for word in words)
    if len(words) == 1 and not given.keys() & set(columns):
        return sys.stdin.read().strip() if words == ["-"] else words[0]
    if given.keys() != set(columns):
        hint = f"is none: give it as the log has it, or {' '.join(f'{name}=…' for name in columns)}"
        raise UserError("entity", " ".join(words), hint)
    return "|".join(given[name] for name in columns)
