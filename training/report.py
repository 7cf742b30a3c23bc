import json
import shutil
from pathlib import Path

from mlops.registered_model import RegisteredModel
from mlops.report import image, render
from mlops.verdict import Verdict
from training import cards, evaluation, intervals, plots
from training.data import Split
from training.gate import Evidence, Resampling
from training.package import Candidate

_TEMPLATE = Path(__file__).parent / "templates" / "gate.html"
_KEPT = ("report.html", "card.html", "data.html", "report.json")


def write(
    folder: Path, candidate: Candidate, split: Split, evidence: Evidence, verdict: Verdict,
    lineage: dict[str, str], quarantine: Path,
) -> None:  # fmt: skip
    """The gate's report, both cards, plots and the bundle of one training. `lineage`: run, commit, champion."""
    contract, rows, y = candidate.model.contract, split.holdout.frame, evidence.y
    weights, origin = Resampling(evidence.day), candidate.bundle.json("provenance.json")
    bounds = intervals.of_metrics(contract, y, evidence.score, weights)
    facts = {
        "title": f"{contract.model}: {split.train.window}",
        "facts": {"digest": candidate.digest, **origin["windows"], **origin["data"], **lineage},
        "parameters": candidate.parameters,
        "metrics": candidate.metrics,
        "intervals": {name: (low, high) for name, (low, _, high) in bounds.items()},
        "champion": evaluation.summary(contract, y, evidence.champion) if evidence.champion is not None else {},
    }
    (folder / "report.json").write_text(json.dumps(facts | verdict.as_dict(), indent=1, default=str), "utf-8")
    importance = evaluation.permutation_importance(contract, candidate.model, rows)
    drawn = plots.draw(contract, evidence, importance, folder / "plots")
    shown = facts | {"verdict": verdict, "days": weights.days}
    groups = intervals.of_groups(contract, evidence, weights)
    pages = {
        "report.html": render(_TEMPLATE, images={path.stem.replace("_", " "): image(path) for path in drawn}, **shown),
        "card.html": cards.model_card(contract, evidence, groups, origin=origin, **shown),
        "data.html": cards.data_card(contract, split, quarantine, **shown),
    }
    for name, page in pages.items():
        (folder / name).write_text(page, "utf-8")
    (folder / "bundle").mkdir()
    candidate.bundle.unpack(folder / "bundle")
    (folder / "bundle" / "manifest.json").write_bytes(candidate.bundle.manifest)


def keep(folder: Path, here: Path, model: RegisteredModel, digest: str) -> Path:
    """Copy the pages to where they stay, on this machine and in the bucket; returns the report."""
    here.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        shutil.copyfile(folder / name, here / name)
        model.store.put(f"{model.folder}/reports/{digest}/{name}", folder / name)
    return here / "report.html"
