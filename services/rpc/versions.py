"""Which versions of the wire understand each other.

The version is raised when a message changes its meaning; fields, events and services that an older peer may
ignore do not raise it. Every version answers the messages of the one before it, so that a rolling update, in
which gateways and workers of two neighbouring versions meet in any order, loses nothing.
"""

PROTOCOL_VERSION = 1


def understands(version: int, own: int = PROTOCOL_VERSION) -> bool:
    """Return whether a peer of ``version`` and one of ``own`` may talk: they are at most one apart."""
    return abs(version - own) <= 1
