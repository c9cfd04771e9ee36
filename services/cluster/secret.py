"""The cluster secret: what workers, gateways and the store's records prove to each other."""

import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from pathlib import Path

from services.errors import ConfigurationError

MIN_SECRET_BYTES = 16


def load_or_create_secret(path: Path) -> bytes:
    """Return the secret in ``path``; make one there (0600) if there is none.

    Several processes may call this at once: all of them get the same secret.

    Raises:
        ConfigurationError: the file cannot be read or written, is too short, or others may read it.
    """
    path = path.expanduser()
    try:
        if not path.exists():
            _create(path)
        return load_secret(path)
    except OSError as error:
        raise ConfigurationError(f"The cluster secret {path} cannot be read or made: {error}.") from error


def load_secret(path: Path) -> bytes:
    """Return the secret in ``path``, without surrounding white space.

    Raises:
        ConfigurationError: the file cannot be read, is too short, or others may read it.
    """
    path = path.expanduser()
    try:
        with path.open("rb") as file:
            _check_mode(path, os.fstat(file.fileno()))
            secret = file.read().strip()
    except OSError as error:
        raise ConfigurationError(f"The cluster secret {path} cannot be read: {error}.") from error
    return check_secret(secret, str(path))


def check_secret(secret: bytes, source: str) -> bytes:
    """Return ``secret`` if it is long enough and printable ASCII, which gRPC metadata needs.

    Raises:
        ConfigurationError: it is not; ``source`` says in the message where it came from.
    """
    if len(secret) < MIN_SECRET_BYTES or not all(0x21 <= byte <= 0x7E for byte in secret):
        raise ConfigurationError(
            f"The cluster secret from {source} must be at least {MIN_SECRET_BYTES} printable ASCII characters "
            "without white space, for example the output of `openssl rand -hex 32`."
        )
    return secret


def sign(secret: bytes, purpose: str, payload: bytes) -> str:
    """Return the hex HMAC-SHA256 of ``payload``; a signature for one ``purpose`` is worthless for another."""
    return hmac.new(secret, purpose.encode() + b"\0" + payload, hashlib.sha256).hexdigest()


def verify(secret: bytes, purpose: str, payload: bytes, signature: str) -> bool:
    """Return whether ``sign`` made ``signature``, in constant time."""
    return hmac.compare_digest(sign(secret, purpose, payload).encode(), signature.encode())


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _publish(name, path)
    finally:
        os.unlink(name)


def _publish(name: str, path: Path) -> None:
    """Give the finished file its name; whoever comes second keeps the first one's secret."""
    try:
        os.link(name, path)
    except FileExistsError:
        return


def _check_mode(path: Path, status: os.stat_result) -> None:
    """Refuse what others may read; a file of another owner (a mounted Secret) may be readable by our group."""
    is_ours = status.st_uid == os.geteuid()
    forbidden = 0o077 if is_ours else 0o037
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        raise ConfigurationError(f"The cluster secret {path} has mode {mode:04o}; use `chmod 600 {path}`.")
