"""The stand-in of GitHub itself: what the other tests of this folder rely on."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.delivery.api import Environment
from tests.delivery.forge import Forge
from tests.delivery.runner import act

runs = pytest.mark.skipif(act() is None, reason="act is not installed: go install github.com/nektos/act@v0.2.89")
SHA = "0123456789abcdef0123456789abcdef01234567"
CHECKOUT = f"uses: actions/checkout@{SHA}"
PUSHED = f"""
name: pushed
on: {{ push: {{ branches: [main], paths: ["**", "!docs/**"] }} }}
permissions: {{}}
concurrency: {{ group: "pushed-${{{{ github.ref }}}}", queue: max }}
jobs:
  build:
    name: build it
    runs-on: ubuntu-latest
    outputs: {{ digest: "${{{{ steps.built.outputs.digest }}}}" }}
    steps:
      - {CHECKOUT}
      - uses: ./.github/actions/setup
      - {{ id: built, run: 'echo "digest=$(cat version)" >> "$GITHUB_OUTPUT"; mkdir out; cp version out' }}
      - {{ uses: actions/upload-artifact@{SHA}, with: {{ name: built, path: out }} }}
  dev:
    name: to ${{{{ 'dev' }}}}
    needs: build
    if: vars.ENVIRONMENTS != ''
    uses: ./.github/workflows/deploy.yml
    with: {{ environment: dev, digest: "${{{{ needs.build.outputs.digest }}}}" }}
  prod:
    needs: dev
    if: vars.NEVER == 'true'
    uses: ./.github/workflows/deploy.yml
    with: {{ environment: prod, digest: "${{{{ needs.build.outputs.digest }}}}" }}
"""
DEPLOY = f"""
on:
  workflow_call:
    inputs: {{ environment: {{ type: string, required: true }}, digest: {{ type: string, required: true }} }}
    outputs: {{ deployed: {{ value: "${{{{ jobs.deploy.outputs.deployed }}}}" }} }}
jobs:
  deploy:
    runs-on: ubuntu-latest
    environment: ${{{{ inputs.environment }}}}
    outputs: {{ deployed: "${{{{ steps.up.outputs.deployed }}}}" }}
    steps:
      - {{ {CHECKOUT}, with: {{ fetch-depth: 0 }} }}
      - {{ uses: actions/download-artifact@{SHA}, with: {{ name: built, path: got }} }}
      - uses: aws-actions/configure-aws-credentials@{SHA}
        with: {{ role-to-assume: "${{{{ vars.ROLE }}}}", aws-region: eu-west-1 }}
      - {{ run: make install }}
      - id: up
        run: .venv/bin/mlops "$ENVIRONMENT" "$DIGEST" >> "$GITHUB_STEP_SUMMARY"; cmp got/version version
        env: {{ ENVIRONMENT: "${{{{ inputs.environment }}}}", DIGEST: "${{{{ inputs.digest }}}}" }}
"""
AFTER = f"""
name: after
on: {{ workflow_run: {{ workflows: [pushed, pull], types: [completed] }} }}
jobs:
  say:
    runs-on: ubuntu-latest
    steps:
      - {CHECKOUT}
      - uses: actions/download-artifact@{SHA}
        with: {{ run-id: "${{{{ github.event.workflow_run.id }}}}", github-token: "${{{{ github.token }}}}" }}
      - run: echo "$WHAT; $(ls)" >> "$GITHUB_STEP_SUMMARY"
        env: {{ WHAT: "${{{{ github.event.workflow_run.name }}}} ${{{{ github.event.workflow_run.conclusion }}}}" }}
"""
PULL = f"""
name: pull
on: pull_request
jobs:
  look:
    runs-on: ubuntu-latest
    steps:
      - {CHECKOUT}
      - run: echo "$FROM $NUMBER $(cat version) [$V] $GITHUB_REF" >> "$GITHUB_STEP_SUMMARY"
        env:
          FROM: ${{{{ github.event.pull_request.head.repo.full_name }}}} ${{{{ github.head_ref }}}}
          NUMBER: ${{{{ github.event.number }}}}
          V: ${{{{ vars.ENVIRONMENTS }}}}
      - run: |
          curl -sS -o /dev/null -w '%{{http_code}}' -H "Authorization: Bearer $TOKEN" -d '{{"body": "hello"}}' \\
            "$GITHUB_API_URL/repos/$GITHUB_REPOSITORY/issues/$NUMBER/comments" >> "$GITHUB_STEP_SUMMARY"
        env: {{ NUMBER: "${{{{ github.event.number }}}}", TOKEN: "${{{{ github.token }}}}" }}
