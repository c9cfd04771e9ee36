"""``tandem status``: who belongs to the cluster, how busy they are, and their block ledgers."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import grpc

from services.cli.settings import StatusSettings
from services.cli.state import find_redis_url, secret_path
from services.cli.table import table
from services.cluster.redis_registry import RedisRegistry
from services.cluster.redis_settings import weak_settings
from services.cluster.registry import Member, Registry
from services.cluster.secret import load_secret
from services.config import load
from services.errors import HandshakeFailed
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import from_rpc_error
from services.rpc.tls import tls_of
from services.telemetry.clock import SystemClock
from services.telemetry.metrics import CLAIMS


@dataclass(frozen=True)
class WorkerStatus:
    """One worker as it describes itself now, or as the registry knows it when it does not answer."""

    member_id: str
    role: str
    address: str
    model: str
    state: str
    """``serving``, ``draining``, or why it does not answer."""
    running: int
    waiting: int
    queued_tokens: int
    prefill_tokens_per_s: float
    ledger: dict[str, int]
    """Blocks by strongest claim; empty when it does not answer."""
    counters: dict[str, float]


class Asker(Protocol):
    """Asks a worker for its state."""

    async def __call__(self, address: str) -> pb.StatusReply:
        """Return the reply; raises grpc.RpcError or TimeoutError."""


def main(argv: Sequence[str]) -> int:
    """Print the cluster's state as a table or, with ``--json``, as JSON; warn of a Redis that may lose something."""
    options = ["--format=json" if word == "--json" else word for word in argv]
    settings = load(StatusSettings, options, prog="tandem status").settings
    redis_url = find_redis_url(settings.data_dir, settings.redis_url)
    statuses, warnings = asyncio.run(_read(settings, redis_url))
    if settings.format == "json":
        print(json.dumps([asdict(status) for status in statuses], indent=2))
    else:
        print(status_table(statuses))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


async def read_statuses(registry: Registry, ask: Asker) -> list[WorkerStatus]:
    """Return every member's state, asked all at once."""
    members = sorted(await registry.members(), key=lambda member: (member.role.value, member.member_id))
    return list(await asyncio.gather(*(_status_of(member, ask) for member in members)))


def status_table(statuses: Sequence[WorkerStatus]) -> str:
    """Return the statuses for people."""
    if not statuses:
        return "no workers"
    header = ["WORKER", "ROLE", "ADDRESS", "MODEL", "STATE", "RUN", "WAIT", "QUEUED", *map(str.upper, CLAIMS)]
    return table(header, [_row(status) for status in statuses])


async def _read(settings: StatusSettings, redis_url: str) -> tuple[list[WorkerStatus], list[str]]:
    """Return the workers, and what is wrong with Redis."""
    secret = load_secret(settings.secret_file or secret_path(settings.data_dir))
    registry = RedisRegistry(redis_url, secret, SystemClock(), timeout_s=settings.timeout_s)
    channels = Channels(secret, tls_of(settings))

    async def ask(address: str) -> pb.StatusReply:
        return await channels.admin(address).Status(pb.StatusRequest(), timeout=settings.timeout_s)

    try:
        return await read_statuses(registry, ask), await weak_settings(redis_url, settings.timeout_s)
    finally:
        await channels.close()
        await registry.close()


async def _status_of(member: Member, ask: Asker) -> WorkerStatus:
    try:
        reply = await ask(member.address)
    except grpc.aio.AioRpcError as error:
        return _unanswered(member, f"no answer: {_why(error)}")
    return WorkerStatus(
        member_id=reply.member_id,
        role=reply.role,
        address=member.address,
        model=reply.model,
        state="draining" if reply.draining else "serving",
        running=reply.load.running,
        waiting=reply.load.waiting,
        queued_tokens=reply.load.queued_tokens,
        prefill_tokens_per_s=reply.load.prefill_tokens_per_s,
        ledger={claim: reply.ledger.get(claim, 0) for claim in CLAIMS},
        counters=dict(sorted(reply.counters.items())),
    )


def _why(error: grpc.aio.AioRpcError) -> str:
    known = from_rpc_error(error)
    return known.code if isinstance(known, HandshakeFailed) else error.code().name.lower()


def _unanswered(member: Member, state: str) -> WorkerStatus:
    return WorkerStatus(
        member_id=member.member_id,
        role=member.role.value,
        address=member.address,
        model=member.model_name,
        state=state,
        running=member.load.running,
        waiting=member.load.waiting,
        queued_tokens=member.load.queued_tokens,
        prefill_tokens_per_s=member.load.prefill_tokens_per_s,
        ledger={},
        counters={},
    )


def _row(status: WorkerStatus) -> list[str]:
    numbers = (status.running, status.waiting, status.queued_tokens)
    blocks = [str(status.ledger.get(claim, "-")) for claim in CLAIMS]
    return [status.member_id, status.role, status.address, status.model, status.state, *map(str, numbers), *blocks]
