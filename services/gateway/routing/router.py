"""Pick: who decodes a request, and who may prefill it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from random import Random
from typing import Protocol

from services.cluster.registry import Member, MemberLoad, Role
from services.errors import NoDecodeWorker, NoPrefillWorker
from services.gateway.routing.candidates import Requirements, decode_candidates, without
from services.gateway.routing.in_flight import InFlight
from services.gateway.routing.prefixes import PrefixIndex
from services.gateway.routing.roster import Roster
from services.gateway.routing.score import JITTER, decode_cost, prefill_cost
from services.gateway.routing.suspects import Suspects
from services.kv.hashes import BlockHash


class Members(Protocol):
    """Who belongs to the cluster, as far as this gateway knows."""

    def members(self) -> Sequence[Member]:
        """Return the members last seen; the same object as long as nothing changed."""


@dataclass(frozen=True)
class RouteRequest:
    """What routing must know of a sequence."""

    requirements: Requirements
    num_tokens: int
    """Prompt and resumed tokens whose KV is needed."""
    num_blocks: int
    """KV blocks that the whole sequence may take."""
    block_size: int = 1
    block_hashes: Sequence[BlockHash] = ()
    """Of the whole blocks of the prompt."""


@dataclass(frozen=True)
class Route:
    """Where a sequence goes."""

    decode: Member
    prefill: tuple[Member, ...]
    """Best first; empty means that the decode worker computes the prompt."""
    kv_source: Member | None
    """Who has so much more of the prompt's KV than those two that it is worth fetching."""
    num_uncached_tokens: int
    """Tokens that somebody has to compute."""


class Flight:
    """One sequence on its way; tells the router what it learns."""

    def __init__(self, in_flight: InFlight, route: Route, num_tokens: int) -> None:
        self._in_flight = in_flight
        self._decode_id = route.decode.member_id
        self._prefill_id = route.prefill[0].member_id if route.prefill else self._decode_id
        self._num_uncomputed = num_tokens

    def loaded(self, load: MemberLoad) -> None:
        """Take the load that the decode worker told."""
        self._in_flight.reported(self._decode_id, load)

    def prefilled(self) -> None:
        """The first token came: the prompt needs no computing any more."""
        self._in_flight.computed(self._prefill_id, self._num_uncomputed)
        self._num_uncomputed = 0

    @property
    def prefill_id(self) -> str:
        """Member that is counted as computing the prompt."""
        return self._prefill_id


