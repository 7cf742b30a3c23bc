import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One replica's settings, from environment variables MLOPS_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="MLOPS_")

    env: str
    model: str
    bucket: str
    keyring: Path
    spool: Path
    log_key: Annotated[SecretStr, Field(min_length=32)]  # of mlops.log_key
    host: str = "127.0.0.1"
    port: int = 8080
    poll_seconds: float = 2.0
    segment_seconds: float = 10.0
    segment_bytes: int = 8 * 2**20
    spool_bytes: int = 256 * 2**20
    max_body_bytes: int = 2 * 2**20
    max_bytes_in_flight: int = 64 * 2**20  # of bodies and large answers; a quarter of it for one API key
    max_in_flight: int = 256  # predictions being made; a quarter of it for one API key
    sandbox_memory_mb: int = 512
    replica: str = socket.gethostname()
