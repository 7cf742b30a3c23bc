"""The kernel that the parts share: contract, bundle, attestations, release log, store, log schema."""

import os

for _name in ("NO_PROXY", "no_proxy"):  # loopback is never proxied
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost", "::1"]))
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime would look up a host and write a device id


def forget_other_programs() -> list[str]:
    """What a shell or a notebook has set for other uses of MLflow and of Prometheus' client changes nothing here, nor in the
    processes that are started from here. Returns the names."""
    login = ("_USERNAME", "_PASSWORD", "_TOKEN", "_TLS", "_CERT_PATH")
    names = [
        name for name in os.environ if name.upper().startswith(("MLFLOW_", "PROMETHEUS_")) and not name.endswith(login)
    ]
    for name in names:
        del os.environ[name]
    return names
