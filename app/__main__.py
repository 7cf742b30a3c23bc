import ctypes
import gc
import logging
import sys

import uvicorn
from pydantic import ValidationError

from app.main import create_app
from app.protocol import Protocol
from app.settings import Settings
from mlops.errors import Fault


class JsonLines(logging.Formatter):
    """One JSON object a line; messages that are objects already are merged in."""

    def format(self, record: logging.LogRecord) -> str:
        import json

        message = record.getMessage()
        try:
            fields = json.loads(message) if message.startswith("{") else {"message": message}
        except ValueError:
            fields = {"message": message}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps({"at": self.formatTime(record), "level": record.levelname.lower(), **fields})


def give_memory_back() -> None:
    """After one large body glibc keeps blocks of that size for ever; with fixed thresholds they go back at once."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-3, 256 * 1024)  # M_MMAP_THRESHOLD
        mallopt(-1, 1024 * 1024)  # M_TRIM_THRESHOLD


def keep_out_of_the_collector() -> None:
    """What is loaded by now stays for ever. To go through it again and again would stop all requests, for 40 ms each time."""
    gc.collect()
    gc.freeze()


def main() -> None:
    give_memory_back()
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    try:
        settings = Settings()
        app = create_app(settings)
    except ValidationError as error:
        names = ", ".join(f"MLOPS_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors())
        sys.exit(f"settings: {names}")
    except Fault as fault:
        sys.exit(str(fault))
    keep_out_of_the_collector()
    sys.setswitchinterval(0.001)  # seconds that requests wait at most while the recorder's thread has the interpreter; usually 5 ms
    uvicorn.run(app, host=settings.host, port=settings.port, http=Protocol, log_config=None, access_log=False, timeout_graceful_shutdown=20)


main()
