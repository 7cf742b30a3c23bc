import os
import signal
import sys
import threading
from collections.abc import Callable

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlops import logs, processes
from mlops.errors import UserError
from mlops.protocol import limited


def metrics(registry: CollectorRegistry) -> Route:
    async def answer(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Route("/metrics", answer)


def serve(app: Starlette, host: str, port: int) -> uvicorn.Server:
    """In a thread, once the port is bound. Exits if that is impossible."""
    config = uvicorn.Config(app, host, port, loop="asyncio", lifespan="off", **limited())
    server, bound = uvicorn.Server(config), config.bind_socket()
    bound.listen()  # whoever connects before the thread runs is answered too
    threading.Thread(target=server.run, args=([bound],), name="page", daemon=True).start()
    return server


def address(port: int) -> tuple[str, int]:
    """MLOPS_HOST and MLOPS_CONTROLLER_PORT, if they are set."""
    return os.environ.get("MLOPS_HOST", "0.0.0.0"), int(os.environ.get("MLOPS_CONTROLLER_PORT", port))  # noqa: S104


def run(main: Callable[[threading.Event], None]) -> None:
    """`main`, until it is told to stop by a signal."""
    logs.configure()
    processes.end_with_its_threads()
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    try:
        main(stop)
    except UserError as error:
        sys.exit(str(error))
