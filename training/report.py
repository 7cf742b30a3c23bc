import json
import shutil
from pathlib import Path

from mlops.report import image, render
from mlops.verdict import Verdict
from training import evaluation, plots
from training.data import Split
from training.package import Candidate

_TEMPLATE = Path(__file__).parent / "templates" / "gate.html"


def write(folder: Path, candidate: Candidate, split: Split, verdict: Verdict, champion: str, commit: str) -> None:
    """report.json, report.html, plots and the bundle of one training."""
    contract, rows = candidate.model.contract, split.holdout.frame
    importance = evaluation.permutation_importance(contract, candidate.model, rows)
    drawn = plots.draw(contract, rows[contract.target].to_numpy(), candidate.scores, importance, folder / "plots")
    facts = {
        "digest": candidate.digest,
        "champion": champion,
        "train": str(split.train.window),
        "holdout": str(split.holdout.window),
        "fingerprint": split.fingerprint,
        "commit": commit,
    }
    content = {"title": f"{contract.model}: {split.train.window}", "facts": facts, "metrics": candidate.metrics}
    (folder / "report.json").write_text(json.dumps(content | verdict.as_dict(), indent=1, default=str), "utf-8")
    images = {path.stem.replace("_", " "): image(path) for path in drawn}
    (folder / "report.html").write_text(render(_TEMPLATE, verdict=verdict, images=images, **content), "utf-8")
    (folder / "bundle").mkdir()
    candidate.bundle.unpack(folder / "bundle")
    (folder / "bundle" / "manifest.json").write_bytes(candidate.bundle.manifest)


def keep(folder: Path, reports: Path, digest: str) -> Path:
    """Copy the report to where it stays; returns the page."""
    reports.mkdir(parents=True, exist_ok=True)
    for suffix in ("json", "html"):
        shutil.copyfile(folder / f"report.{suffix}", page := reports / f"{digest[:12]}.{suffix}")
    return page
