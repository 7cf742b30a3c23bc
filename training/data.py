"""The rows of a training: loaded, validated, put in order, fingerprinted, cut into windows."""

import hashlib
import os
from dataclasses import dataclass
from datetime import date, timedelta
from operator import itemgetter

import numpy as np
import polars as pl

from mlops.contract import Contract, Window
from mlops.environment import Environment
from mlops.errors import UserError
from training.definition import ModelDefinition
from training.source import read_snapshot
from training.validation import moments, read_as, typed, validate

_TRAIN_ROWS = 5  # of each class
_HASH_BLOCKS = 50  # stand in for days if there is no time


def prepare(
    environment: Environment, definition: ModelDefinition, fresh: pl.DataFrame | None = None, alone: bool = False
) -> pl.DataFrame:
    """The valid rows of `load()` (or of the snapshot, with MLOPS_DATA=snapshot), in canonical order; from the day on that
    `fresh` begins, those of the prediction log instead, or these `alone`."""
    contract = definition.contract
    if fresh is not None and alone:
        rows = fresh
    elif os.environ.get("MLOPS_DATA", "load") == "load":
        rows = definition.load()
    else:
        rows = read_snapshot(environment.store, contract.model)
    rows = select(rows, contract)
    require_numbers(rows[contract.target])
    if fresh is not None and not alone:
        rows = _continued(rows, fresh, contract)
    rows = validate(rows, contract, environment.home / "reports" / contract.model / "quarantine.csv")
    require_target(rows, contract)
    return canonical(rows)


