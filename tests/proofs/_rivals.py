"""What Evidently and Alibi Detect say by their defaults of the windows in a folder, as JSON. Run by an interpreter that has
both (MLOPS_RIVALS_PYTHON); the repository's own has neither."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from alibi_detect.cd import TabularDrift  # ty: ignore[import-not-found]
from evidently import DataDefinition, Dataset, Report  # ty: ignore[import-not-found]
from evidently.presets import DataDriftPreset  # ty: ignore[import-not-found]


def evidently(
    reference: pd.DataFrame, window: pd.DataFrame, numbers: list[str], categories: list[str]
) -> dict[str, Any]:
    """A column has drifted by the test that the preset chose for it, the data if half of the columns have."""
    columns = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    both = (Dataset.from_pandas(rows, columns) for rows in (window, reference))
    tests = Report([DataDriftPreset()], include_tests=True).run(*both).dict()["tests"]
    failed = [test["name"] for test in tests if test["status"].value == "FAIL"]
    return {
        "dataset": any("Share of Drifted Columns" in name for name in failed),
        "columns": [name.split()[-1] for name in failed if name.startswith("Value Drift for column")],
    }


def alibi(reference: pd.DataFrame, window: pd.DataFrame, numbers: list[str], categories: list[str]) -> dict[str, Any]:
    """Kolmogorov-Smirnov and chi-square at 5 %; the data have drifted if one column has after Bonferroni. It takes no missing
    values: here they are the median of the reference, and a level of their own."""
    known, new = {}, {}
    for name in numbers:
        known[name], new[name] = (rows[name].fillna(reference[name].median()) for rows in (reference, window))
    for name in categories:
        codes = pd.factorize(pd.concat([reference[name], window[name]]).fillna("missing"))[0]
        known[name], new[name] = codes[: len(reference)], codes[len(reference) :]
    own, theirs = (np.column_stack([rows[name] for name in (*numbers, *categories)]) for rows in (new, known))
    places = range(len(numbers), len(numbers) + len(categories))
    detector = TabularDrift(theirs.astype(float), categories_per_feature=dict.fromkeys(places) or None)
    whole, by_column = (detector.predict(own.astype(float), drift_type=kind)["data"] for kind in ("batch", "feature"))
    drifted = np.flatnonzero(by_column["is_drift"])
    return {"dataset": bool(whole["is_drift"]), "columns": [(*numbers, *categories)[place] for place in drifted]}


def _read(file: Path, task: dict[str, Any]) -> pd.DataFrame:
    kinds = dict.fromkeys(task["numbers"], float) | dict.fromkeys(task["categories"], str)
    return pd.read_csv(file, dtype=kinds, keep_default_na=False, na_values=[""])


def main(folder: Path) -> None:
    """`rows.csv` are the training's, of which a window's reference are all but those of the days `without`."""
    warnings.filterwarnings("ignore")
    task = json.loads((folder / "task.json").read_text())
    rows, found = _read(folder / "rows.csv", task), []
    for each in task["windows"]:
        reference = rows[~rows["day"].isin(each["without"])]
        given = reference, _read(folder / each["file"], task), task["numbers"], task["categories"]
        found.append({"evidently": evidently(*given), "alibi detect": alibi(*given)})
    versions = {"evidently": version("evidently"), "alibi detect": version("alibi-detect")}
    (folder / "said.json").write_text(json.dumps({"versions": versions, "windows": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
