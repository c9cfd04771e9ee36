"""Whether a process is gone for good, which a failed call alone does not say."""

import asyncio
import re
import socket

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_LAST_PORT = 65535


def is_address(address: str) -> bool:
    """Return whether ``address`` has the form ``host:port``."""
    host, _, port = address.rpartition(":")
    return (
        bool(_HOST.fullmatch(host))
        and port.isascii()
        and port.isdigit()
        and len(port) <= 5
        and 0 < int(port) <= _LAST_PORT
    )


async def is_refused(address: str, timeout_s: float) -> bool:
    """Return whether its host says that nobody listens at ``host:port``: whoever did is gone.

    A stopped process is not gone: its kernel still takes connections. A host that does not answer says nothing.
    """
    if not is_address(address):
        return False
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            refusals = [await _refuses(family, where) for family, _, _, _, where in found]
    except (OSError, TimeoutError):
        return False
    return all(refusals)


async def _refuses(family: socket.AddressFamily, where: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(probe, where)
        except ConnectionRefusedError:
            return True
    return False
