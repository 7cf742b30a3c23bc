from infra.account.account import Account
from infra.component import Component


class Deliveries(Component):
    """The key that signs what was built, in the first environment, and what passed an environment: of its pipelines alone."""

    program: Account

    def create(self) -> None:
        program, stages = self.program, self.program.settings.stages
        signers = {each: [program.pipeline_role(each, "deploy")] for each in stages}
        signers[stages[0]].append(program.pipeline_role(stages[0], "build"))
        self.keys = {each: program.signing_key(each, "delivery", allowed, self) for each, allowed in signers.items()}
