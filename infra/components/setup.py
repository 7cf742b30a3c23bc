from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.workload import container, env, hashed, job, metadata, pod, role, scratch, service_account

# Create, and read back no more than the signing keys, of which the keyring needs the public halves.
_MAY_CREATE: Any = [
    {"api_groups": [""], "resources": ["secrets", "configmaps"], "verbs": ["create"]},
    {"api_groups": [""], "resources": ["secrets"], "resource_names": ["signing-build", "signing-approve"], "verbs": ["get"]},
]


@dataclass(frozen=True, kw_only=True)
class SetupArgs:
    """`step`: what `python -m mlops.bootstrap` makes where it is absent."""

    step: str
    namespace: pulumi.Input[str]
    image: str
    pull_secret: str
    values: dict[str, Any]
    secrets: dict[str, tuple[str, str]]


class Setup(pulumi.ComponentResource):
    """A Job that runs again, under a new name, when its image or its settings change."""

    def __init__(self, name: str, args: SetupArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Setup", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        ready: list[pulumi.Resource] = [service_account(name, args.namespace, child)]
        asks_the_api = args.step == "keys"
        if asks_the_api:
            ready += role(name, args.namespace, _MAY_CREATE, child)
        template = pod(
            name,
            [
                container(
                    "setup", args.image, cpu="50m", memory="1Gi", command=["python", "-m", "mlops.bootstrap", args.step],
                    mounts={"/tmp": "scratch"}, env=env({"HOME": "/tmp", **args.values}, args.secrets),  # noqa: S108
                )
            ],
            [scratch()],
            args.pull_secret,
            automount_service_account_token=asks_the_api,
        )  # fmt: skip
        full = hashed(name, args.image, args.values, args.secrets)
        spec: Any = job(template)
        self.job = k8s.batch.v1.Job(
            full, metadata=metadata(full, args.namespace, name), spec=spec, opts=pulumi.ResourceOptions(parent=self, depends_on=ready)
        )
        self.register_outputs({})