"""
SLOW = """
on: { workflow_dispatch: { inputs: { size: { type: choice, options: [big, small], default: big }, dry: { type: boolean } } } }
jobs:
  wait:
    runs-on: ubuntu-latest
    steps:
      - run: "echo started ${{ inputs.size }} ${{ inputs.dry }}; trap '' HUP; [ $DRY = true ] || sleep 60; echo over"
        env: { DRY: "${{ inputs.dry }}" }
      - { if: always(), run: echo cleaned }
"""
SETUP = f"runs: {{ using: composite, steps: [{{ uses: actions/setup-python@{SHA} }}, {{ run: echo set up, shell: bash }}] }}"
FILES = {
    ".github/workflows/pushed.yml": PUSHED, ".github/workflows/deploy.yml": DEPLOY, ".github/workflows/after.yml": AFTER,
    ".github/workflows/pull.yml": PULL, ".github/workflows/slow.yml": SLOW, ".github/actions/setup/action.yml": SETUP,
    "cli/__main__.py": "import sys\nprint('deployed', *sys.argv[1:])\n", "version": "1\n",
}  # fmt: skip


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Forge]:
    with Forge(tmp_path / "a forge") as forge:
        work = forge.clone(tmp_path / "some work")
        commit(work, {"version": "0\n"})
        forge.push(work)
        yield forge


@pytest.fixture
def work(forge: Forge, tmp_path: Path) -> Path:
    return tmp_path / "some work"


@pytest.fixture
def github(forge: Forge) -> Iterator[httpx.Client]:
    url = f"{forge.url}/repos/acme/ml/"
    with httpx.Client(base_url=url, headers={"authorization": "Bearer user:ann"}, timeout=20) as client:
        yield client


def commit(work: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    for command in ("add -A", "commit -q -m change"):
        subprocess.run(["git", "-C", work, *command.split()], check=True)


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "problem"),
    [
        ("POST", "pulls", {"title": "x", "head": "y"}, 422, "'base' is a required property"),
        ("POST", "issues", {"title": "x", "text": "y"}, 422, "body.text: GitHub knows no such field"),
        ("POST", "issues/7/comments", {"body": 7}, 422, "7 is not of type 'string'"),
        ("GET", "issues/seven", None, 422, "'seven' is not of type 'integer'"),
        ("GET", "pulls?order=asc", None, 422, "order: GitHub knows no such parameter"),
        ("PUT", "environments/prod", {"wait_timer": "ten"}, 422, "'ten' is not of type 'integer'"),
        ("POST", "rulesets", {"name": "x", "enforcement": "on"}, 422, "'on' is not one of"),
        ("POST", "pull", {}, 404, "no such operation"),
        ("GET", "contents/a/b", None, 404, None),
    ],
)
def test_what_github_refuses_is_refused_and_recorded(
    forge: Forge, github: httpx.Client, verb: str, path: str, body: Any, status: int, problem: str | None
) -> None:
    assert github.request(verb, path, json=body).status_code == status == forge.requests[-1].status
    assert problem in "; ".join(forge.problems) if problem else forge.problems == []


def test_who_asks_counts(forge: Forge, github: httpx.Client) -> None:
    assert httpx.get(f"{github.base_url}issues").status_code == 401
    assert github.get(f"{forge.url}/user").json()["login"] == "ann"
    assert (
        github.post("issues", json={"title": "x"}, headers={"authorization": "token user:ben"}).json()["user"]["login"]
        == "ben"
    )


def test_lists_have_pages_and_issues_hold_pull_requests(forge: Forge, github: httpx.Client, work: Path) -> None:
    for n in range(31):
        assert github.post("issues", json={"title": f"{n}", "labels": ["drift"] if n % 2 else []}).status_code == 201
    commit(work, {"version": "1\n"})
    forge.push(work, "topic")
    pull = github.post("pulls", json={"title": "t", "head": "topic", "base": "main"}).json()
    first = github.get("issues", params={"per_page": 20})
    second = github.get(first.links["next"]["url"])
    assert [len(first.json()), len(second.json()), "next" in second.links] == [20, 12, False]
    assert "pull_request" in first.json()[0]
    assert first.json()[0]["number"] == pull["number"]
    assert len(github.get("issues", params={"labels": "drift"}).json()) == 15
    assert github.get("pulls", params={"head": "acme:topic"}).json()[0]["number"] == pull["number"]
    assert github.post("pulls", json={"title": "t", "head": "topic", "base": "main"}).status_code == 422
    assert forge.problems == []


def test_a_ref_moves_only_from_what_was_seen(forge: Forge, github: httpx.Client) -> None:
    main = github.get("git/ref/heads/main").json()["object"]["sha"]
    base = github.get(f"git/commits/{main}").json()["tree"]["sha"]
    entry = {"path": "environments/prod.json", "mode": "100644", "type": "blob", "content": "{}"}
    tree = github.post("git/trees", json={"base_tree": base, "tree": [entry]}).json()["sha"]
    one, two = (
        github.post("git/commits", json={"message": m, "tree": tree, "parents": [main]}).json()["sha"]
        for m in ("one", "two")
    )
    assert github.post("git/refs", json={"ref": "refs/heads/promote/prod", "sha": one}).status_code == 201
    assert github.post("git/refs", json={"ref": "refs/heads/promote/prod", "sha": two}).status_code == 422
    assert github.patch("git/refs/heads/promote/prod", json={"sha": two}).status_code == 422
    assert github.patch("git/refs/heads/promote/prod", json={"sha": two, "force": True}).status_code == 200
    assert [each["ref"] for each in github.get("git/matching-refs/heads/promote").json()] == ["refs/heads/promote/prod"]
    told = github.get("contents/environments/prod.json", params={"ref": "promote/prod"}).json()
    write = {"message": "m", "content": "e30K", "branch": "promote/prod", "sha": told["sha"]}
    assert github.put("contents/environments/prod.json", json=write).status_code == 200
    assert github.put("contents/environments/prod.json", json=write).status_code == 409
    compared = github.get("compare/main...promote/prod").json()
    assert [compared["status"], compared["ahead_by"], compared["files"][0]["filename"]] == ["ahead", 2, entry["path"]]
    number = github.post("pulls", json={"title": "Promote", "head": "promote/prod", "base": "main"}).json()["number"]
    assert github.put(f"pulls/{number}/merge", json={"sha": one}).status_code == 409
    merged = github.put(f"pulls/{number}/merge", json={"merge_method": "squash"}).json()["sha"]
    assert [each["number"] for each in github.get(f"commits/{merged}/pulls").json()] == [number]
    assert github.get(f"pulls/{number}").json()["merged"]
    assert [each["filename"] for each in github.get(f"pulls/{number}/files").json()] == [entry["path"]]
    assert forge.problems == []


def test_settings_are_kept(forge: Forge, github: httpx.Client) -> None:
    limits = {"protected_branches": False, "custom_branch_policies": True}
    assert github.put("environments/prod", json={"deployment_branch_policy": limits}).status_code == 200
    assert github.post("environments/prod/deployment-branch-policies", json={"name": "main"}).status_code == 200
    for where in ("actions/variables", "environments/prod/variables"):
        assert github.post(where, json={"name": "ROLE", "value": "a"}).status_code == 201
        assert github.post(where, json={"name": "ROLE", "value": "a"}).status_code == 409
        assert github.patch(f"{where}/ROLE", json={"value": "b"}).status_code == 204
        assert github.get(where).json()["variables"][0]["value"] == github.get(f"{where}/role").json()["value"] == "b"
    assert forge.environments["prod"] == Environment({"ROLE": "b"}, ["main"], "custom")
    rule = {"name": "main", "enforcement": "active", "target": "branch", "rules": [{"type": "deletion"}]}
    number = github.post("rulesets", json=rule).json()["id"]
    assert github.put(f"rulesets/{number}", json=rule | {"enforcement": "evaluate"}).json()["rules"] == rule["rules"]
    assert github.get("actions/oidc/customization/sub").json()["sub_claim_prefix"] == "repo:acme@123/ml@456"
    assert [len(github.get(each).json()) for each in ("rulesets", "codeowners/errors", "environments")] == [1, 1, 2]
    assert (
        github.put("actions/permissions/workflow", json={"can_approve_pull_request_reviews": True}).status_code == 204
    )
    assert forge.workflow_permissions["can_approve_pull_request_reviews"]
    forge.plan = "free-private"
    assert github.put("environments/prod", json={"deployment_branch_policy": limits}).status_code == 422
    assert github.post("rulesets", json=rule).status_code == 403
    assert forge.problems == []


@pytest.mark.parametrize(("late", "left"), [(False, 1), (True, 2)])
def test_a_connection_can_be_cut(forge: Forge, github: httpx.Client, late: bool, left: int) -> None:
    forge.fail_at, forge.fail_after = 2, late
    github.post("issues", json={"title": "first"})
    with pytest.raises(httpx.TransportError):
        github.post("issues", json={"title": "second"})
    assert len(forge.issues) == left
    assert len(github.get("issues").json()) == left


@runs
def test_a_push_is_carried_out_and_what_follows_it(forge: Forge, work: Path) -> None:
    forge.variables["ENVIRONMENTS"] = "dev"
    forge.environments["dev"] = Environment({"ROLE": "arn:dev"}, ["main"], "custom")
    forge.environments["prod"] = Environment({"ROLE": "arn:prod"})
    commit(work, FILES)
    pushed, after = forge.push(work)
    assert pushed.conclusion == "success", pushed.log
    assert pushed.jobs == {"build": "success", "dev / deploy": "success", "dev": "success", "prod": "skipped"}
    assert pushed.summary == "deployed dev 1\n"
    assert [each["role"] for each in forge.roles] == ["arn:dev"]
    assert forge.deployments == [(pushed.id, "dev")]
    assert (after.workflow, after.conclusion) == ("after.yml", "success"), after.log
    assert after.summary.startswith("pushed success; built\n")
    with httpx.Client(
        base_url=f"{forge.url}/repos/acme/ml/actions/runs/", headers={"authorization": "Bearer user:ann"}
    ) as api:
        assert api.get(f"{pushed.id}").json()["conclusion"] == "success"
        assert api.get(f"{pushed.id}/artifacts").json()["artifacts"][0]["name"] == "built"
        assert {each["name"] for each in api.get(f"{pushed.id}/jobs").json()["jobs"]} == {*pushed.jobs}
    assert forge.problems == []
    commit(work, {"docs/page.md": "x"})
    assert forge.push(work) == []
    forge.environments["dev"].branches = ["release"]
    again = forge.rerun(pushed)
    assert (again.id, again.attempt, again.jobs["dev"]) == (pushed.id, 2, "failure")
    assert "main is not allowed to deploy to dev" in again.log


@runs
def test_a_pull_request_of_a_fork_reads_only(forge: Forge, work: Path) -> None:
    forge.variables["ENVIRONMENTS"] = "dev"
    commit(work, {name: text for name, text in FILES.items() if "pull" in name or name == "version"})
    forge.push(work)
    commit(work, {"version": "2\n"})
    forge.push(work, "topic", fork="mallory/ml")
    theirs = forge.open_pull("topic", fork="mallory/ml")
    forge.push(work, "topic")
    ours = forge.open_pull("topic")
    summaries = [run.summary.split("\n") for run in forge.runs]
    assert summaries[0] == [f"mallory/ml topic {theirs} 2 [] refs/pull/{theirs}/merge", "403"], forge.runs[0].log
    assert summaries[1] == [f"acme/ml topic {ours} 2 [dev] refs/pull/{ours}/merge", "201"], forge.runs[1].log
    assert [each["user"]["login"] for each in forge.comments.values()] == ["github-actions[bot]"]
    assert [run.event for run in forge.approve(ours)] == ["pull_request"]
    assert forge.merge(ours) == []
    assert forge.pulls[ours]["merged"]


@runs
def test_pushes_wait_for_each_other(forge: Forge, work: Path) -> None:
    commit(
        work, {name: text for name, text in FILES.items() if name.endswith(("pushed.yml", "deploy.yml", "action.yml"))}
    )
    for n in range(1, 4):
        commit(work, {"version": f"{n}\n"})
        forge.push(work, wait=False)
    forge.wait()
    assert [run.conclusion for run in forge.runs] == ["success"] * 3
    assert [run.outputs["build"]["digest"] for run in forge.runs] == ["1", "2", "3"]
    name = ".github/workflows/pushed.yml"
    commit(work, {name: PUSHED.replace(", queue: max", "")})  # then the last one alone waits
    for n in range(4, 8):
        forge.push(work, wait=False)
        commit(work, {"version": f"{n}\n"})
    forge.wait()
    assert [run.conclusion for run in forge.runs[-1:]] == ["success"]
    assert "cancelled" in [run.conclusion for run in forge.runs[3:]]


@runs
def test_a_run_is_dispatched_cancelled_and_killed(forge: Forge, github: httpx.Client, work: Path) -> None:
    commit(work, {name: text for name, text in FILES.items() if "slow" in name})
    forge.push(work)
    assert "/wait: started small true" in forge.dispatch("slow.yml", size="small", dry=True).log
    assert (
        github.post(
            "actions/workflows/slow.yml/dispatches", json={"ref": "main", "inputs": {"size": "huge"}}
        ).status_code
        == 422
    )
    for how, cleaned in ((signal.SIGKILL, False), (signal.SIGINT, True)):
        run = forge.dispatch("slow.yml", wait=False)
        run.until("/wait: started big false")
        assert github.get(f"actions/runs/{run.id}").json()["status"] == "in_progress"
        run.kill(how)
        told = github.get(f"actions/runs/{run.id}/attempts/1").json()
        assert (told["status"], told["conclusion"], run.jobs) == ("completed", "cancelled", {"wait": "cancelled"})
        assert ("/wait: cleaned" in run.log, "/wait: over" in run.log) == (cleaned, False), run.log
    assert json.dumps(forge.problems).count("huge") == 0
