from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import polars as pl
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from mlops.contract import Contract
from mlops.environment import Environment
from training import data, estimator, evaluation
from training.definition import ModelDefinition

_BLOCKS = 4
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def tune(
    environment: Environment, definition: ModelDefinition, trials: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Fit on the past, score on the next block, over the training window. Started again, it adds what is missing to
    `trials`; a bad trial ends after its first block. Writes `parameters.yaml` into the model's folder."""
    contract, kind = definition.contract, definition.parameters.get("estimator", "boosting")
    say("load and validate")
    train = data.cut(data.prepare(environment, definition), contract, contract.windows.train).frame
    study = _study(environment, f"{contract.model}-{kind}-{data.fingerprint(train)[:16]}-{seed}", contract.model, seed)
    blocks = forward_blocks(train, contract)

    def objective(trial: optuna.Trial) -> float:
        parameters = _suggest(trial, kind)
        trial.set_user_attr("parameters", parameters)
        losses = []
        for position in range(1, _BLOCKS):
            past, following = pl.concat(blocks[:position]), blocks[position]
            pipeline = estimator.fit(definition.pipeline(contract, parameters, seed), past, contract)
            y, scores = following[contract.target].to_numpy(), estimator.score(pipeline, following, contract)
            losses.append(float(evaluation.loss(contract, y, scores, evaluation.scale(contract, y)).mean()))
            trial.report(float(np.mean(losses)), position)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(losses))

    done = len(study.get_trials(deepcopy=False, states=_FINISHED))
    for number in range(done, trials):
        say(f"trial {number + 1} of {trials}")
        study.optimize(objective, n_trials=1)
    best = study.best_trial.user_attrs["parameters"]
    file = definition.folder / "parameters.yaml"
    about = f"# mlops tune: {trials} trials on {contract.windows.train}, forward blocks\n"
    file.write_text(about + yaml.safe_dump(best), "utf-8")
    finished = len(study.get_trials(states=_FINISHED))
    return {"loss": study.best_value, "trials": finished, "resumed": done, "parameters": best, "file": str(file)}


def _study(environment: Environment, name: str, model: str, seed: int) -> optuna.Study:
    """Kept in a journal file, which several processes may open at once."""
    file = environment.home / "tune" / f"{model}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(file))),
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )


def _suggest(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    if kind == "linear":
        strength = trial.suggest_float("regularization", 1e-3, 1e3, log=True)
        return {"estimator": kind, "regularization": round(strength, 4)}
    return {
        "learning_rate": round(trial.suggest_float("learning_rate", 0.02, 0.3, log=True), 4),
        "max_iter": trial.suggest_int("max_iter", 50, 400, step=50),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 7, 63),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 10, 200, log=True),
        "l2_regularization": round(trial.suggest_float("l2_regularization", 1e-3, 10, log=True), 4),
    }


def forward_blocks(frame: pl.DataFrame, contract: Contract) -> list[pl.DataFrame]:
    """The rows in four parts, each after the one before it (hash parts if there is no time)."""
    day = data.days(frame, contract)
    edges = np.quantile(np.unique(day), np.linspace(0, 1, _BLOCKS + 1)[1:-1])
    block = np.searchsorted(edges, day, side="left")
    return [frame.filter(pl.Series(block == b)) for b in range(_BLOCKS)]
