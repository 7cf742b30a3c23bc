"""The kernel that the parts share: contract, bundle, attestations, release log, store, log schema."""

import os

for _name in ("NO_PROXY", "no_proxy"):  # loopback is never proxied
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost", "::1"]))
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime would look up a host and write a device id


_OTHERS = ("MLFLOW_", "MPLBACKEND", "PROMETHEUS_", "prometheus_")
_LOGIN = ("_USERNAME", "_PASSWORD", "_TOKEN", "_TLS", "_CERT_PATH")


def forget_other_programs() -> list[str]:
    """What a shell or a notebook has set for other uses of MLflow, matplotlib and Prometheus' client changes nothing here, nor
    in the processes that are started from here. Returns the names."""
    names = [name for name in os.environ if name.startswith(_OTHERS) and not name.endswith(_LOGIN)]
    for name in names:
        del os.environ[name]
    home = os.environ.get("MLOPS_HOME") or os.path.join(os.path.dirname(__file__), os.pardir, ".mlops")
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(home, "matplotlib"))  # or it writes below the user's home
    return names
