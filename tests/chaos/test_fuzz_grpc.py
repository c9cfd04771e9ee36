"""Hostile bytes and messages at every servicer: each call ends with a plain status, and nothing is left of it."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import strategies as st

from services.errors import PeerError
from services.kv.hashes import block_hashes, cache_seed
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import SECRET_KEY, VERSION_KEY
from services.rpc.convert import sampling_to_message
from services.rpc.errors import CODE_KEY
from services.rpc.versions import PROTOCOL_VERSION
from services.worker.convert import endpoint_from_message, endpoint_to_message
from tests.chaos.fuzzing import Budget
from tests.chaos.hostile_messages import damaged, garbage, mutated
from tests.inprocess.client import GREEDY, SEEDED, begin, expected_ids, generate, prompt
from tests.inprocess.cluster import SECRET, Cluster, Worker, cluster, until
from tests.inprocess.hash_model import BLOCK_SIZE
from tests.transfer.harness import harness

CACHED = prompt(22, seed=1000)
"""A prompt whose blocks the decode worker has, unless other examples have used up its pool."""
METADATA = ((SECRET_KEY, SECRET), (VERSION_KEY, str(PROTOCOL_VERSION)))
CALL_DEADLINE_S = 15.0
DECODE = {
    "request_timeout_s": 5.0,
    "prefill_step_timeout_s": 1.0,
    "reserve_timeout_s": 1.0,
    "drain_timeout_s": 1.0,
}
PREFILL = {"push_timeout_s": 2.0, "drain_timeout_s": 1.0}
EMBED = "/tandem.v1.Embedding/Embed"
DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@dataclass
class Target:
    """A cluster, and the loop that it lives in."""

    runner: asyncio.Runner
    cluster: Cluster
    raw: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    unhandled: list[dict[str, Any]] = field(default_factory=list)
    """What the loop was told that nobody handled, such as the end of a background task."""

    def channel(self, worker: Worker) -> grpc.aio.Channel:
        if worker.address not in self.raw:
            self.raw[worker.address] = grpc.aio.insecure_channel(worker.address)
        return self.raw[worker.address]

    async def close(self) -> None:
        for channel in self.raw.values():
            await channel.close()


@dataclass(frozen=True)
class Method:
    """One RPC: where it is answered, and a request that is answered well."""

    path: str
    streams: bool
    at: Callable[[Cluster], Worker]
    valid: Callable[[Target], Message]

    has_fields: bool = True
    is_endless: bool = False
    """Whether it goes on until its caller has enough."""

    def __repr__(self) -> str:
        return self.path


def generate_request(target: Target) -> pb.GenerateRequest:
    number, source = next(target.numbers), target.cluster.prefills[-1]
    return pb.GenerateRequest(
        request_id=f"fuzz-{number}",
        fingerprint=target.cluster.decode.node.layout.fingerprint,
        prompt_token_ids=prompt(22, seed=number),
        resumed_output_token_ids=[1, 2],
        sampling=sampling_to_message(SEEDED),
        prefill_candidates=[worker.candidate for worker in target.cluster.prefills],
        project="fuzz",
        timeout_s=4.0,
        kv_source=pb.KVSource(member_id=source.node.member_id, address=source.address, kept_as="nothing"),
    )


def run_request(target: Target) -> pb.RunRequest:
    number = next(target.numbers)
    return pb.RunRequest(
        request_id=f"fuzz-{number}",
        prompt_token_ids=prompt(22, seed=number),
        sampling=sampling_to_message(GREEDY),
        target=pb.KVTarget(
            endpoint=endpoint_to_message(target.cluster.decode.node.transfers.endpoint),
            epoch=number,
            first_block=1,
            block_ids=range(5),
        ),
        project="fuzz",
        member_id=target.cluster.prefill.node.member_id,
        kv_source=target.cluster.decode.source,
    )


def connect_request(target: Target) -> pb.ConnectRequest:
    return pb.ConnectRequest(endpoint=endpoint_to_message(target.cluster.decode.node.transfers.endpoint))


def settle_at_decode(target: Target) -> pb.SettleRequest:
    return pb.SettleRequest(request_id="fuzz-1", epoch=1, member_id=target.cluster.decode.node.member_id)


def settle_request(target: Target) -> pb.SettleRequest:
    return pb.SettleRequest(request_id="fuzz-1", epoch=1, member_id=target.cluster.prefill.node.member_id)


def fetch_request(target: Target) -> pb.FetchRequest:
    number = next(target.numbers)
    decode, prefill = target.cluster.decode.node, target.cluster.prefill.node
    hashes = block_hashes(cache_seed(decode.layout.fingerprint, "fuzz"), CACHED, BLOCK_SIZE)
    return pb.FetchRequest(
        request_id=f"fuzz-{number}",
        member_id=decode.member_id,
        block_hashes=hashes,
        target=pb.KVTarget(
            endpoint=endpoint_to_message(prefill.transfers.endpoint), epoch=number, block_ids=range(len(hashes))
        ),
    )


def watch_request(target: Target) -> pb.WatchRequest:
    return pb.WatchRequest(member_id=target.cluster.decode.node.member_id)


def the_decode(running: Cluster) -> Worker:
    return running.decode


def the_prefill(running: Cluster) -> Worker:
    return running.prefill


METHODS = [
    Method("/tandem.v1.Decode/Generate", True, the_decode, generate_request),
    Method("/tandem.v1.Prefill/Run", True, the_prefill, run_request),
    Method("/tandem.v1.Prefill/Connect", False, the_prefill, connect_request),
    Method("/tandem.v1.Prefill/Settle", False, the_prefill, settle_request),
    Method("/tandem.v1.KV/Fetch", True, the_decode, fetch_request),
    Method("/tandem.v1.KV/Watch", True, the_decode, watch_request, is_endless=True),
    Method("/tandem.v1.KV/Settle", False, the_decode, settle_at_decode),
    Method("/tandem.v1.Admin/Status", False, the_decode, lambda target: pb.StatusRequest(), has_fields=False),
    Method("/tandem.v1.Admin/Status", False, the_prefill, lambda target: pb.StatusRequest(), has_fields=False),
    Method("/tandem.v1.Admin/Drain", False, the_decode, lambda target: pb.DrainRequest(timeout_s=0.5)),
    Method("/tandem.v1.Admin/Drain", False, the_prefill, lambda target: pb.DrainRequest(timeout_s=0.5)),
]
"""All methods of all services; ``test_no_method_is_left_out`` says so."""


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """One decode and two prefill workers for all examples, so that what one leaves behind meets the next."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        running = runner.run(stack.enter_async_context(cluster(prefills=2, decode=DECODE, prefill=PREFILL)))
        known = Target(runner, running)
        runner.get_loop().set_exception_handler(lambda loop, context: known.unhandled.append(context))
        runner.run(generate(running, CACHED, project="fuzz"))
        yield known
        runner.run(known.close())
        runner.run(stack.aclose())


