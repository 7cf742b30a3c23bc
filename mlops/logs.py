import logging

from pythonjsonlogger.json import JsonFormatter


def configure() -> None:
    """One JSON object a line on stderr, with the `extra` fields of each call."""
    handler = logging.StreamHandler()
    names = {"levelname": "level", "name": "logger"}
    handler.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="at"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
