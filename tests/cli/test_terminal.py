"""What other people wrote cannot command the terminal of whoever reads it."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

import cli.main as cli
from mlops import promotion
from mlops.bundle import Bundle
from mlops.errors import UserError, visible
from mlops.terminal import Terminal
from tests import synthetic
from tests.service import environment

HOSTILE = "ok\x1b[2J\x1b]0;owned\x07\x9b31m\r\x7f\u202etxt.\u2066\u200b\u061c[red]approved[/] [/nothing]"
COMMANDING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def test_a_terminal_shows_what_would_command_it_wherever_it_stands() -> None:
    written = io.StringIO()
    shown = Terminal(file=written, width=300, force_terminal=False)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    with Progress(console=shown) as progress:
        progress.add_task(HOSTILE.replace("[/nothing]", ""), total=1)
    for each in (HOSTILE, {"why": HOSTILE}, [HOSTILE]):
        shown.print(each, markup=False)
    for each in (table.columns[0], table):
        each.header = each.title = "x\x1b[2J"  # ty: ignore[invalid-assignment]
    shown.print(table, markup=False)
    text = written.getvalue()
    assert not COMMANDING.search(text)
    assert r"\x1b[2J" in text


def test_colours_and_the_live_display_of_a_terminal_still_work() -> None:
    written = io.StringIO()
    shown = Terminal(file=written, width=80, force_terminal=True)
    with shown.status("train"):
        shown.print("[red]error[/] of \x1b[2J")
    text = written.getvalue()
    assert "\x1b[31merror\x1b[0m" in text
    assert "\x1b[2J" not in text


def test_an_error_says_what_it_says_without_commanding() -> None:
    error = UserError("why", HOSTILE, HOSTILE)
    assert not COMMANDING.search(str(error))
    assert error.hint == HOSTILE
    assert visible("a\tb\nÄ≥") == "a\tb\nÄ≥"


WORDS = [
    ("history",), ("status",), ("audit",), ("runs",), ("release", HOSTILE), ("rollback", "--to", HOSTILE), ("compare", HOSTILE, HOSTILE),
    ("predict", HOSTILE), ("--env", HOSTILE, "history"), ("--model", HOSTILE, "history"), ("api-key", "list"), ("api-key", "new", HOSTILE),
    ("forget", HOSTILE), ("signing-key", "revoke", HOSTILE), ("rollout", "status"), (HOSTILE,),
]  # fmt: skip


def test_no_command_prints_a_control_character(
    tmp_path: Path, first_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = environment(tmp_path)
    monkeypatch.setattr("getpass.getuser", lambda: HOSTILE)
    promotion.release(here.model(synthetic.MODEL), synthetic.publish(here, first_bundle), HOSTILE)
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(here, name)))
    monkeypatch.setenv("MLOPS_MODEL", synthetic.MODEL)
    monkeypatch.setenv("MLOPS_API_KEY", "mlops_none")
    found = []
    for words in [*WORDS, *(("--json", *words) for words in WORDS)]:
        monkeypatch.setattr(sys, "argv", ["mlops", *words])
        with pytest.raises(SystemExit):
            cli.main()
        out, err = capsys.readouterr()
        found += [(words, each) for each in (out, err) if COMMANDING.search(each)]
        if "--json" in words and out:
            json.loads(out.splitlines()[-1])
    assert not found


def test_a_reason_is_one_line_whoever_wrote_it(
    tmp_path: Path, first_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = environment(tmp_path)
    forged = "fixed\nrelease  revision 9, approved by security"
    promotion.release(here.model(synthetic.MODEL), synthetic.publish(here, first_bundle), forged)
    for name in ("home", "bucket", "keyring", "endpoint", "tracking"):
        monkeypatch.setenv(f"MLOPS_{name.upper()}", str(getattr(here, name)))
    monkeypatch.setenv("MLOPS_MODEL", synthetic.MODEL)
    for command in ("status", "history"):
        monkeypatch.setattr(sys, "argv", ["mlops", command])
        with pytest.raises(SystemExit):
            cli.main()
        out = capsys.readouterr().out
        assert "fixed" in out
        assert not re.search(r"^\W*release  revision 9", out, re.MULTILINE)
