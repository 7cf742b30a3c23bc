"""2,000 tables as Hypothesis makes them (types, missing values, constants, 0 to 50 rows, one class, infinities, nested):
init and the first fit work, or say what is in the way."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops import environment
from mlops.environment import Environment
from mlops.errors import UserError
from training import data, pipeline
from training.definition import load_definition
from training.scaffold import Scaffold

TABLES = 2000
_FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, 1e39, -0.0])
_CELLS: dict[str, st.SearchStrategy[Any]] = {
    "float": _FLOATS, "int": st.integers(-(2**62), 2**62), "small": st.integers(0, 3), "bit": st.integers(0, 1),
    "bool": st.booleans(), "text": st.text(max_size=250), "word": st.sampled_from(["yes", "no"]),
    "code": st.sampled_from(["01", "02", "1.50", "1E3", "True", "2024-01-05", " x", ""]), "date": st.dates(), "time": st.datetimes(),
    "list": st.lists(st.integers(0, 3), max_size=2), "bytes": st.binary(max_size=3), "constant": st.just("same"), "null": st.none(),
}  # fmt: skip
_NAMES = st.text(min_size=0, max_size=12) | st.sampled_from(
    ["class", "No", "label", "count", "score", "index", "a b", "a_b"]
)


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    """With a target `y` in its first column."""
    height, width = draw(st.sampled_from([0, 1, 2, 4, 12, 25, 50])), draw(st.integers(0, 4))
    names = ["y", *draw(st.lists(_NAMES.filter(lambda name: name != "y"), min_size=width, max_size=width, unique=True))]
    kinds = [
        draw(st.sampled_from(["bit", "word", "small", "float"] * 6 + [*_CELLS])),
        *(draw(st.sampled_from([*_CELLS])) for _ in range(width)),
    ]
    columns = []
    for name, kind in zip(names, kinds, strict=True):
        cell = _CELLS[kind] if draw(st.booleans()) else st.none() | _CELLS[kind]
        columns.append(pl.Series(name, draw(st.lists(cell, min_size=height, max_size=height)), strict=False))
    table = pl.DataFrame(columns)
    return pl.concat([table] * 8) if draw(st.booleans()) else table


def outcome(table: pl.DataFrame, folder: Path) -> str:
    """`fitted` or `explained`; any other end is an exception. `environment.MODELS` is the caller's."""
    plain = not any(kind.is_nested() or kind == pl.Binary for kind in table.dtypes)
    file = folder / ("table.csv" if plain and table.height % 2 else "table.parquet")
    table.write_csv(file) if file.suffix == ".csv" else table.write_parquet(file)
    here = Environment(name="local", home=folder, bucket=str(folder), keyring=folder / "k", endpoint="", tracking="")
    try:
        name = f"t{len(list(environment.MODELS.iterdir()))}"
        made = load_definition(Scaffold("y", name=name, strong="it is a test").write(file)[0].parent.name)
        pipeline.smoke(made, data.prepare(here, made), 0)
    except UserError:
        return "explained"
    return "fitted"


def prove(folder: Path) -> dict[str, Any]:
    ends: Counter[str] = Counter()

    @settings(max_examples=TABLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(tables())
    def run(table: pl.DataFrame) -> None:
        ends["unexpected"] += 1  # unless it ends otherwise
        with TemporaryDirectory(dir=folder) as place:
            ends[outcome(table, Path(place))] += 1
        ends["unexpected"] -= 1

    reason, before = "", environment.MODELS
    environment.MODELS = folder / "models"
    environment.MODELS.mkdir()
    try:
        run()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:500]
    finally:
        environment.MODELS = before
    enough = ends["fitted"] > TABLES // 50
    return {
        "holds": not ends["unexpected"] and enough,
        "tables": ends["fitted"] + ends["explained"],
        **ends,
        "reason": reason,
    }
