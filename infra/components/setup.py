from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.workload import Workload, container, env, hashed, job

# Create, and read no more than the signing keys, of which the keyring needs the public halves.
_SIGNING = ["signing-build", "signing-approve"]
_MAY_CREATE: Any = [
    {"api_groups": [""], "resources": ["secrets", "configmaps"], "verbs": ["create"]},
    {"api_groups": [""], "resources": ["secrets"], "resource_names": _SIGNING, "verbs": ["get"]},
]


class Setup(Workload):
    """A Job for one step of `infra.provision`; it runs again, under a new name, when its image or its settings change."""

    image_is_ours = True

    def create(self) -> None:
        step, image, connections = (
            self.name.removeprefix("setup-"),
            self.settings.images.mlflow,
            self.platform.connections,
        )
        self.in_request_path, uses_api = step in ("keys", "bucket"), step == "keys"
        values, secrets = connections.setup(step), connections.secrets(self.name)
        ready = [self.account, *(self.role(_MAY_CREATE) if uses_api else ())]
        self.volume("scratch")
        command = ["python", "-m", "infra.provision", step]
        authority = self.database_ca() if step == "database" else {}
        setup = container(
            "setup", image, cpu="50m", memory="1Gi", command=command, mounts={"/tmp": "scratch", **authority},
            env=env({"HOME": "/tmp", **values}, secrets),
        )  # fmt: skip
        known = {key: value for key, value in values.items() if isinstance(value, str)}
        full, opts = hashed(self.name, image, known, secrets), pulumi.ResourceOptions(parent=self, depends_on=ready)
        template = self.pod(setup, automount_service_account_token=uses_api)
        k8s.batch.v1.Job(full, metadata=self.awaited(full), spec=job(template), opts=opts)
