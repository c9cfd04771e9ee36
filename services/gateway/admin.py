"""Health and metrics: what load balancers and Prometheus ask."""

from collections.abc import Sequence
from typing import Protocol

from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from services.cluster.registry import Member, Role
from services.gateway.drain import Drain


class KnownMembers(Protocol):
    """Who belongs to the cluster, as far as this gateway knows."""

    def members(self) -> Sequence[Member]:
        """Return the last known members."""


class Readiness:
    """Whether requests should be sent here: workers are known, and we are not leaving."""

    def __init__(self, members: KnownMembers, drain: Drain) -> None:
        self._members = members
        self._drain = drain

    def __call__(self) -> bool:
        """Return whether this gateway can answer; last known members will do while Redis is away."""
        if self._drain.is_leaving:
            return False
        return any(member.role is Role.DECODE and not member.draining for member in self._members.members())


def admin_routes(registry: CollectorRegistry, readiness: Readiness) -> APIRouter:
    """Return ``/livez``, ``/readyz`` and ``/metrics`` for the API's own port."""
    router = APIRouter()

    async def livez(request: Request) -> Response:
        return PlainTextResponse("OK\n")

    async def readyz(request: Request) -> Response:
        is_ready = readiness()
        return PlainTextResponse("OK\n" if is_ready else "Not ready\n", 200 if is_ready else 503)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    for path, endpoint in (("/livez", livez), ("/readyz", readyz), ("/metrics", metrics)):
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"])
    return router
