"""A first model from a table: what the data shows is decided and said, what it cannot show is asked for."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from sklearn.model_selection import KFold, StratifiedKFold

from mlops import environment
from mlops.contract import Contract
from mlops.errors import UserError
from mlops.report import render
from mlops.rows import MAX_TEXT
from training import data, estimator, evaluation, features, leakage, source
from training.validation import good_and_bad, read_as

_MANY_LEVELS = 0.5
_SMALL = 20_000
_LINE = 120
_LONGEST_MODEL = 41
_FOLDS = 5
_FEW_VALUES = 20
_FEW_NUMBERS = 20  # as many different whole numbers may be classes
_NUMBERED = r"^\s*[+-]?0\d"  # a code with leading zeros
_OTHERWISE = {
    "numbers": r"^\s*[$€£¥]\s?-?\d[\d., ]*$|^\s*-?\d[\d., ]*\s?[$€£¥%]\s*$|^-?\d{1,3}(,\d{3})+(\.\d+)?$"
    r"|^-?\d{1,3}(\.?\d{3})*,\d+$",
    "dates": r"^\s*\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}|^\s*\d{4}[/.]\d{1,2}[/.]\d{1,2}",
}
_MOST = 0.9
_MOST_LEVELS = 1000  # of a category: each is an input of the model
_DATA_PY = Path(__file__).parent / "templates" / "data.py.j2"


@dataclass
class Scaffold:
    """`positive`: the value of the target that is 1; `strong`: why columns that predict very well alone may be used."""

    target: str
    name: str | None = None
    time: str | None = None
    positive: str | None = None
    strong: str = ""
    drop: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> list[Path]:
        """contract.yaml, data.py and parameters.yaml of a new model: all of them or, after an error, none."""
        table = source.read(str(path))
        self.target, self.drop = source.snake_case(self.target), [source.snake_case(each) for each in self.drop]
        self.time = source.snake_case(self.time) if self.time else None
        named = [
            ("target", self.target),
            *((("time", self.time),) if self.time else ()),
            *(("drop", x) for x in self.drop),
        ]
        for what, column in named:
            if column not in table.columns:
                raise UserError(what, column, f"is not a column; there are {', '.join(table.columns)}")
        model = _model_name(self.name or path.name.partition(".")[0])
        folder = environment.MODELS / model
        if folder.exists():
            raise UserError("name", model, f"{folder} exists; choose another with --name")
        steps, rows = self._labelled(table)
        contract = self._contract(model, rows)
        parsed = Contract.model_validate(contract)
        good, bad = good_and_bad(data.select(rows, parsed), parsed)
        if bad.height:
            found = f"{bad.height} of {rows.height} rows are not as the others (the first: {bad.row(0)[1]})"
            if bad.height > parsed.quarantine_limit * rows.height:
                raise UserError("data", str(path), f"{found}; write them alike in the file, or --drop the column")
            self.notes.append(f"{found} and will be quarantined")
        train = data.split(data.canonical(good), parsed).train.frame
        self._strong(contract, train, parsed)
        choice = f"# boosting or linear: the better one in cross-validation of {path.name}\nestimator: "
        files = {
            "contract.yaml": _contract_yaml(contract, self.notes),
            "data.py": _data_py(path, steps),
            "parameters.yaml": f"{choice}{_better(parsed, train)}\n",
        }
        return _write(folder, files)

    def _labelled(self, table: pl.DataFrame) -> tuple[list[str], pl.DataFrame]:
        """The steps of load() after read(), and their rows."""
        known, column = [self.target, *([self.time] if self.time else [])], f"pl.col({_quoted(self.target)})"
        rows, steps = table.drop_nulls(known), []
        if rows.height < table.height:
            steps.append(f".drop_nulls([{', '.join(map(_quoted, known))}])")
        if (kind := rows[self.target].dtype).is_nested() or kind in (pl.Binary, pl.Object):
            raise UserError("target", self.target, f"is {kind}; a target is a number, or words")
        values = rows[self.target].unique().sort()
        if len(values) < 2:
            raise UserError("target", self.target, "has only one value: there is nothing to learn")
        numbers, words = read_as(values, "target"), read_as(values, "category")
        if self.positive is None and set(numbers) == {0.0, 1.0}:
            return steps, rows
        if self.positive is None and len(values) > 2:
            if numbers.null_count():
                hint = (
                    f"has {len(values)} classes ({', '.join(words[:4])}, …); two are supported: name the one that is 1"
                )
                raise UserError("target", self.target, f"{hint} with --positive, and train a model a class")
            whole = len(values) <= _FEW_NUMBERS and (numbers == numbers.round()).all()
            classes = "; if they are classes, name the one that is 1 with --positive" if whole else ""
            self.notes.append(f"{self.target} has {len(values)} different numbers, so the task is regression{classes}")
            return steps, rows
        positive = str(words[-1]) if self.positive is None else self.positive
        if positive not in words:
            raise UserError("positive", positive, f"is no value of {self.target}; there are {', '.join(words[:20])}")
        self.notes.append(f"{self.target} is 1 where the table says {positive!r} (another with --positive)")
        steps.append(f".with_columns(({column}.cast(pl.String) == {_quoted(positive)}).alias({_quoted(self.target)}))")
        return steps, rows.with_columns(pl.col(self.target).cast(pl.String) == positive)

    def _contract(self, model: str, rows: pl.DataFrame) -> dict[str, Any]:
        columns, left_out = {}, []
        for given in rows.drop(self.target, *self.drop, *([self.time] if self.time else [])):
            column = _inferred(given)
            if why := _left_out(column):
                left_out.append(f"{column.name} ({why})")
                continue
            kind = "boolean" if column.dtype == pl.Boolean else "number" if column.dtype.is_numeric() else "category"
            columns[column.name] = {"type": kind} | ({"missing": True} if column.null_count() else {})
        if not columns:
            raise UserError(
                "data", model, f"has no column to predict from; left out: {', '.join(left_out) or 'nothing'}"
            )
        self.notes += [f"left out: {', '.join(left_out)}"] if left_out else []
        binary = set(read_as(rows[self.target], "target").drop_nulls()) == {0.0, 1.0}
        contract: dict[str, Any] = {"model": model, "task": "binary" if binary else "regression"}
        contract |= {"question": f"What is {self.target}?", "target": self.target}
        contract |= {"time": {"column": self.time}} if self.time else {}
        return contract | {"windows": {"train": "0.0..0.7", "holdout": "0.7..1.0"}, "features": columns}

    def _strong(self, contract: dict[str, Any], train: pl.DataFrame, parsed: Contract) -> None:
        found = leakage.strong(parsed, train)
        if found and not self.strong:
            named = [f"{name} ({auc:.2f})" for name, auc in sorted(found.items(), key=itemgetter(1), reverse=True)]
            more = [f"{len(named) - 5} more"] if len(named) > 5 else []
            hint = "predict so well alone (AUC) that they may be known only after the prediction: leave those out with "
            hint += "--drop COLUMN (may be repeated), and say why the others are no leak: --strong '…'"
            raise UserError("columns", ", ".join(named[:5] + more), hint)
        for name in found:
            contract["features"][name]["strong"] = self.strong


def _model_name(text: str) -> str:
    model = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:_LONGEST_MODEL]
    if not model[:1].isalpha():
        raise UserError("name", model, "a model's name begins with a letter (a to z); choose one with --name")
    return model


def _inferred(column: pl.Series) -> pl.Series:
    """A text column with the type that all of its values have."""
    if column.dtype != pl.String:
        return column.fill_nan(None) if column.dtype.is_float() else column
    for kind in ("number", "moment", "boolean"):
        read = read_as(column, kind)
        coded = kind == "number" and column.str.contains(_NUMBERED).any()
        if read.null_count() == column.null_count() and not coded:
            return read
    return column


def _left_out(column: pl.Series) -> str:
    """Why a column is no feature, or ''."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        return str(column.dtype)
    if column.dtype.is_temporal():
        return f"a time; if it is the event's: --time {column.name}"
    distinct, present = column.drop_nulls().n_unique(), len(column) - column.null_count()
    if distinct < 2:
        return "only one value"
    if present < _FEW_VALUES:
        return f"only {present} values"
    if column.dtype == pl.String:
        if column.str.len_chars().max() > MAX_TEXT:  # ty: ignore[unsupported-operator]
            return f"longer than {MAX_TEXT} characters"
        for kind, pattern in _OTHERWISE.items():
            if column.str.contains(pattern).mean() > _MOST:  # ty: ignore[unsupported-operator]
                return f"{kind} written as {column.drop_nulls()[0]!r}: read them in load()"
        if distinct > _MANY_LEVELS * len(column):
            return "almost unique"
        known = f"{distinct} values; if it names who or what a row is about: entity: [{column.name}]"
        return known if distinct > _MOST_LEVELS else ""
    if column.dtype.is_numeric() and distinct == len(column) and (column == column.round()).all():
        numbered = column.max() - column.min() == len(column) - 1  # ty: ignore[unsupported-operator]
        return "row number" if numbered or re.search(r"(^|_)id$", column.name) else ""
    return ""


