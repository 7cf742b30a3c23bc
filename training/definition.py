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
from mlops.errors import UserError
from training import estimator, features


@dataclass(frozen=True)
class ModelDefinition:
    """A model's folder: `contract.yaml` and `data.py` (`load()`); optionally `features.py` (`preprocess(contract)`, or
    `pipeline(contract, parameters, seed)` for another estimator) and `parameters.yaml`."""

    folder: Path
    contract: Contract
    load: Callable[[], pl.DataFrame]
    pipeline: Callable[[Contract, dict[str, Any], int], Pipeline]
    parameters: dict[str, Any] = field(default_factory=dict)


def load_definition(name: str, folder: Path | None = None) -> ModelDefinition:
    folder = folder or environment.MODELS / name
    if not folder.is_dir():
        raise UserError("model", name, f"there is no folder {folder}; create it: mlops init DATA --target COLUMN")
    contract = load_contract(folder / "contract.yaml")
    own = _module(folder / "features.py") if (folder / "features.py").exists() else None
    preprocess = getattr(own, "preprocess", features.preprocess)
    return ModelDefinition(
        folder=folder,
        contract=contract,
        load=_module(folder / "data.py").load,
        pipeline=getattr(own, "pipeline", partial(estimator.build, preprocess=preprocess)),
        parameters=read_parameters(folder / "parameters.yaml"),
    )


def read_parameters(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text("utf-8")) or {}) if path.exists() else {}


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise UserError("model", str(path), "is missing; it defines load()")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
