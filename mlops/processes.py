import logging
import os
import threading


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
