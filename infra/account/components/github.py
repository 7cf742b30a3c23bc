from typing import Any

import pulumi
import pulumi_aws as aws

from infra.account import rights
from infra.account.account import Account
from infra.account.components.state import State
from infra.account.outputs import PURPOSES
from infra.aws.program import document
from infra.component import Component

ISSUER, AUDIENCE = "token.actions.githubusercontent.com", "sts.amazonaws.com"
# The workflows that act for a purpose; a preview's may be any.
WORKFLOWS = {
    "infrastructure": ("deploy",), "build": ("deliver",), "deploy": ("deploy",), "train": ("train",),
    "promote": ("promote", "rollback"), "watch": ("watch",),
}  # fmt: skip
_LONG = ("infrastructure", "deploy", "train")  # their jobs may take 90 minutes


class Github(Component):
    """A role for each environment and purpose, which a job of one workflow in one environment of one repository can
    assume, for as long as that may take; no key lives longer."""

    program: Account

    def __init__(
        self,
        name: str,
        account: Account,
        state: State,
        boundaries: dict[str, pulumi.Input[str]],
        keys: dict[str, pulumi.Output[str]],
    ):
        self.keys = keys
        self.state, self.boundaries = rights.StateAccess(account, state.bucket, state.key.arn), boundaries
        super().__init__(name, account)

    def create(self) -> None:
        provider = aws.iam.OpenIdConnectProvider(
            "github", url=f"https://{ISSUER}", client_id_lists=[AUDIENCE], opts=self.child
        )
        first = self.program.settings.stages[0]
        self.roles = {
            environment: {
                purpose: self._role(environment, purpose, provider.arn)
                for purpose in PURPOSES
                if purpose != "build" or environment == first
            }
            for environment in self.program.settings.stages
        }

    def _role(self, environment: str, purpose: str, provider: pulumi.Output[str]) -> pulumi.Output[str]:
        name = f"mlops-{environment}-{purpose}"
        trusted = {"Effect": "Allow", "Principal": {"Federated": provider}, "Action": "sts:AssumeRoleWithWebIdentity"}
        role = aws.iam.Role(
            name,
            name=f"github-{name}",  # not of the names that infra/aws may change
            path=self.program.settings.iam.path,
            max_session_duration=5400 if purpose in _LONG else 3600,
            assume_role_policy=document(trusted | {"Condition": {"StringEquals": self.claims(environment, purpose)}}),
            opts=self.child,
        )
        policy = document(*self._rights(environment, purpose))
        aws.iam.RolePolicy(name, role=role.name, policy=policy, opts=self.child)
        return role.arn

    def _rights(self, environment: str, purpose: str) -> list[dict[str, Any]]:
        account, state = self.program, self.state
        match purpose:
            case "preview":
                return rights.preview(account, state, environment)
            case "infrastructure":
                return rights.infrastructure(account, state, environment, self.boundaries[environment])
            case "build":
                return rights.build(account, state, self.keys[environment])
            case "deploy":
                return rights.deploy(account, state, environment, self.keys[environment])
            case "train":
                return rights.train(account, environment)
            case "watch":
                return rights.watch(account, state, environment)
        return rights.promote(account, environment)

    def claims(self, environment: str, purpose: str) -> dict[str, Any]:
        """What the token must say, word for word: https://docs.github.com/actions/reference/security/oidc"""
        github, last = self.program.settings.github, self.program.settings.stages[-1]
        prefix, subjects = github.subject or f"repo:{github.repository}", [f"environment:{environment}"]
        if purpose == "preview" and environment != last:  # a pull request sees no secrets of production
            subjects.append("pull_request")
        if purpose == "watch":  # reviewers of an environment would hold up every night
            subjects = [f"ref:refs/heads/{github.branch}"]
        found: dict[str, Any] = {f"{ISSUER}:aud": AUDIENCE, f"{ISSUER}:sub": [f"{prefix}:{each}" for each in subjects]}
        if purpose in WORKFLOWS:
            folder, branch = f"{github.repository}/.github/workflows", f"refs/heads/{github.branch}"
            found[f"{ISSUER}:job_workflow_ref"] = [f"{folder}/{each}.yml@{branch}" for each in WORKFLOWS[purpose]]
        return found
