from typing import Any

import pulumi


class Component(pulumi.ComponentResource):
    """A part of a program: subclasses make their resources in `create`, with `self.child` as their options."""

    def __init__(self, name: str, program: Any, *after: pulumi.Resource):
        """`program`: has the settings, and the options with the provider."""
        kind = f"mlops:{type(program).__name__.lower()}:{type(self).__name__}"
        super().__init__(kind, name, None, program.options(*after))
        self.name, self.program, self.settings = name, program, program.settings
        self.child = pulumi.ResourceOptions(parent=self)
        self.prepare()
        self.create()
        self.register_outputs({})

    def prepare(self) -> None:
        """What every component of a kind has."""

    def create(self) -> None:
        """Make the resources."""