def test_no_method_is_left_out() -> None:
    """That of embedding workers has a test of its own."""
    services = pb.DESCRIPTOR.services_by_name.values()
    known = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert known == {method.path for method in METHODS} | {EMBED}


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_bytes_that_are_no_request(target: Target, method: Method, budget: Budget) -> None:
    async def check(data: bytes) -> None:
        await assert_ends_well(target, method, data, num_events=None)

    budget.run(target.runner, garbage(method.valid(target)), check, examples=25)
    target.runner.run(assert_unharmed(target))


@pytest.mark.parametrize("method", [method for method in METHODS if method.has_fields], ids=repr)
def test_requests_with_hostile_fields(target: Target, method: Method, budget: Budget) -> None:
    async def check(value: tuple[Message, int | None]) -> None:
        await assert_ends_well(target, method, value[0].SerializeToString(), num_events=value[1])

    requests = st.builds(lambda: method.valid(target)).flatmap(mutated)
    budget.run(target.runner, st.tuples(requests, st.none() | st.integers(0, 4)), check, examples=60)
    target.runner.run(assert_unharmed(target))


@pytest.mark.parametrize("method", [method for method in METHODS if method.streams], ids=repr)
def test_the_same_request_twice_at_once(target: Target, method: Method, budget: Budget) -> None:
    async def check(request: Message) -> None:
        data = request.SerializeToString()
        await asyncio.gather(*(assert_ends_well(target, method, data, num_events=None) for _ in range(2)))

    budget.run(target.runner, st.builds(lambda: method.valid(target)), check, examples=5)
    target.runner.run(assert_unharmed(target))


def test_notices(target: Target, budget: Budget) -> None:
    arrivals = target.cluster.decode.arrivals
    valid = pb.Notice(request_id="fuzz-1", epoch=1, token_digests=[b"x" * 16], payload_digests=[1])

    async def check(data: bytes) -> None:
        arrivals.on_notice("stranger", data)

    values = garbage(valid) | mutated(valid).map(lambda notice: notice.SerializeToString())
    budget.run(target.runner, values, check, examples=100)
    target.runner.run(assert_unharmed(target))


