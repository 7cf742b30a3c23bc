from typing import Any

from infra.ports import PORTS
from infra.workload import Workload, container, env, port


class Bucket(Workload):
    """VersityGW: the S3 API over one volume, for kind and dev. Its buckets are folders, its identities a file."""

    in_request_path = True

    def create(self) -> None:
        number = PORTS["bucket"]
        listening: Any = {"tcp_socket": {"port": number}, "period_seconds": 5}
        self.service("s3")
        self.volume("scratch")
        gateway = container(
            "versitygw",
            self.settings.images.third_party("versitygw"),
            cpu="50m",
            memory="512Mi",
            args=["--port", f":{number}", "--iam-dir", "/data/iam", "posix", "/data/buckets"],
            env=env({}, self.platform.connections.secrets(self.name)),
            ports=[port("s3", number)],
            mounts={"/data/buckets": "data", "/data/iam": "data", "/tmp": "scratch"},
            startup_probe=listening | {"failure_threshold": 60},
            readiness_probe=listening,
            liveness_probe=listening | {"period_seconds": 20},
        )
        for mount in gateway["volume_mounts"][:2]:
            mount["sub_path"] = mount["mount_path"].rsplit("/", 1)[-1]
        self.stateful_set(self.pod(gateway), self.settings.bucket.size)