class Router:
    """Chooses members for sequences; plain Python, no waiting."""

    def __init__(
        self,
        members: Members,
        suspects: Suspects,
        random: Random,
        *,
        prefixes: PrefixIndex | None = None,
        num_prefill_candidates: int = 3,
        min_fetch_tokens: int = 16,
        require_prefill: bool = False,
    ) -> None:
        self._members = members
        self._suspects = suspects
        self._random = random
        self._prefixes = prefixes or PrefixIndex()
        self._num_prefill_candidates = num_prefill_candidates
        self._min_fetch_tokens = min_fetch_tokens
        self._require_prefill = require_prefill
        self._in_flight = InFlight()
        self._roster = Roster(())

    def pick(self, request: RouteRequest, *, avoid: Collection[str] = ()) -> Route:
        """Return the cheapest decode worker outside ``avoid`` and the cheapest prefill workers.

        Raises:
            NoDecodeWorker: nobody is left who could decode.
            NoPrefillWorker: prefill workers are required and none is there.
        """
        roster, wanted = self._refreshed(), request.requirements
        suspects = self._suspects.now()
        decoders = decode_candidates(roster.fitting(Role.DECODE, wanted), avoid=avoid, suspects=suspects)
        if not decoders:
            raise NoDecodeWorker("No decode worker can take this request now.")
        prefillers = without(roster.fitting(Role.PREFILL, wanted), suspects)
        if self._require_prefill and not prefillers:
            raise NoPrefillWorker("No prefill worker can take this request now.")
        cached = self._cached_tokens(request)
        source, num_found = _longest(cached, roster.by_id, suspects)
        decode = self._cheapest_decoder(decoders, request, cached)
        prefill = self._cheapest_prefillers(prefillers, request, cached, num_found)
        num_here = max(cached.get(member.member_id, 0) for member in (decode, *prefill[:1]))
        is_far = source is not None and num_found - num_here >= self._min_fetch_tokens
        num_uncached = request.num_tokens - (num_found if is_far else num_here)
        return Route(decode, prefill, source if is_far else None, num_uncached)

    def queued_tokens(self, member: Member) -> int:
        """Return the prompt tokens that wait at a member, as far as is known here."""
        return self._in_flight.estimate(member.member_id).queued_tokens

    @contextmanager
    def flight(self, route: Route, num_tokens: int) -> Iterator[Flight]:
        """Count a sequence as running on its route until the block is left."""
        flight = Flight(self._in_flight, route, num_tokens)
        same_worker = flight.prefill_id == route.decode.member_id
        self._in_flight.started(route.decode.member_id, num_tokens if same_worker else 0)
        if not same_worker:
            self._in_flight.started(flight.prefill_id, num_tokens)
        try:
            yield flight
        finally:
            flight.prefilled()
            self._in_flight.ended(route.decode.member_id)
            if not same_worker:
                self._in_flight.ended(flight.prefill_id)

    def suspect(self, member_id: str) -> None:
        """Avoid a member that failed a request."""
        self._suspects.mark(member_id)

    def trust(self, member_id: str) -> None:
        """A member took a request."""
        self._suspects.clear(member_id)

    def _refreshed(self) -> Roster:
        members = self._members.members()
        if members is not self._roster.members:
            self._roster = Roster(members)
            for member in members:
                self._in_flight.published(member.member_id, member.load)
            self._in_flight.keep_only(self._roster.by_id.keys())
        return self._roster

    def _cached_tokens(self, request: RouteRequest) -> Mapping[str, int]:
        """Return how much of the prompt each member has, in tokens; one always remains to be computed."""
        overlaps = self._prefixes.overlaps(request.block_hashes)
        block_size, limit = request.block_size, request.num_tokens - 1
        num_whole = limit // block_size  # no call of min() for each
        return {name: num * block_size if num <= num_whole else limit for name, num in overlaps.items()}

    def _cheapest_decoder(self, decoders: Sequence[Member], request: RouteRequest, cached: Mapping[str, int]) -> Member:
        estimate, cached_tokens, chance = self._in_flight.estimate, cached.get, self._random.random
        num_tokens, num_blocks = request.num_tokens, request.num_blocks
        costs = [
            decode_cost(estimate(member.member_id), num_blocks, cached_tokens(member.member_id, 0) / num_tokens)
            + JITTER * chance()
            for member in decoders
        ]
        return decoders[costs.index(min(costs))]

    def _cheapest_prefillers(
        self, prefillers: Sequence[Member], request: RouteRequest, cached: Mapping[str, int], num_found: int
    ) -> tuple[Member, ...]:
        """Return the candidates, best first; ``num_found`` tokens are cached somewhere and can be fetched."""
        estimate, cached_tokens, chance = self._in_flight.estimate, cached.get, self._random.random
        num_tokens, costs = request.num_tokens, []
        for member in prefillers:
            member_id = member.member_id
            num_cached = cached_tokens(member_id, 0)
            num_reusable = num_cached if num_cached > num_found else num_found
            cost = prefill_cost(estimate(member_id), num_tokens - num_reusable, num_reusable - num_cached)
            # Chance stands for a few per cent, so that equal workers share what several gateways send.
            costs.append(cost * (1.0 + 0.05 * chance()))
        best = nsmallest(self._num_prefill_candidates, range(len(costs)), key=costs.__getitem__)
        return tuple(prefillers[index] for index in best)


def _longest(
    cached: Mapping[str, int], members: Mapping[str, Member], suspects: Collection[str]
) -> tuple[Member | None, int]:
    """Return who of ``members`` that are not suspect has most of a prompt, and how many tokens that is."""
    found = [
        (num_tokens, member_id)
        for member_id, num_tokens in cached.items()
        if member_id in members and member_id not in suspects
    ]
    if not found:
        return None, 0
    num_tokens, member_id = max(found)
    return members[member_id], num_tokens
