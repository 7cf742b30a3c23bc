"""An S3 API that has some objects and gives them to nobody: archived ones, or such as are encrypted with another's key."""

from __future__ import annotations

import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx

ANSWERS = {
    "archived": (403, "InvalidObjectState"),
    "encrypted with a key of KMS that is not ours": (403, "AccessDenied"),
    "encrypted with a caller's key": (400, "InvalidRequest"),
    "on a broken disk": (500, "InternalError"),
    "broken off": (200, "an eighth"),
}
_HEADERS = {"connection", "transfer-encoding", "content-encoding", "content-length", "host"}


class Refusing:
    """In front of a real S3 API. What ends with one of `keys` is listed, and refused to who gets it; with `everything` all
    is, absent ones too."""

    def __init__(self, behind: str, answer: tuple[int, str]):
        self.keys: set[str] = set()
        self.everything = False
        refusing, client = (
            self,
            httpx.Client(base_url=behind, timeout=20, limits=httpx.Limits(max_keepalive_connections=0)),
        )

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                path = urlsplit(self.path)
                refused = self.command == "GET" and (
                    refusing.everything or ("list-type" not in path.query and path.path.endswith(tuple(refusing.keys)))
                )
                if refused:
                    body = f"<Error><Code>{answer[1]}</Code></Error>".encode()
                    broken = {
                        "content-length": str(8 * len(body)),
                        "etag": '"1"',
                        "last-modified": formatdate(0, usegmt=True),
                    }
                    self._answer(answer[0], broken if answer[0] == 200 else {}, body)
                    self.close_connection = True
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HEADERS}
                found = client.request(self.command, self.path, content=body, headers=headers)
                length = {"content-length": found.headers["content-length"]} if self.command == "HEAD" else {}
                kept = {name: value for name, value in found.headers.items() if name.lower() not in _HEADERS}
                self._answer(found.status_code, kept | length, found.content)

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "content-length" not in headers:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
            setattr(Handler, f"do_{method}", Handler._pass)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
