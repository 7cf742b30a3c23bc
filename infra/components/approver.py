from infra.components.controller import Loop, signing_keys


class Approver(Loop):
    """Signs what the judge's verdicts ask for, and is where `mlops --env …` runs what is signed or hands out keys. It alone
    holds the key that approves models for this environment, and cannot read a row that a caller sent."""

    def create(self) -> None:
        self.loop("1Gi", signing_keys("approve"))