def test_notices_of_an_open_attempt(target: Target, budget: Budget) -> None:
    """They end the attempt or are ignored; the answer has the tokens that it would have had."""
    decode, prefill = target.cluster.decode, target.cluster.prefill

    async def check(values: tuple[Notices, int]) -> None:
        mutate, num_steps = values
        prefill.model.gate.close()
        token_ids = prompt(30, seed=(number := next(target.numbers)))
        call = begin(target.cluster, token_ids, candidates=[prefill], project=f"canary {number}")
        reading = asyncio.create_task(call.finish())
        prefill.model.gate.allow(num_steps)
        await until(lambda: decode.arrivals._open or reading.done())
        for key in list(decode.arrivals._open):
            decode.arrivals.on_notice("stranger", mutate(key.request_id, key.epoch))
        prefill.model.gate.open()
        answer = await reading
        assert answer.ids == expected_ids(token_ids)
        await target.cluster.settled()

    budget.run(target.runner, st.tuples(NOTICES, st.integers(0, 3)), check, examples=20)


Notices = Callable[[str, int], bytes]


def _notice(first_block: int, digests: list[bytes], payloads: list[int]) -> Notices:
    return lambda request_id, epoch: pb.Notice(
        request_id=request_id,
        epoch=epoch,
        first_block=first_block,
        token_digests=digests,
        payload_digests=payloads,
    ).SerializeToString()


NOTICES = st.builds(
    _notice,
    st.integers(0, 9) | st.integers(0, 2**32 - 1),
    st.lists(st.binary(max_size=20), max_size=12),
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
)


@pytest.mark.parametrize("transport", ["tcp", "nixl"])
def test_endpoints_that_are_none(transport: str, budget: Budget) -> None:
    """NIXL's own reader of metadata can crash; nothing of these may reach it."""
    with asyncio.Runner() as runner, harness(transport) as opened:
        here, valid = opened.open(), endpoint_to_message(opened.peer().endpoint)

        async def check(message: pb.Endpoint) -> None:
            try:
                here.transport.connect(endpoint_from_message(message))
            except PeerError as error:
                assert error.message
            here.poll()

        values = mutated(valid) | garbage_metadata(valid)
        budget.run(runner, values, check, examples=150)


def garbage_metadata(valid: pb.Endpoint) -> st.SearchStrategy[pb.Endpoint]:
    def with_metadata(metadata: bytes) -> pb.Endpoint:
        changed = pb.Endpoint()
        changed.CopyFrom(valid)
        changed.metadata = metadata
        return changed

    return damaged(valid.metadata).map(with_metadata)


async def assert_ends_well(target: Target, method: Method, data: bytes, *, num_events: int | None) -> None:
    """Call, and read to the end or cancel after ``num_events``; then nothing of the call is left anywhere."""
    worker = method.at(target.cluster)
    status = await ended(target, method, worker, data, num_events)
    assert status not in DEFECTS, status
    assert not worker.defects
    for each in (target.cluster.decode, *target.cluster.prefills):
        each.node.is_draining = False
    await target.cluster.settled()
    assert not target.unhandled


async def ended(target: Target, method: Method, worker: Worker, data: bytes, num_events: int | None) -> grpc.StatusCode:
    """Return the status of a call.

    Raises:
        AssertionError: only the deadline of the caller ended it.
    """
    channel: Any = target.channel(worker)
    try:
        if method.is_endless and num_events is None:
            num_events = 1
        if method.streams:
            stream = channel.unary_stream(method.path)(data, timeout=CALL_DEADLINE_S, metadata=METADATA)
            while num_events != 0 and await stream.read() is not grpc.aio.EOF:
                num_events = None if num_events is None else num_events - 1
            if num_events == 0:
                stream.cancel()
        else:
            await channel.unary_unary(method.path)(data, timeout=CALL_DEADLINE_S, metadata=METADATA)
    except grpc.aio.AioRpcError as error:
        is_told = CODE_KEY in dict(error.trailing_metadata() or ())
        assert is_told, f"{method.path} ends with {error.code()} and no code: {error.details()}"
        return error.code()
    return grpc.StatusCode.OK


async def assert_unharmed(target: Target) -> None:
    """A request that nobody tampered with gets its own tokens.

    It has a project of its own: whoever knows the cluster secret could push into blocks that cache other prefixes.
    """
    fresh = prompt(30, seed=(number := next(target.numbers)))
    answer = await generate(target.cluster, fresh, project=f"canary {number}")
    assert answer.ids == expected_ids(fresh)
    await target.cluster.settled()
