"""What a decode worker does to a prefill worker, one call at a time."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from services.kv.hashes import cache_seed, token_digests
from services.kv.sampling import SamplingParams
from services.prefill.service import PrefillServicer
from services.rpc import tandem_pb2 as pb
from services.rpc.convert import sampling_to_message
from services.rpc.errors import translated
from services.transfer.inproc import InProcessTransport
from services.transfer.loop import TransferThread
from services.transfer.memory import KVMemory, allocate
from services.worker.convert import endpoint_to_message
from services.worker.notice import Notice
from tests.inprocess.client import GREEDY
from tests.inprocess.cluster import Cluster, Worker
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S, layout

NUM_BLOCKS = 64


class RunCall:
    """One Run call that a test reads step by step."""

    def __init__(self, twin: "DecodeTwin", request: pb.RunRequest, worker: Worker) -> None:
        self.request = request
        self.events: list[pb.RunEvent] = []
        self._call = twin.cluster.channels.prefill(worker.address).Run(request, timeout=DEADLINE_S)

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("event")) for event in self.events]

    async def read(self) -> str:
        """Take one event and return its kind, or an empty text at the end."""
        with translated():
            event = await self._call.read()
        if not isinstance(event, pb.RunEvent):
            return ""
        self.events.append(event)
        return self.kinds[-1]

    async def read_until(self, kind: str) -> pb.RunEvent:
        while (seen := await self.read()) != kind:
            assert seen, f"The call ended after {self.kinds}."
        return self.events[-1]

    async def finish(self) -> None:
        while await self.read():
            pass

    def cancel(self) -> None:
        self._call.cancel()


class DecodeTwin:
    """Memory on the fabric, and the notices that came."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.memory: KVMemory = allocate(NUM_BLOCKS, layout().block_bytes)
        self.notices: list[Notice] = []
        self.transfers = TransferThread(
            InProcessTransport(
                agent="decode twin", fingerprint=layout().fingerprint, memory=self.memory, fabric=cluster.fabric
            ),
            on_notice=lambda agent, data: self.notices.append(Notice.from_bytes(data)),
        )
        self.transfers.start()
        self._epochs = itertools.count(1)

    def run(
        self,
        token_ids: Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        first_block: int = 0,
        worker: Worker | None = None,
        **fields: Any,
    ) -> RunCall:
        """Ask for a prompt's blocks from ``first_block`` on, into the blocks of the same index here."""
        worker = worker or self.cluster.prefill
        num_tokens = len(token_ids) + len(fields.get("resumed_output_token_ids", ()))
        target = pb.KVTarget(
            endpoint=endpoint_to_message(self.transfers.endpoint),
            epoch=next(self._epochs),
            first_block=first_block,
            block_ids=range(first_block, layout().num_blocks(num_tokens)),
        )
        values: dict[str, Any] = {
            "request_id": "request",
            "prompt_token_ids": token_ids,
            "sampling": sampling_to_message(params),
            "target": target,
            "member_id": worker.node.member_id,
            **fields,
        }
        return RunCall(self, pb.RunRequest(**values), worker)

    async def settle(self, call: RunCall, worker: Worker | None = None, **changes: Any) -> pb.SettleReply:
        worker = worker or self.cluster.prefill
        with translated():
            return await self.cluster.channels.prefill(worker.address).Settle(_settle(call, worker, changes))

    async def settle_directly(self, call: RunCall) -> pb.SettleReply:
        """Ask the servicer itself, so that the question has come as soon as it runs."""
        worker = self.cluster.prefill
        assert isinstance(worker.servicer, PrefillServicer)
        context: Any = None
        return await worker.servicer.Settle(_settle(call, worker, {}), context)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First and end block of each notice, in order of arrival."""
        return [(notice.first_block, notice.first_block + len(notice.token_digests)) for notice in self.notices]


@asynccontextmanager
async def decode_twin(cluster: Cluster) -> AsyncIterator[DecodeTwin]:
    twin = DecodeTwin(cluster)
    try:
        yield twin
    finally:
        await twin.transfers.close(DEADLINE_S)


def _settle(call: RunCall, worker: Worker, changes: dict[str, Any]) -> pb.SettleRequest:
    values: dict[str, Any] = {
        "request_id": call.request.request_id,
        "epoch": call.request.target.epoch,
        "member_id": worker.node.member_id,
        **changes,
    }
    return pb.SettleRequest(**values)


def digests(token_ids: Sequence[int]) -> list[bytes]:
    return token_digests(cache_seed(layout().fingerprint, ""), token_ids, BLOCK_SIZE)
