import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from mlops.contract import Contract
from mlops.verdict import Check, check


def checks(contract: Contract, frame: pl.DataFrame) -> list[Check]:
    """`frame`: the training rows."""
    late, alone = known_too_late(frame, contract), strong(contract, frame)
    why = "; ".join(f"{name} became known after the prediction in {rows} rows" for name, rows in late.items())
    reasons = {name: contract.features[name].strong for name in alone}
    unexplained = [name for name, reason in reasons.items() if not reason]
    found = "; ".join(f"{name} alone has AUC {alone[name]:.2f}" for name in unexplained or alone)
    hint = "is it known at prediction time? If it is, say why in the contract: features.<name>.strong"
    accepted = "" if unexplained else "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    bound = f"≤ {contract.gate.max_single_feature_auc}"
    return [
        check("known_at", not late, ", ".join(late) or "none", "no column", why),
        check("leakage", not alone, max(alone.values(), default=None), bound, f"{found}: {hint}", accepted=accepted),
    ]


def strong(contract: Contract, frame: pl.DataFrame) -> dict[str, float]:
    """The columns that alone predict better than the contract's bound, with their AUC."""
    alone = single_feature_auc(contract, frame)
    return {name: auc for name, auc in alone.items() if auc > contract.gate.max_single_feature_auc}


def known_too_late(frame: pl.DataFrame, contract: Contract) -> dict[str, int]:
    """Features whose value became known after the moment of prediction, with the number of such rows."""
    late: dict[str, int] = {}
    if contract.time is None:
        return late
    moment = pl.col(contract.time.column) - pl.duration(minutes=contract.time.lead_minutes)
    for name, feature in contract.features.items():
        if feature.known_at != "request":
            rows = frame.select((pl.col(name).is_not_null() & (pl.col(feature.known_at) > moment)).sum()).item()
            if rows:
                late[name] = rows
    return late


def single_feature_auc(contract: Contract, frame: pl.DataFrame) -> dict[str, float]:
    """How well each column alone ranks the target (regression: above its median). A category is ranked by the target
    means of one half of the rows, on the other half."""
    target = frame[contract.target].to_numpy().astype(float)
    positive = target > (np.median(target) if contract.task == "regression" else 0.5)
    half = np.arange(frame.height) % 2 == 0
    found = {}
    for name, feature in contract.features.items():
        if feature.type == "category":
            codes = frame[name].fill_null("").rank("dense").to_numpy().astype(np.int64) - 1
            rows = np.bincount(codes[half], minlength=codes.max() + 1)
            hits = np.bincount(codes[half], positive[half], minlength=codes.max() + 1)
            values, answer = ((hits + positive.mean()) / (rows + 1))[codes[~half]], positive[~half]
        else:
            values, answer = frame[name].cast(pl.Float64).to_numpy(), positive
            present = ~np.isnan(values)
            found[name] = _auc(answer, present)  # that a value is there may tell as much as the value
            values, answer = values[present], answer[present]
        found[name] = max(found.get(name, 0.5), _auc(answer, values))
    return found


def _auc(answer: np.ndarray, values: np.ndarray) -> float:
    """0.5 to 1, in whichever direction."""
    if answer.all() or not answer.any():
        return 0.5
    auc = float(roc_auc_score(answer, values))
    return max(auc, 1 - auc)
