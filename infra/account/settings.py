from typing import Annotated

from pydantic import Field

from infra.aws.settings import AccountId, Iam, Region, listed
from infra.configuration import Group, Labels, ProgramSettings


class Github(Group):
    repository: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")]
    subject: Annotated[str, Field(pattern=r"^(repo:[\w.@-]+/[\w.@-]+)?$")]
    branch: Annotated[str, Field(pattern=r"^[\w./-]+$")]


class Settings(ProgramSettings):
    """What `infra/account/Pulumi.yaml` declares and `environments/account/Pulumi.<stack>.yaml` changes."""

    account: AccountId
    region: Region
    environments: Annotated[str, Field(pattern=r"^[a-z0-9-]+(,[a-z0-9-]+)*$")]
    tags: Labels
    iam: Iam
    github: Github

    def problems(self) -> dict[str, bool]:
        stages = self.stages
        shared = [each for each in stages if each in ("account", "state")]
        inside = [f"{each} and {more}" for each in stages for more in stages if more.startswith(f"{each}-")]
        return {
            f"environments has {', '.join(shared)}: what they share is named so; choose another name": bool(shared),
            f"environments has {', '.join(inside)}: rights go by how a name begins, so those of the first would reach the"
            " second; choose another name": bool(inside),
        }

    @property
    def stages(self) -> list[str]:
        return listed(self.environments)
