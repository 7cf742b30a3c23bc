"""Kubernetes' custom metrics API with one metric, so that the autoscaler can follow the requests in flight.

It asks the proxies: requests a second × seconds each is how many were in flight on average (Little's law). What waits in
front of a busy replica counts, which the replica itself cannot see; and a look at a gauge would only guess.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import ssl
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

METRIC = "mlops_serving_in_flight"
GROUP = "custom.metrics.k8s.io/v1beta1"
_REQUESTS = re.compile(r'^haproxy_backend_http_requests_total\{proxy="serving"\} (\S+)$', re.MULTILINE)
_SECONDS_EACH = re.compile(r'^haproxy_backend_total_time_average_seconds\{proxy="serving"\} (\S+)$', re.MULTILINE)
_EVERY_SECONDS = 5.0
_WINDOW = 6  # samples


class InFlight:
    """The average over the last half minute, summed over proxies; None until two samples are there."""

    def __init__(self, answered: Callable[[], Mapping[str, tuple[float, float]]]):
        """`answered`: proxy → requests since it started, and seconds that each of the last ones took."""
        self._answered, self._samples = answered, deque[float](maxlen=_WINDOW)
        self._before: tuple[float, dict[str, float]] | None = None

    def sample(self) -> None:
        now, found = time.monotonic(), self._answered()
        if self._before and found:
            then, before = self._before
            # A proxy that is new, or began at zero again, has answered all of its requests since.
            spent = sum((n - before.get(proxy, 0.0) if n >= before.get(proxy, 0.0) else n) * each for proxy, (n, each) in found.items())
            self._samples.append(spent / (now - then))
        self._before = now, {proxy: requests for proxy, (requests, _) in found.items()}

    @property
    def value(self) -> float | None:
        return sum(self._samples) / len(self._samples) if self._samples else None


def ask_proxies(service: str, port: int) -> dict[str, tuple[float, float]]:
    """By the headless Service's addresses. A proxy that does not answer is left out."""
    found = {}
    for address in {str(info[4][0]) for info in socket.getaddrinfo(service, port, socket.AF_INET, socket.SOCK_STREAM)}:
        try:
            text = httpx.get(f"http://{address}:{port}/metrics", timeout=2).text
        except httpx.HTTPError:
            continue
        requests, seconds = _REQUESTS.search(text), _SECONDS_EACH.search(text)
        if requests and seconds:
            found[address] = float(requests.group(1)), float(seconds.group(1))
    return found


def answer(path: str, namespace: str, service: str, value: float | None) -> tuple[int, dict[str, Any]]:
    """Status and body of a GET, as the API's clients expect them."""
    if path == f"/apis/{GROUP}":
        resource = {"name": f"services/{METRIC}", "singularName": "", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
        return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [resource]}
    if path == f"/apis/{GROUP}/namespaces/{namespace}/services/{service}/{METRIC}" and value is not None:
        item = {
            "describedObject": {"kind": "Service", "namespace": namespace, "name": service, "apiVersion": "/v1"},
            "metricName": METRIC,
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "value": f"{round(value * 1000)}m",
        }
        return 200, {"kind": "MetricValueList", "apiVersion": GROUP, "metadata": {}, "items": [item]}
    return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


def certificate(folder: Path) -> Path:
    """A key and a certificate of one's own, new at each start: what it protects is no secret."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "metrics-api")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
    )
    signed = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=3650)).sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "server.pem"
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file


def server(port: int, namespace: str, service: str, in_flight: InFlight) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            plain = self.path.partition("?")[0]
            status, body = (200, {}) if plain == "/healthz" else answer(plain, namespace, service, in_flight.value)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as it is called)
            """The API server asks every few seconds."""

    listening = http.server.ThreadingHTTPServer(("", port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        context.load_cert_chain(certificate(Path(folder)))
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    return listening


def main() -> None:
    proxies, proxy_port = os.environ["PROXIES"], int(os.environ["PROXY_PORT"])
    in_flight = InFlight(lambda: ask_proxies(proxies, proxy_port))
    listening = server(int(os.environ["PORT"]), os.environ["NAMESPACE"], os.environ["SERVICE"], in_flight)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    while True:
        with contextlib.suppress(OSError):  # none is there yet
            in_flight.sample()
        time.sleep(_EVERY_SECONDS)


if __name__ == "__main__":
    main()
