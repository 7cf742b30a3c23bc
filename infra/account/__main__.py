"""What the environments of one AWS account share: Pulumi's state, images, keys that approve, roles of pipelines."""

from infra.account.account import Account
from infra.account.components.approvals import Approvals
from infra.account.components.deliveries import Deliveries
from infra.account.components.github import Github
from infra.account.components.images import Images
from infra.account.components.roles import Boundaries
from infra.account.components.state import State
from infra.account.outputs import Outputs

account = Account()

state = State("state", account)
images = Images("images", account, state.key.arn)
approvals = Approvals("approvals", account)
boundaries = Boundaries("boundary", account)
deliveries = Deliveries("deliveries", account) if account.settings.github.repository else None
github = Github("github", account, state, boundaries.arns, deliveries.keys) if deliveries else None

Outputs(
    boundary=boundaries.arns,
    approval_keys=approvals.keys,
    delivery_keys=deliveries.keys if deliveries else {},
    roles=github.roles if github else {},
    repositories=images.urls,
    state=state.url,
    secrets_provider=state.secrets_provider,
).export()
