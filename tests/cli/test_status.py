"""``tandem status`` over the in-memory registry."""

import grpc
import pytest

from services.cli.keys import keys_table
from services.cli.status import read_statuses, status_table
from services.cluster.registry import Member, MemberLoad, Role
from services.command_line import split_words
from services.gateway.keys import ApiKey
from services.kv.card import ModelCard
from services.rpc import tandem_pb2 as pb
from services.telemetry.metrics import CLAIMS


class FixedRegistry:
    """Knows a fixed set of members."""

    def __init__(self, *members: Member) -> None:
        self._members = members

    async def join(self, member: Member, card: ModelCard) -> None:
        raise NotImplementedError

    async def renew(self, member: Member) -> None:
        raise NotImplementedError

    async def leave(self, member_id: str) -> None:
        raise NotImplementedError

    async def members(self) -> tuple[Member, ...]:
        return self._members

    async def card(self, digest: str) -> ModelCard:
        raise NotImplementedError


def member(member_id: str, role: Role, load: MemberLoad = MemberLoad()) -> Member:  # noqa: B008  # frozen
    return Member(member_id, role, f"{member_id}:1", "smollm2", "digest", "print", "nixl", 1, load=load)


async def ask(address: str) -> pb.StatusReply:
    if address.startswith("gone"):
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
    ledger = {"used": 3, "free": 7}
    return pb.StatusReply(
        member_id=address.split(":")[0], role="decode", model="smollm2", load=pb.Load(running=2), ledger=ledger
    )


async def test_workers_tell_their_state_and_the_silent_are_shown_as_the_registry_knows_them() -> None:
    registry = FixedRegistry(member("p1", Role.PREFILL), member("gone", Role.DECODE, MemberLoad(waiting=4)))
    gone, there = await read_statuses(registry, ask)
    assert (there.member_id, there.state, there.running, there.ledger["used"]) == ("p1", "serving", 2, 3)
    assert set(there.ledger) == set(CLAIMS)
    assert (gone.member_id, gone.role, gone.state) == ("gone", "decode", "no answer: unavailable")
    assert (gone.waiting, gone.ledger) == (4, {})


async def test_the_table_has_a_line_per_worker_and_aligned_columns() -> None:
    statuses = await read_statuses(FixedRegistry(member("p1", Role.PREFILL), member("gone", Role.PREFILL)), ask)
    lines = status_table(statuses).splitlines()
    assert len(lines) == 3
    assert lines[0].split()[-len(CLAIMS) :] == [claim.upper() for claim in CLAIMS]
    assert len({line.index("smollm2") for line in lines[1:]} | {lines[0].index("MODEL")}) == 1
    assert lines[1].endswith("-")
    assert status_table([]) == "no workers"


def test_keys_are_listed_without_the_keys() -> None:
    table = keys_table([ApiKey("key_1", "team", 0, "abcd")])
    assert table.splitlines()[1].split() == ["key_1", "team", "1970-01-01", "00:00", "UTC", "abcd"]
    assert "no keys" in keys_table([])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["create", "--project", "p"], (["create"], ["--project", "p"])),
        (["revoke", "key_1", "--timeout-s", "1"], (["revoke", "key_1"], ["--timeout-s", "1"])),
        (["-", "--project", "p"], (["-"], ["--project", "p"])),
        ([], ([], [])),
    ],
)
def test_words_come_before_options(argv: list[str], words: tuple[list[str], list[str]]) -> None:
    assert split_words(argv) == words
