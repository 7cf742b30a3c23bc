"""The kernel that the parts share: contract, bundle, attestations, release log, store, log schema."""

import os

# What a shell, a notebook or a proxy has set for other programs changes nothing here, nor in the processes started here.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost", "::1"]))
_CREDENTIALS = ("_USERNAME", "_PASSWORD", "_TOKEN", "_TLS", "_CERT_PATH")
IGNORED = [name for name in os.environ if name.startswith("MLFLOW_") and not name.endswith(_CREDENTIALS)]
IGNORED += [name for name in os.environ if name.startswith(("PROMETHEUS_", "prometheus_"))]
for _name in IGNORED:
    del os.environ[_name]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime would look up a host and write a device id
