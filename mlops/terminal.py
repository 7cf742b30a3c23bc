"""What every verb of the command shares: which environment and model are meant, and how an answer is shown."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlops.cluster import Cluster
from mlops.environment import Environment, only_model

# Where nobody looks at a terminal, a table is not folded.
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True)


@dataclass
class Context:
    env: str | None = None
    model: str | None = None
    as_json: bool = False
    cluster: Cluster | None = None

    @property
    def environment(self) -> Environment:
        return Environment.load(self.env)

    @property
    def model_name(self) -> str:
        return self.model or os.environ.get("MLOPS_MODEL") or only_model()

    def say(self, text: str) -> None:
        if not self.as_json:
            err.print(text, highlight=False)

    def target(self, verb: str) -> None:
        """Before staging or prod change, say so."""
        environment = self.environment
        if environment.name not in ("local", "dev", "kind"):
            err.print(f"{verb} in [bold]{environment.name}[/]: bucket {environment.bucket}, model {self.model_name}")

    def result(self, value: dict[str, Any], text: str | Table) -> None:
        if self.as_json:
            print(json.dumps(value, default=str))
        else:
            out.print(text, highlight=False, soft_wrap=True, markup=not isinstance(text, str))  # others wrote parts of it


state = Context()
Why = Annotated[str, typer.Option(help="The reason; it stays in the release log.")]
