from functools import partial
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra import images
from infra.aws.outputs import Outputs
from infra.configuration import PROTECTED
from infra.connections import Connections
from infra.ports import PORTS
from infra.settings import Settings
from mlops.environment import only_model
from mlops.errors import UserError


class Platform:
    """What every component needs: settings, connections, the provider and the namespace."""

    def __init__(self) -> None:
        try:
            ours = {f"images.{name}": partial(_image, name) for name in images.TARGETS}
            self.settings = settings = Settings.load({"model": only_model, **ours})
        except UserError as error:
            raise pulumi.RunError(str(error)) from None
        self.aws = Outputs.of(settings.environment) if settings.on_aws else None
        self.connections = Connections(settings, self.aws)
        context: dict[str, Any] = {"context": settings.cluster.context or None}
        if self.aws:  # a changed kubeconfig of the same cluster replaces nothing
            context = {"kubeconfig": self.aws.kubeconfig, "cluster_identifier": self.aws.cluster_arn}
        # After a killed `up` some objects exist that the state does not know: the next one adopts and corrects them.
        adopt = {"upsert_existing_objects": True, "enable_patch_force": True}
        self.provider = k8s.Provider("cluster", **context, **adopt)
        self.namespace: pulumi.Input[str] = settings.namespace
        if settings.cluster_scope:
            self.namespace = self._namespace().metadata["name"]

    def _namespace(self) -> k8s.core.v1.Namespace:
        name, restricted = self.settings.namespace, "restricted"
        labels = {f"pod-security.kubernetes.io/{mode}": restricted for mode in ("enforce", "warn")}
        protect = self.settings.environment in PROTECTED and not self.settings.unlock
        opts = pulumi.ResourceOptions(provider=self.provider, protect=protect)
        return k8s.core.v1.Namespace("namespace", metadata={"name": name, "labels": labels}, opts=opts)

    def options(self, *after: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(provider=self.provider, depends_on=list(after))

    def outputs(self) -> dict[str, str]:
        """How to reach what is there."""
        settings, secret = self.settings, f"{self._kubectl()} get secret"
        node_port, bundled = settings.serving.node_port, settings.monitoring.kind == "bundled"
        found = {
            "namespace": settings.namespace,
            "predictions": f"http://127.0.0.1:{node_port}" if node_port else self._forward("proxy"),
            "tracking": settings.tracking.url or f"{self._forward('tracking')}   # http://127.0.0.1:5000, user admin",
            "password": f"{secret} tracking-admin -o jsonpath='{{.data.password}}' | base64 -d   # grafana: secret grafana",
            "apiKey": f"{secret} client-key -o jsonpath='{{.data.client\\.key}}' | base64 -d",
        }
        if bundled:
            found["prometheus"] = self._forward("prometheus")
        if bundled and settings.grafana.enabled:
            found["grafana"] = f"{self._forward('grafana')}   # http://127.0.0.1:3000, user admin"
        found["status"] = f"{self._forward('controller')}   # http://127.0.0.1:{PORTS['controller']}, any name, apiKey"
        return found | {"next": f".venv/bin/mlops --env {settings.environment} status"}

    def _forward(self, service: str) -> str:
        return f"{self._kubectl()} port-forward svc/{service} {PORTS[service]}"

    def _kubectl(self) -> str:
        context = f" --context {self.settings.cluster.context}" if self.settings.cluster.context else ""
        return f"kubectl{context} -n {self.settings.namespace}"


def _image(name: str) -> str:
    return images.running(pulumi.get_stack()).get(name, "")
