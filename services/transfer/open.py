"""Opens the transport that a setting names; the only place that knows all of them."""

from dataclasses import dataclass

from services.errors import ConfigurationError
from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.memory import KVMemory
from services.transfer.nixl import NixlOptions, NixlTransport
from services.transfer.tcp import TcpOptions, TcpTransport
from services.transfer.transport import Transport


@dataclass(frozen=True)
class TransportOptions:
    """What each transport needs beyond its identity and memory; only the one of the opened transport is read."""

    nixl: NixlOptions | None = None
    tcp: TcpOptions | None = None
    fabric: InProcessFabric | None = None


def open_transport(
    name: str, *, agent: str, fingerprint: str, memory: KVMemory, options: TransportOptions | None = None
) -> Transport:
    """Return a transport over ``memory``; ``agent`` is unique per incarnation of this process.

    Raises:
        ConfigurationError: an unknown name, NIXL not installed, or options that are missing or refused.
    """
    options = options or TransportOptions()
    if name == "nixl":
        return NixlTransport(agent=agent, fingerprint=fingerprint, memory=memory, options=options.nixl)
    if name == "tcp" and options.tcp is not None:
        return TcpTransport(agent=agent, fingerprint=fingerprint, memory=memory, options=options.tcp)
    if name == "inproc" and options.fabric is not None:
        return InProcessTransport(agent=agent, fingerprint=fingerprint, memory=memory, fabric=options.fabric)
    if name in ("tcp", "inproc"):
        raise ConfigurationError(f"Transport {name!r} needs its options.", param="transport")
    raise ConfigurationError(f"Transport {name!r} is unknown; choose nixl, tcp or inproc.", param="transport")
