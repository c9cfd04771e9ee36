"""One HTTP request and its answer: ids, caller, times."""

import secrets
import string
from dataclasses import dataclass

from services.telemetry.clock import Clock
from services.telemetry.timeline import Timeline

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 24


@dataclass(frozen=True)
class Exchange:
    """What every step of a request knows of it."""

    token: str
    """The part that all ids of this exchange share: ``req_...``, ``chatcmpl-...``."""
    project: str
    timeline: Timeline
    created: int
    """Seconds since the Unix epoch."""
    started_s: float
    """On the clock's ``now``."""
    deadline_s: float
    """On the clock's ``now``."""

    @property
    def request_id(self) -> str:
        """The id of the request, in the ``x-request-id`` header and in every log line."""
        return request_id(self.token)


def request_id(token: str) -> str:
    """Return the request id of an exchange."""
    return f"req_{token}"


def token_in(any_id: str) -> str:
    """Return what an exchange is known by, from its request id or the id of its answer."""
    return any_id.replace("-", "_").rpartition("_")[2]


def new_token() -> str:
    """Return 24 random letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def open_exchange(token: str, project: str, clock: Clock, *, started_s: float, timeout_s: float) -> Exchange:
    """Return the exchange of a request that arrived at ``started_s``."""
    return Exchange(
        token=token,
        project=project,
        timeline=Timeline(request_id(token), clock, project=project, started_s=started_s),
        created=int(clock.wall()),
        started_s=started_s,
        deadline_s=started_s + timeout_s,
    )