def _contract_yaml(contract: dict[str, Any], notes: list[str]) -> str:
    """A feature a line, below the decisions made."""
    lines = ["# Read every line: the model's interface, and the bounds it must meet (docs/contract.md).\n"]
    lines += [f"# {' '.join(note.split())}\n" for note in notes]
    parts = {name: value for name, value in contract.items() if name != "features"}
    lines += [yaml.safe_dump(parts, sort_keys=False, width=120, allow_unicode=True), "features:\n"]
    for each in contract["features"].items():
        flow = yaml.safe_dump(dict([each]), sort_keys=False, default_flow_style=True, width=10_000, allow_unicode=True)
        lines.append(f"  {flow.strip()[1:-1]}\n")
    return "".join(lines)


def _data_py(path: Path, steps: list[str]) -> str:
    steps = ["read(DATA)", *steps]
    expression = "".join(steps)
    if len(expression) > _LINE - len("    return "):
        expression = "\n        ".join(["(", *steps]) + "\n    )"
    return render(_DATA_PY, path=_quoted(str(path.absolute())), expression=expression) + "\n"


def _quoted(text: str) -> str:
    """As a formatter would have it."""
    return repr(text) if '"' in text or not text.isprintable() else json.dumps(text, ensure_ascii=False)


def _better(contract: Contract, rows: pl.DataFrame) -> str:
    """Small tables are often better served by a linear model: boosting must win by more than chance."""
    rows = rows.sample(min(rows.height, _SMALL), seed=0, shuffle=True)
    y, losses = rows[contract.target].to_numpy(), {}
    folds = StratifiedKFold(_FOLDS) if contract.task == "binary" else KFold(_FOLDS)
    for kind in ("boosting", "linear"):
        scores = np.empty(len(y))
        for most, rest in folds.split(y, y):
            unfitted = estimator.build(contract, {"estimator": kind}, 0, features.preprocess)
            scores[rest] = estimator.score(estimator.fit(unfitted, rows[most], contract), rows[rest], contract)
        losses[kind] = evaluation.loss(contract, y, scores)
    gain = losses["linear"] - losses["boosting"]
    return "boosting" if gain.mean() > gain.std() / len(gain) ** 0.5 else "linear"


def _write(folder: Path, files: dict[str, str]) -> list[Path]:
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        for file, content in files.items():
            (unfinished / file).write_text(content, encoding="utf-8")
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError("name", folder.name, f"cannot be written to {folder.parent}: {error.strerror}") from None
    return [folder / file for file in files]
