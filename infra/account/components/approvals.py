from infra.account.account import Account
from infra.component import Component


class Approvals(Component):
    """The key that approves models for an environment; only its approver signs with it, whatever IAM says elsewhere."""

    program: Account

    def create(self) -> None:
        approvers = {each: [self.program.made_role(each, "approver")] for each in self.program.settings.stages}
        self.keys = {
            each: self.program.signing_key(each, "approval", signers, self) for each, signers in approvers.items()
        }