def _continued(rows: pl.DataFrame, fresh: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    before, after = (read.filter(why.is_null()) for read, why in (typed(frame, contract) for frame in (rows, fresh)))
    if contract.time:
        day = pl.col(contract.time.column).dt.convert_time_zone(contract.zone).dt.date()
        before = before.filter(day < after.select(day.min()).item())
    return pl.concat([before, after], how="diagonal_relaxed")


def newest_windows(rows: pl.DataFrame, contract: Contract) -> tuple[Window, Window] | tuple[None, None]:
    """All days but the newest to train on, and those: as many with rows as the gate needs; the contract's windows without
    a time."""
    if contract.time is None:
        return None, None
    dates = local_dates(rows, contract).unique().sort().to_list()
    start, end = dates[-min(contract.gate.min_days, len(dates))], dates[-1] + timedelta(days=1)
    return Window(start=dates[0], end=start), Window(start=start, end=end)


def canonical(frame: pl.DataFrame) -> pl.DataFrame:
    """The same rows in one order, whatever theirs was; columns by name."""
    frame = frame.select(sorted(frame.columns))
    return frame.sort(frame.columns, nulls_last=True)


def fingerprint(frame: pl.DataFrame) -> str:
    """SHA-256 of the rows; the same for the same rows in another order or file."""
    return hashlib.sha256(canonical(frame).write_csv(float_scientific=None).encode()).hexdigest()


def select(frame: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """The columns that the contract names; whatever else load() returns takes no part."""
    wanted = [*contract.features, contract.target, *contract.entity, *contract.times]
    if missing := [name for name in wanted if name not in frame.columns]:
        returned = ", ".join(sorted(frame.columns))
        raise UserError("data.py", missing[0], f"is in the contract, but load() returns only {returned}")
    if frame.height == 0:
        raise UserError("data.py", contract.model, "load() returns no row")
    wanted += [name for golden in contract.golden for name in (*(golden.where or ()), *(golden.expect or ()))]
    return frame.select(list(dict.fromkeys(name for name in wanted if name in frame.columns)))


def require_numbers(target: pl.Series) -> None:
    values = target.drop_nulls().unique().sort()
    if len(values) and read_as(values, "target").is_null().all():
        hint = f"has the values {values.head(4).to_list()}; make numbers of them in load(): 0 and 1 for two classes"
        raise UserError("target", target.name, hint)


def require_target(frame: pl.DataFrame, contract: Contract) -> None:
    values = frame[contract.target].unique().sort()
    if contract.task == "binary" and not set(values) <= {0.0, 1.0}:
        hint = f"has the values {values.head(4).to_list()}; a binary target is 0 or 1 (false or true)"
        raise UserError("target", contract.target, hint)


def days(frame: pl.DataFrame, contract: Contract) -> np.ndarray:
    """The day of each row in the contract's zone, as days since 1970; hash blocks if there is no time."""
    if contract.time is None:
        return (_hashes(frame, contract) * _HASH_BLOCKS * 1000).astype(np.int64) % _HASH_BLOCKS
    return local_dates(frame, contract).cast(pl.Int32).to_numpy()


def local_dates(frame: pl.DataFrame, contract: Contract) -> pl.Series:
    assert contract.time
    column = moments(frame[contract.time.column], contract.zone)
    if column.null_count():
        hint = f"is {frame[contract.time.column].dtype} in the data; load() must return dates or times"
        raise UserError("time.column", contract.time.column, hint)
    return column.dt.convert_time_zone(contract.zone).dt.date()


def _hashes(frame: pl.DataFrame, contract: Contract) -> np.ndarray:
    """A fraction in [0, 1) for each row, from its content: a row stays on its side of a split."""
    columns = sorted([*contract.features, contract.target])
    rows = frame.select(pl.col(columns).cast(pl.String)).iter_rows()
    # Not Polars' own hash, which may change with its version.
    digests = b"".join(hashlib.blake2b(repr(row).encode(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype=">u8") / 2.0**64


@dataclass(frozen=True)
class Cut:
    """The rows of a window, and the window: its fractions became days if there is a time."""

    frame: pl.DataFrame
    window: Window


def cut(frame: pl.DataFrame, contract: Contract, window: Window) -> Cut:
    if contract.time is None:
        if isinstance(window.start, date):
            raise UserError("window", str(window), "dates need a 'time' in the contract; use fractions")
        part = _hashes(frame, contract)
        rows = frame.filter(pl.Series((part >= window.start) & (part < window.end)))
    else:
        dates = local_dates(frame, contract)
        if not isinstance(window.start, date):
            first, last = dates.min(), dates.max()
            assert isinstance(first, date)
            assert isinstance(last, date)
            assert not isinstance(window.end, date)
            span = (last - first).days + 1
            start, end = (first + timedelta(int(span * fraction)) for fraction in (window.start, window.end))
            window = Window(start=start, end=end)
        rows = frame.filter((dates >= window.start) & (dates < window.end))
    if rows.height == 0:
        raise UserError("window", str(window), "contains no rows")
    return Cut(rows, window)


def overlap(a: Window, b: Window) -> bool:
    return a.start < b.end and b.start < a.end  # ty: ignore[unsupported-operator]


@dataclass(frozen=True)
class Split:
    train: Cut
    holdout: Cut
    fingerprint: str


def split(rows: pl.DataFrame, contract: Contract, train: Window | None = None, holdout: Window | None = None) -> Split:
    """The contract's windows, unless others are given. Raises UserError if they overlap or are empty."""
    first = cut(rows, contract, train or contract.windows.train)
    second = cut(rows, contract, holdout or contract.windows.holdout)
    if overlap(first.window, second.window):
        raise UserError("holdout", str(second.window), f"overlaps the training window {first.window}")
    _require_rows("train", first, contract, _TRAIN_ROWS)
    _require_rows("holdout", second, contract, 1)
    return Split(first, second, fingerprint(pl.concat([first.frame, second.frame])))


def _require_rows(name: str, part: Cut, contract: Contract, least: int) -> None:
    y = part.frame[contract.target].cast(pl.Float64)
    counts = {f"rows with {contract.target} = {value}": int((y == value).sum()) for value in (0, 1)}
    what, count = min((counts if contract.task == "binary" else {"rows": len(y)}).items(), key=itemgetter(1))
    if count < least:
        raise UserError(
            name, str(part.window), f"has {count} {what}, at least {least} are needed; choose another window"
        )
