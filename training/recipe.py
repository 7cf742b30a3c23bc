from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import yaml
from sklearn.pipeline import Pipeline

from mlops import environment
from mlops.contract import Contract, load_contract
from mlops.errors import Fault
from training import estimator, features


@dataclass(frozen=True)
class Recipe:
    """A model's folder: `contract.yaml` and `data.py` (`load()`). Where the defaults do not do: `features.py`
    (`preprocess(contract)`, or `pipeline(contract, parameters, seed)` for another estimator) and `parameters.yaml`."""

    folder: Path
    contract: Contract
    load: Callable[[], pl.DataFrame]
    pipeline: Callable[[Contract, dict[str, Any], int], Pipeline]
    parameters: dict[str, Any] = field(default_factory=dict)


def recipe(name: str, folder: Path | None = None) -> Recipe:
    folder = folder or environment.MODELS / name
    if not folder.is_dir():
        raise Fault("model", name, f"there is no folder {folder}; draft it: mlops init DATA --target COLUMN")
    contract = load_contract(folder / "contract.yaml")
    own = _module(folder / "features.py") if (folder / "features.py").exists() else None
    preprocess = getattr(own, "preprocess", features.preprocess)
    return Recipe(
        folder=folder,
        contract=contract,
        load=_module(folder / "data.py").load,
        pipeline=getattr(own, "pipeline", partial(estimator.build, preprocess=preprocess)),
        parameters=read_parameters(folder / "parameters.yaml"),
    )


def read_parameters(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise Fault("model", str(path), "is missing; it says how the data is loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
