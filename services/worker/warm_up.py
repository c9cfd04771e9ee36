"""A first request before the first caller: faults weights in and learns how fast this worker computes prompts."""

from services.engine.output import TokenOutput
from services.engine.request import NewRequest
from services.kv.hashes import cache_seed
from services.kv.sampling import SamplingParams
from services.worker.node import Node

_NUM_TOKENS = 128
_REQUEST_ID = "warm-up"


async def warm_up(node: Node) -> None:
    """Run one prompt through the engine; its blocks are cached under a seed that no project has."""
    num_tokens = min(_NUM_TOKENS, node.card.context_length // 2)
    spec = NewRequest(
        request_id=_REQUEST_ID,
        prompt_token_ids=tuple(index % node.card.vocab_size for index in range(num_tokens)),
        params=SamplingParams(seed=0, max_tokens=2, temperature=0.0),
        cache_seed=cache_seed(node.layout.fingerprint, "", adapter=_REQUEST_ID),
    )
    stream = node.engine.subscribe(spec.request_id)
    try:
        await node.engine.call(lambda scheduler: scheduler.add(spec))
        while True:
            event = await stream.next()
            if isinstance(event, TokenOutput) and event.finish_reason is not None:
                return
    finally:
        node.engine.unsubscribe(spec.request_id)
