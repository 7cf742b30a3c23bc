"""What every verb shares: which environment and model are meant, and how an answer is shown."""

import json
import os
import re
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cli.cluster import Cluster
from mlops.environment import Environment, models, only_model
from mlops.errors import UserError
from mlops.moments import moment
from mlops.registered_model import RegisteredModel
from mlops.terminal import Terminal

out = Terminal(width=None if sys.stdout.isatty() else 200)  # do not wrap tables when output is not a terminal
err = Terminal(stderr=True)
Why = Annotated[str, typer.Option(help="The reason; it stays in the release log.")]


@dataclass
class Context:
    env: str | None = None
    name: str | None = None
    as_json: bool = False
    cluster: Cluster | None = None

    @property
    def environment(self) -> Environment:
        return Environment.load(self.env)

    @property
    def model_name(self) -> str:
        return self.name or os.environ.get("MLOPS_MODEL") or only_model()

    @property
    def model(self) -> RegisteredModel:
        return self.environment.model(self.model_name)

    def require_cluster(self, verb: str) -> Cluster:
        if self.cluster is None:
            raise UserError("env", self.env or "local", f"is not a cluster; {verb} needs one: mlops --env kind {verb}")
        return self.cluster

    def pasteable(self, text: str) -> str:
        """With every command in it as it was called here, for this environment and model."""
        called = os.path.relpath(sys.argv[0]) if os.path.basename(sys.argv[0]) == "mlops" else "mlops"
        name, words = self.name or os.environ.get("MLOPS_MODEL"), [os.environ.get("MLOPS_COMMAND", called)]
        words += ["--env", self.env] if self.env and "MLOPS_COMMAND" not in os.environ else []  # which has it
        if name and len(models()) != 1:
            words += ["--model", name]
            text = text.replace("make up", f"MLOPS_MODEL={name} make up")
        return re.sub(r"(?<![\w./-])mlops (?=[a-z])", f"{' '.join(words)} ", text)

    def announce(self, verb: str) -> None:
        """Print the target before staging or prod is changed."""
        environment = self.environment
        if environment.name not in ("local", "dev", "kind"):
            place = f"bucket {environment.bucket}, model {self.model_name}"
            err.print(f"{verb} in [bold]{escape(environment.name)}[/]: {escape(place)}")

    def result(self, value: dict[str, Any], text: str | Table) -> None:
        if self.as_json:
            print(json.dumps(value, default=str))
        else:
            markup = not isinstance(text, str)  # plain text may contain what other people wrote
            out.print(text, highlight=False, soft_wrap=True, markup=markup)


state = Context()


def read_moment(name: str, text: str) -> datetime:
    """Of the option or argument `name`."""
    try:
        return moment(text)
    except ValueError as error:
        raise UserError(name, text, str(error)) from None


def verdict_table(title: str, verdict: dict[str, Any]) -> Table:
    reasons = escape("; ".join(verdict["reasons"]))
    title = f"{escape(title)}: {verdict['decision']}, {reasons}"
    shown = Table("check", "", "n", "estimate", "from", "to", "bound", title=title)
    for row in verdict["checks"]:
        numbers = ("" if row[name] is None else f"{row[name]:+.4f}" for name in ("estimate", "low", "high"))
        shown.add_row(escape(row["name"]), row["outcome"], str(row["n"]), *numbers, f"{row['bound']:g}")
    return shown
