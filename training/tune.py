from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import polars as pl
import yaml
from optuna.trial import TrialState

from mlops.contract import Contract
from mlops.environment import Environment
from training import data, estimator, evaluate
from training.recipe import Recipe
from training.validation import validate

_BLOCKS = 4
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def tune(environment: Environment, recipe: Recipe, trials: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Fit on the past, score on the next block, over the training window. Started again, it adds what is missing to
    `trials`; a bad trial ends after its first block. Writes `parameters.yaml` into the model's folder."""
    contract = recipe.contract
    say("load")
    rows = data.canonical(validate(recipe.load(), contract, environment.home / "reports" / contract.model / "quarantine.csv"))
    train = data.cut(rows, contract, contract.windows.train).frame
    blocks = forward_blocks(train, contract)
    storage = environment.home / "tune" / f"{contract.model}.db"
    storage.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"{contract.model}-{data.fingerprint(train)[:16]}-{seed}",
        storage=f"sqlite:///{storage}",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )

    def objective(trial: optuna.Trial) -> float:
        parameters = {
            "learning_rate": round(trial.suggest_float("learning_rate", 0.02, 0.3, log=True), 4),
            "max_iter": trial.suggest_int("max_iter", 50, 400, step=50),
            "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 7, 63),
            "min_samples_leaf": trial.suggest_int("min_samples_leaf", 10, 200, log=True),
            "l2_regularization": round(trial.suggest_float("l2_regularization", 1e-3, 10, log=True), 4),
        }
        trial.set_user_attr("parameters", parameters)
        losses = []
        for position in range(1, _BLOCKS):
            past, following = pl.concat(blocks[:position]), blocks[position]
            pipeline = estimator.fit(recipe.pipeline(contract, parameters, seed), past, contract)
            y = following[contract.target].to_numpy()
            losses.append(
                float(evaluate.loss(contract, y, estimator.score(pipeline, following, contract), evaluate.scale(contract, y)).mean())
            )
            trial.report(float(np.mean(losses)), position)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(losses))

    done = len(study.get_trials(deepcopy=False, states=_FINISHED))
    for number in range(done, trials):
        say(f"trial {number + 1} of {trials}")
        study.optimize(objective, n_trials=1)
    best = study.best_trial.user_attrs["parameters"]
    file = recipe.folder / "parameters.yaml"
    file.write_text(f"# mlops tune: {trials} trials on {contract.windows.train}, forward blocks\n" + yaml.safe_dump(best))
    return {
        "loss": study.best_value,
        "trials": len(study.get_trials(states=_FINISHED)),
        "resumed": done,
        "parameters": best,
        "file": str(file),
    }


def forward_blocks(frame: pl.DataFrame, contract: Contract) -> list[pl.DataFrame]:
    """The rows in four parts, each after the one before it (hash parts where there is no time)."""
    day = data.days(frame, contract)
    edges = np.quantile(np.unique(day), np.linspace(0, 1, _BLOCKS + 1)[1:-1])
    block = np.searchsorted(edges, day, side="left")
    return [frame.filter(pl.Series(block == b)) for b in range(_BLOCKS)]
