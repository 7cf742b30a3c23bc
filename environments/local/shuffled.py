"""The data.py of the demo's worse model: it learns from shuffled labels; those of the held-out window stay true."""

import os
from pathlib import Path

import polars as pl

from mlops.contract import Window
from training import data
from training.definition import load_definition


def load() -> pl.DataFrame:
    folder = Path(os.environ["DEMO_ORIGINAL"])
    original = load_definition(folder.name, folder)
    rows, target = original.load().with_row_index("position"), original.contract.target
    window = Window.parse(os.environ["DEMO_HOLDOUT"])
    held_out = data.cut(rows, original.contract, window).frame["position"]
    true = pl.col("position").is_in(held_out.implode())
    label = pl.when(true).then(pl.col(target)).otherwise(pl.col(target).shuffle(seed=1))
    return rows.with_columns(label.alias(target)).drop("position")
