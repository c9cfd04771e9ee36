"""Routing a long prompt, already hashed, among many workers of which some have parts of it cached."""

from collections.abc import Sequence
from random import Random

from bench.rows.hashing import BLOCK_SIZE, hashes, prompt
from bench.timing import best_cpu_s
from services.cluster.registry import Member, MemberLoad, Role
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.prefixes import PrefixIndex
from services.gateway.routing.router import Route, Router, RouteRequest
from services.gateway.routing.suspects import Suspects
from services.kv.landmarks import is_landmark
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import SystemClock

FINGERPRINT = "f" * 64


class Fleet:
    """Workers, half of them of each role, and a router that knows them and their caches."""

    def __init__(self, num_workers: int, num_tokens: int) -> None:
        self._members = [_member(index) for index in range(num_workers)]
        names, prefixes = hashes(prompt(num_tokens)), PrefixIndex()
        for index, member in enumerate(self._members[::2]):
            cached = names[: len(names) * index // num_workers]
            landmarks = [name for place, name in enumerate(cached) if is_landmark(place)]
            prefixes.update(member.member_id, added=landmarks, removed=())
        self._router = Router(self, Suspects(SystemClock(), 5.0), Random(1), prefixes=prefixes)
        requirements = Requirements(FINGERPRINT, PROTOCOL_VERSION)
        self._request = RouteRequest(requirements, num_tokens, len(names) + 16, BLOCK_SIZE, names)

    def members(self) -> Sequence[Member]:
        """Return all workers."""
        return self._members

    def route(self) -> Route:
        """Route the prompt once."""
        return self._router.pick(self._request)


def _member(index: int) -> Member:
    role = Role.DECODE if index // 2 % 2 else Role.PREFILL
    return Member(
        member_id=f"{role.value}-{index:08x}",
        role=role,
        address=f"10.0.{index // 256}.{index % 256}:7000",
        model_name="model",
        card_digest="card",
        fingerprint=FINGERPRINT,
        transport="nixl",
        protocol_version=PROTOCOL_VERSION,
        load=MemberLoad(index % 7, 0, 100 * (index % 11), 5000, 10_000, 1000.0),
    )


def measure(num_workers: int = 1000, num_tokens: int = 100_000, rounds: int = 50) -> float:
    """Return milliseconds of one request's routing."""
    fleet = Fleet(num_workers, num_tokens)
    return 1e3 * best_cpu_s(fleet.route, rounds)
