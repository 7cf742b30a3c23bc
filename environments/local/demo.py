"""`make demo`: the whole life of a model on this machine, each step proved. Exit code 0 only if every step passed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from environments.local.platform import Platform
from environments.local.timeline import timeline
from environments.local.traffic import Answer, Traffic, wait
from mlops import bundle as bundles
from mlops import environment
from mlops.attestations import attest
from mlops.bundle import Bundle
from mlops.client import http
from mlops.environment import ROOT, Environment
from mlops.errors import UserError
from mlops.releases import Release, serving
from mlops.report import image, render
from mlops.terminal import Terminal

# Fractions of the data's time, to work for any model: of a year these are January to March, January to May, and June.
FIRST, LONGER, HOLDOUT = "0..0.247", "0..0.414", "0.414..0.496"
_DATA_SECONDS = 21_600  # of the replay in one second: a month in two minutes
_HERE = Path(__file__).parent
console = Terminal(highlight=False)


@dataclass
class Step:
    title: str
    facts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


class Demo:
    """The steps that follow share what the platform does: commands, traffic, the release log."""

    def __init__(self, platform: Platform):
        self.platform, self.environment = platform, platform.environment
        self.model = self.environment.model(platform.model)
        self.steps: list[Step] = []
        self.answers: list[Answer] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Generator[Step]:
        step, started = Step(title), time.monotonic()
        self.steps.append(step)
        with console.status(title):
            try:
                yield step
            except Exception as error:
                step.error = str(error) or type(error).__name__
                raise
            finally:
                step.seconds = time.monotonic() - started
                mark = "[red]✗[/]" if step.error else "[green]✓[/]"
                facts = [f"\n    {fact}" for fact in step.facts]
                console.print(f"{mark} {title} [dim]{step.seconds:.1f} s[/]", *facts, sep="")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cli", "--json", "--model", self.model.name, *words]

    def mlops(self, *words: str, code: int = 0, **variables: str) -> dict[str, Any]:
        """The command as a user types it; its answer as JSON. Any other exit code than `code` fails the step."""
        log = self.platform.log("commands")
        run = subprocess.run(self.command(*words), cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ mlops {' '.join(words)}\n{run.stdout}{run.stderr}\n")
        if run.returncode != code:
            hint = f"expected {code}; {run.stderr.strip()[-600:]}; see {log}"
            raise UserError(f"mlops {words[0]}", f"exit code {run.returncode}", hint)
        return json.loads(run.stdout.splitlines()[0])

    def train(self, window: str, code: int = 0, **variables: str) -> dict[str, Any]:
        return self.mlops("train", "--train", window, "--holdout", HOLDOUT, code=code, **variables)

    def traffic(self, rows: list[dict[str, Any]]) -> Traffic:
        return Traffic(self.environment, rows, answers=self.answers)

    @contextlib.contextmanager
    def replayed(self) -> Generator[None]:
        """The held-out weeks as live traffic, an hour a request, over and over while the block lasts."""
        command = self.command("replay", "--window", HOLDOUT, "--every", "3600", "--speed", str(_DATA_SECONDS))
        stop = threading.Event()

        def play() -> None:
            with self.platform.log("replay").open("ab") as log:
                while not stop.is_set():
                    player = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
                    while player.poll() is None and not stop.wait(0.1):
                        continue
                    player.kill()
                    player.wait()

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def serving(self) -> Release:
        release = self.model.releases.current()
        assert release
        return release

    def rollout_of(self, digest: str) -> list[str]:
        """When each of its records was written, and why it ended."""
        log = self.model.releases.read()
        own = [position for position, release in enumerate(log) if release.challenger == digest]
        records = log[own[0] : own[-1] + 2]
        weights = ("" if each.weight is None else f" {each.weight:.0%}" for each in records)
        seconds = ((each.at - records[0].at).total_seconds() for each in records)
        steps = [f"{r.mode}{weight} after {at:.0f} s" for r, weight, at in zip(records, weights, seconds, strict=True)]
        return [", ".join(steps), records[-1].why]

    def none_failed(self, traffic: Traffic) -> str:
        failed = [answer.error for answer in traffic.answers if answer.error]
        expect(not failed, f"{len(failed)} requests failed, the first with {failed[:1]}")
        return f"{len(traffic.answers)} requests so far, none failed"

    def refused(self) -> float:
        text = http(self.environment.endpoint).get("/metrics").text
        return sum(map(float, re.findall(r"^mlops_release_refused_total\S* (\S+)$", text, re.MULTILINE)))


def run(demo: Demo) -> None:
    with demo.step("The platform is up, and waits for a model") as step:
        ready = http(demo.environment.endpoint).get("/readyz").json()
        expect(ready == {"ready": True, "reason": "no model released"}, f"/readyz said {ready}")
        demo.platform.wait_for_tracking()
        step.facts.append(f"predictions {demo.environment.endpoint}, MLflow {demo.environment.tracking}")
    first, rows = first_model(demo)
    worse = worse_model(demo)
    better = better_model(demo, first, rows)
    harmful_model(demo, worse, better["digest"], rows)
    corrupted_bundle(demo, better["digest"], rows)
    back(demo, better["digest"], first["digest"], rows)
    renewed_model(demo, rows)
    with demo.step("Which model answered at a given time? Release log and prediction log agree") as step:
        time.sleep(11)  # a segment of the prediction log closes after ten seconds
        step.facts += [answered(demo, answer) for answer in moments(demo, better["digest"])]
    with demo.step("The same training again gives the same bundle, bit for bit") as step:
        again = demo.train(FIRST)
        expect(again["digest"] == first["digest"], f"{again['digest']} is not {first['digest']}")
        step.facts.append(again["digest"])


def first_model(demo: Demo) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with demo.step("A first model is trained, passes the gate, is signed and registered") as step:
        first = demo.train(FIRST)
        loss, digest = first["metrics"]["loss"], first["digest"]
        step.facts.append(f"{digest[:12]}: held-out loss {loss:.4f}, version {first['version']} in MLflow")
    with demo.step("It is released, and answers without a restart") as step:
        demo.mlops("release", digest, "--why", "demo: the first model")
        rows = bundles.read(demo.model, digest).json("golden.json")["rows"]
        with demo.traffic(rows) as traffic:
            step.facts.append(f"first answer {traffic.wait_for(digest):.1f} s after the command")
        # Before a first model this answer is right; any other failure counts.
        demo.answers[:] = [answer for answer in demo.answers if "no model released" not in answer.error]
    with demo.step("Live traffic, and its outcomes") as step:
        played = demo.mlops("replay", "--window", HOLDOUT, "--limit", "1000")
        expect(played["failed"] == 0, f"{played['failed']} requests failed: {played['error']}")
        wait(lambda: demo.mlops("outcomes")["matched"] >= played["outcomes"], "not every outcome met its prediction", 2)
        step.facts.append(f"{played['requests']} requests, {played['outcomes']} outcomes met their prediction")
    return first, rows


def worse_model(demo: Demo) -> str:
    with demo.step("A worse model (shuffled labels) is refused") as step:
        models, original = demo.environment.home / "worse", environment.MODELS / demo.model.name
        folder = shutil.copytree(original, models / demo.model.name, dirs_exist_ok=True)
        shutil.copyfile(_HERE / "shuffled.py", folder / "data.py")
        variables = {"MLOPS_MODELS": str(models), "DEMO_ORIGINAL": str(original), "DEMO_HOLDOUT": HOLDOUT}
        worse = demo.train(FIRST, code=3, **variables)
        expect(worse["gate"] == "refused" and worse["reasons"] != [], "the gate let it pass")
        hint = demo.mlops("release", worse["digest"], code=2)["error"]["hint"]
        step.facts += [*worse["reasons"][:4], f"and it cannot be released: {hint[:90]}…"]
        return worse["digest"]


def better_model(demo: Demo, first: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    with demo.step("A model trained on more data is rolled out in steps, and promoted on live evidence") as step:
        better = demo.train(LONGER)
        digest, loss, before = better["digest"], better["metrics"]["loss"], first["metrics"]["loss"]
        step.facts.append(f"{digest[:12]}: held-out loss {loss:.4f}, the first had {before:.4f}")
        expect(loss < before, "it is not better")
        with demo.traffic(rows) as traffic, demo.replayed():
            demo.mlops("release", digest, "--mode", "shadow", "--why", "demo: more data")
            wait(lambda: demo.serving().champion == digest, "it was not promoted")
            traffic.wait_for(digest)
            time.sleep(5)  # it alone answers, so that this can be found in the log
        step.facts += [*demo.rollout_of(digest), demo.none_failed(traffic)]
        return better


def harmful_model(demo: Demo, worse: str, better: str, rows: list[dict[str, Any]]) -> None:
    with demo.step("The refused model, forced in front of callers, is aborted by the judge") as step:
        attest(demo.model, "gate", worse, verdict="passed")
        with demo.traffic(rows) as traffic, demo.replayed():
            demo.mlops("release", worse, "--mode", "canary", "--weight", "0.25", "--why", "demo: forced")
            wait(lambda: not demo.serving().in_rollout, "it was not aborted")
            expect(demo.serving().champion == better, "the champion changed")
            traffic.wait_for(better)
        step.facts += [*demo.rollout_of(worse), demo.none_failed(traffic)]


def corrupted_bundle(demo: Demo, better: str, rows: list[dict[str, Any]]) -> None:
    with demo.step("A corrupted bundle is refused, the model before it keeps answering") as step:
        before = demo.refused()
        with demo.traffic(rows) as traffic:
            started = time.time()
            release_corrupted(demo, better)
            wait(lambda: demo.refused() > before, "the app did not refuse it")
            time.sleep(3)
        versions = {answer.model_version for answer in traffic.answers if answer.at > started}
        expect(versions == {better}, f"answers came from {versions}")
        step.facts.append(f"{demo.none_failed(traffic)}, all by {better[:12]}")


def release_corrupted(demo: Demo, digest: str) -> None:
    """A bundle that was signed and approved before one byte of it changed is released by hand."""
    model, good = demo.model, bundles.read(demo.model, digest)
    twin = Bundle(good.files | {"card.md": good.files["card.md"] + b"\nA twin, to be corrupted.\n"})
    bundles.write(model, twin)
    attest(model, "built", twin.digest)
    attest(model, "gate", twin.digest, verdict="passed")
    attest(model, "approved", twin.digest, environment=model.environment)
    graph = bytearray(twin.files["model.onnx"])
    graph[len(graph) // 2] ^= 1
    model.store.put(f"{bundles.folder(model, twin.digest)}/model.onnx", bytes(graph))
    model.releases.append(twin.digest, "demo: written by hand")


def back(demo: Demo, better: str, first: str, rows: list[dict[str, Any]]) -> None:
    with demo.step("Rollback to what was observed serving, twice, under load") as step, demo.traffic(rows) as traffic:
        healed = demo.mlops("rollback", "--why", "demo: away from the corrupted bundle")
        expect(healed["champion"] == better, f"went to {healed['champion'][:12]}")
        again = demo.mlops("rollback", "--why", "demo: back to the first model")
        expect(again["champion"] == first, f"went to {again['champion'][:12]}")
        step.facts.append(f"the first model answers {traffic.wait_for(first):.1f} s after the command")
        time.sleep(3)
        step.facts.append(demo.none_failed(traffic))


def renewed_model(demo: Demo, rows: list[dict[str, Any]]) -> None:
    with demo.step(
        "A model is trained from the prediction log and its outcomes, and taken to callers by itself"
    ) as step:
        quality = demo.mlops("quality")
        step.facts.append(
            f"live loss {quality['loss']['mean']:.4f}, scores lie {quality['gap']['mean']:+.3f} from outcomes"
        )
        renewed = demo.mlops("retrain", "--why", "demo: a month of outcomes")["digest"]
        with demo.traffic(rows) as traffic, demo.replayed():
            wait(lambda: demo.serving().mode == "canary", "it was not rolled out")
            demo.mlops("rollout", "abort", "--why", "demo: enough seen")
            time.sleep(5)  # the champion alone answers, so that this can be found in the log
        step.facts += [*demo.rollout_of(renewed), demo.none_failed(traffic)]


def moments(demo: Demo, better: str) -> list[Answer]:
    """An answer under the first release, one by the better model, one under the last: outside rollouts, where both models
    answer, and each as far as possible from any record and from any answer by another model."""
    log, best = demo.model.releases.read(), dict[int, tuple[float, Answer]]()
    answers = sorted(demo.answers, key=attrgetter("at"))
    changes = [each.at for pair in pairwise(answers) if pair[0].model_version != pair[1].model_version for each in pair]
    changes += [record.at.timestamp() for record in log]
    for answer in answers:
        release = serving(log, datetime.fromtimestamp(answer.at, UTC))
        if release and not release.in_rollout and release.champion == answer.model_version:
            apart = min(abs(answer.at - change) for change in changes)
            best[release.revision] = max(best.get(release.revision, (0.0, answer)), (apart, answer), key=itemgetter(0))
    middle = max(
        (best[each.revision] for each in log if each.champion == better and each.revision in best), key=itemgetter(0)
    )
    return [best[log[0].revision][1], middle[1], best[log[-1].revision][1]]


def answered(demo: Demo, answer: Answer) -> str:
    at = datetime.fromtimestamp(answer.at, UTC)
    history = demo.mlops("history", "--at", at.isoformat())
    observed = {seen["digest"] for seen in history["observed"]}
    expect(observed == {answer.model_version}, f"at {at:%H:%M:%S} the log has {observed}, {answer} is ours")
    return f"{at:%H:%M:%S} UTC {answer.model_version[:12]}: intended by revision {history['intended']['revision']}, and observed"


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise AssertionError(otherwise)


def write_report(demo: Demo, home: Path) -> Path:
    log, model, folder = demo.model.releases.read(), demo.model.name, home / "reports" / demo.model.name
    picture, reports = image(timeline(log, demo.answers, home / "timeline.png")), sorted(folder.glob("*/report.html"))
    page = render(_HERE / "demo.html", model=model, steps=demo.steps, log=log, picture=picture, reports=reports)
    (folder / "demo.html").write_text(page, "utf-8")
    return folder / "demo.html"


def main() -> int:
    home = ROOT / ".mlops" / "demo"
    shutil.rmtree(home, ignore_errors=True)
    os.environ |= {"MLOPS_HOME": str(home), "MLOPS_ANALYSIS_SECONDS": "1e9"}  # nothing is trained but by the steps
    started, demo = time.monotonic(), None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its processes end with it
    try:
        model = os.environ.get("MLOPS_MODEL") or environment.only_model()
        with Platform(Environment.load("local"), model) as platform:
            demo = Demo(platform)
            run(demo)
            report = write_report(demo, home)
    except (Exception, KeyboardInterrupt) as error:
        title = demo.steps[-1].title if demo and demo.steps else "The platform is up"
        console.print(f"[red]failed[/] at: {title}\n  {error or type(error).__name__}\n  logs: {home / 'logs'}")
        return 1
    console.print(f"\nEvery step passed, in {time.monotonic() - started:.0f} s. The report: [bold]{report}[/]\n")
    console.print("Next:\n  make up                                          the platform, left running\n"
                  "  .venv/bin/mlops init DATA.csv --target COLUMN    your own model\n"
                  "  make test                                        what CI runs")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
