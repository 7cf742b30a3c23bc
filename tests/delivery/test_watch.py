"""What nobody does and somebody should know: one issue each, by the workflow itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.delivery import watch
from cli.delivery.github import GitHub
from cli.delivery.watch import report
from tests.delivery.forge import Forge
from tests.delivery.fork import Fork
from tests.delivery.runner import act


@pytest.mark.skipif(act() is None, reason="act is not installed: go install github.com/nektos/act")
def test_a_finding_is_one_issue_updated_and_closed(tmp_path: Path) -> None:
    with Forge(tmp_path / "forge") as forge:
        fork = Fork(tmp_path / "fork", forge).on_clusters()
        forge.path.insert(0, Path(__file__).parent / "bin_fresh")
        forge.env["FORGE_UV"] = str((fork.bin / "uv").resolve())
        forge.variables["MLOPS_ENVIRONMENTS"] = '["dev"]'
        fork.commit("made from the template")
        forge.push(fork.work)
        drift, locks = (
            fork.folder / "pulumi" / ".pulumi" / "drift-dev",
            fork.folder / "pulumi/.pulumi/locks/organization/mlops/dev",
        )

        def watched() -> dict[str, tuple[str, str]]:
            """Title → state, body, after a night."""
            run = forge.schedule("watch.yml")
            assert run.conclusion == "success", run.log
            issues = [each for each in forge.issues.values() if "pull_request" not in each]
            return {each["title"]: (each["state"], each["body"]) for each in issues}

        drift.write_text("~ Deployment serving ``` replicas: 2 => 5")
        locks.mkdir(parents=True, exist_ok=True)
        since = (datetime.now(UTC) - timedelta(hours=4)).isoformat()
        lock = {"pid": 1, "username": "ann", "hostname": "laptop", "timestamp": since}
        (locks / "a.json").write_text(json.dumps(lock))
        found = watched()
        assert set(found) == {"Infrastructure of dev is not what was deployed", "The state of dev is locked"}
        state, body = found["Infrastructure of dev is not what was deployed"]
        assert (state, "replicas: 2 => 5" in body, "````" in body) == ("open", True, True)
        assert "ann@laptop" in found["The state of dev is locked"][1]

        drift.write_text("~ Deployment serving replicas: 2 => 9")
        (locks / "a.json").unlink()
        found = watched()
        assert "2 => 9" in found["Infrastructure of dev is not what was deployed"][1]
        assert found["The state of dev is locked"][0] == "closed"
        drift.unlink()
        assert {state for state, _ in watched().values()} == {"closed"}
        assert forge.problems == []


def test_the_same_finding_is_no_request_and_an_issue_of_a_person_stays_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Forge(tmp_path / "forge") as forge:
        monkeypatch.setenv("GITHUB_API_URL", forge.url)
        monkeypatch.setenv("GITHUB_TOKEN", "user:ann")
        report(GitHub("acme/ml"), "packages", "Packages", "one")  # with our mark, but ann's
        monkeypatch.setattr(watch, "BOT", "robot")
        monkeypatch.setenv("GITHUB_TOKEN", "user:robot")
        github = GitHub("acme/ml")
        assert [report(github, "packages", "Packages", "one") for _ in range(2)] == ["opened", "unchanged"]
        assert len([each for each in forge.requests if each.method != "GET"]) == 2
        assert report(github, "packages", "Packages", "") == "closed"
        assert report(github, "packages", "Packages", "") == ""
        assert [each["state"] for each in forge.issues.values()] == ["open", "closed"]
        assert forge.problems == []
