import ctypes
import gc
import sys

import uvicorn
from pydantic import ValidationError

from app.main import create_app
from app.settings import Settings
from mlops import logs, processes
from mlops.errors import UserError, explain
from mlops.protocol import limited


def return_memory() -> None:
    """After one large body glibc would keep blocks of that size; with fixed thresholds they are returned at once."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-3, 256 * 1024)  # M_MMAP_THRESHOLD
        mallopt(-1, 1024 * 1024)  # M_TRIM_THRESHOLD


def freeze_collector() -> None:
    """What is loaded by now lives as long as the process; collecting it again would stop all requests for 40 ms."""
    gc.collect()
    gc.freeze()


def main() -> None:
    return_memory()
    processes.flush_denormals()
    logs.configure()
    try:
        settings = Settings()
        app = create_app(settings)
    except ValidationError as error:
        sys.exit("\n".join(f"settings: MLOPS_{line}" for line in explain(error)))
    except UserError as error:
        sys.exit(str(error))
    freeze_collector()
    sys.setswitchinterval(0.0002)  # seconds; requests wait as long for a thread of ours each time they read or write
    limits = limited(settings.max_body_bytes)
    uvicorn.run(app, host=settings.host, port=settings.port, timeout_graceful_shutdown=20, **limits)


main()
