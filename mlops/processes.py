import ctypes
import logging
import os
import platform
import threading

# Where the processor's control word is in C's fenv_t, in units of 32 bits, and the bits that take denormals for zero.
_FLUSH = {("Linux", "x86_64"): (7, 0x8040), ("Linux", "aarch64"): (0, 1 << 24), ("Darwin", "arm64"): (2, 1 << 24)}


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError) as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def end_with_its_threads() -> None:
    """A thread that dies of what nobody catches (a library's panic, no memory) ends the process, which is started again:
    one that lives on without it would be deaf."""

    def end(died: threading.ExceptHookArgs) -> None:
        name, info = died.thread.name if died.thread else "", (died.exc_type, died.exc_value, died.exc_traceback)
        logging.getLogger("processes").critical("thread %s died", name, exc_info=info)  # ty: ignore[invalid-argument-type]
        os._exit(70)

    threading.excepthook = end


def flush_denormals() -> None:
    """In this thread and those that it starts: a processor takes a hundred times as long for numbers below 1e-38, and a
    graph can be made so that one value in a row brings them about."""
    libc, place = ctypes.CDLL(None), _FLUSH.get((platform.system(), platform.machine()))
    if place and hasattr(libc, "fesetenv"):
        control = (ctypes.c_uint32 * 16)()
        libc.fegetenv(control)
        control[place[0]] |= place[1]
        libc.fesetenv(control)
