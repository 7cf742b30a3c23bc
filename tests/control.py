from __future__ import annotations

import threading

from mlops.environment import Environment
from monitoring.approver import Approver
from monitoring.controller import Controller


class Control:
    """The controller, and the approver that acts on its verdicts."""

    def __init__(self, environment: Environment, name: str):
        self.controller, self.approver = Controller(environment, name), Approver(environment.model(name))

    def judge(self) -> None:
        self.controller.judge()
        self.approver.decide()

    def tick(self) -> None:
        for steps in (self.controller.steps, self.approver.steps):
            steps.tick()

    def run(self, stop: threading.Event) -> None:
        approving = threading.Thread(target=self.approver.steps.run, args=[stop])
        approving.start()
        self.controller.run(stop)
        approving.join()
