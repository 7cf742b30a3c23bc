from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi

from infra.workload import container, env, pod, scratch, service, service_account, stateful_set

PORT = 7070


@dataclass(frozen=True, kw_only=True)
class BucketArgs:
    namespace: pulumi.Input[str]
    image: str
    size: str
    storage_class: str


class Bucket(pulumi.ComponentResource):
    """VersityGW: the S3 API over one volume, for kind and dev. Its buckets are folders, its identities a file."""

    def __init__(self, name: str, args: BucketArgs, opts: pulumi.ResourceOptions | None = None):
        super().__init__("mlops:platform:Bucket", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service_account(name, args.namespace, child)
        self.service = service(name, args.namespace, {"s3": PORT}, child)
        listens: Any = {"tcp_socket": {"port": PORT}, "period_seconds": 5}
        gateway = container(
            "versitygw",
            args.image,
            cpu="50m",
            memory="512Mi",
            args=["--port", f":{PORT}", "--iam-dir", "/data/iam", "posix", "/data/buckets"],
            env=env(
                {}, {"ROOT_ACCESS_KEY": ("bucket-root", "AWS_ACCESS_KEY_ID"), "ROOT_SECRET_KEY": ("bucket-root", "AWS_SECRET_ACCESS_KEY")}
            ),
            ports=[{"name": "s3", "container_port": PORT}],
            mounts={"/data/buckets": "data", "/data/iam": "data", "/tmp": "scratch"},  # noqa: S108
            startup_probe=listens | {"failure_threshold": 60},
            readiness_probe=listens,
            liveness_probe=listens | {"period_seconds": 20},
        )
        for mount in gateway["volume_mounts"][:2]:  # ty: ignore
            mount["sub_path"] = mount["mount_path"].rsplit("/", 1)[-1]  # ty: ignore
        template = pod(name, [gateway], [scratch()])
        self.stateful_set = stateful_set(name, args.namespace, template, args.size, args.storage_class, child)
        self.register_outputs({})
