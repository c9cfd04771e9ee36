"""Brings blocks that another worker has into this worker's prefix cache, where the next request finds them."""

import secrets
from dataclasses import replace

from services.engine.request import AttemptKey, NewRequest
from services.errors import TandemError
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.telemetry.logs import get_logger
from services.worker.arrivals import Arrivals
from services.worker.attempt import Attempt
from services.worker.node import Node
from services.worker.settling import Settling

_log = get_logger(__name__)
_NO_SAMPLING = SamplingParams(seed=0, max_tokens=1)


class Pulling:
    """One per worker that is asked to compute what others have the beginning of."""

    def __init__(
        self,
        node: Node,
        channels: Channels,
        arrivals: Arrivals,
        settling: Settling,
        *,
        min_tokens: int,
        step_timeout_s: float,
    ) -> None:
        """Fewer than ``min_tokens`` are not worth the way."""
        self._node = node
        self._channels = channels
        self._arrivals = arrivals
        self._settling = settling
        self._min_tokens = min_tokens
        self._step_timeout_s = step_timeout_s

    async def pull(self, spec: NewRequest, num_blocks: int, source: pb.KVSource) -> int:
        """Get those of the first ``num_blocks`` blocks of ``spec`` that are not here; return how many came.

        ``spec`` has more tokens than fit into them.

        If that fails nothing is lost: whoever needs them computes them.
        """
        block_size = self._node.layout.block_size
        if num_blocks * block_size < self._min_tokens:
            return 0
        prefix = _prefix(spec, num_blocks * block_size)
        key, attempt = AttemptKey(prefix.request_id, secrets.randbits(63)), None
        try:
            reservation = await self._node.engine.call(lambda scheduler: scheduler.reserve(prefix, key))
            attempt = Attempt(self._node, self._channels, self._arrivals, reservation=reservation, key=key)
            num_missing = num_blocks - reservation.first_wanted
            if num_missing * block_size < self._min_tokens:
                return 0
            num_found = await attempt.fetch(source, num_blocks=num_missing, step_timeout_s=self._step_timeout_s)
        except TandemError as error:  # no room, or the peer; if it is the engine, its next request will tell
            return self._failed(prefix, source, error)
        finally:
            self._leave(prefix.request_id, attempt)
        _log.event("pull.arrived", request_id=prefix.request_id, source=source.member_id, blocks=num_found)
        return num_found

    def _leave(self, request_id: str, attempt: Attempt | None) -> None:
        """Give the blocks to the prefix cache that arrived, and the others back.

        Also without an attempt: who was cancelled meanwhile does not know that blocks were reserved.
        """
        with self._settling.leaving(attempt) as leaving:
            self._node.engine.post(
                lambda scheduler: scheduler.cancel(request_id, num_arrived=leaving.num_arrived, outcome=leaving.outcome)
            )

    def _failed(self, prefix: NewRequest, source: pb.KVSource, error: TandemError) -> int:
        _log.warning(
            "pull.failed",
            request_id=prefix.request_id,
            source=source.member_id,
            code=error.code,
            reason=error.message,
        )
        return 0


def _prefix(spec: NewRequest, num_tokens: int) -> NewRequest:
    """Return a request that is never run: it holds the blocks of the first tokens of ``spec`` until they are here.

    It has one token more, since of a request all tokens but the last are looked for in the cache.
    """
    token_ids = (*spec.prompt_token_ids, *spec.resumed_output_token_ids)
    return replace(
        spec,
        request_id=f"{spec.request_id}~pull",
        prompt_token_ids=token_ids[: num_tokens + 1],
        resumed_output_token_ids=(),
        params=_NO_SAMPLING,
        export=False,
        grammar=None,
    )
