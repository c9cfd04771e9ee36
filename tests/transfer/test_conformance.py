"""What every transport promises, whatever moves the bytes; the peer of TCP and NIXL is another process."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import xxhash

from services.errors import IncompatiblePeer, InvalidRequest, PeerError, PeerGone
from services.transfer.transport import (
    MAX_NOTICE_BYTES,
    BlockPair,
    NoticeArrived,
    PeerConnected,
    PeerLost,
    PushDone,
    PushFailed,
    PushId,
)
from tests.transfer.harness import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    Harness,
    RemotePeer,
    Side,
    arrived,
    connect,
    drive,
    encode_endpoint,
    harness,
    notices,
)

ALL_BLOCKS = [BlockPair(index, index) for index in range(NUM_BLOCKS)]
TRANSPORTS = ["inproc", "tcp", "nixl", "nixl-tcp"]


@pytest.fixture(params=TRANSPORTS)
def kind(request: pytest.FixtureRequest) -> Iterator[Harness]:
    name, _, ucx_transports = request.param.partition("-")
    with harness(name, ucx={"TLS": ucx_transports} if ucx_transports else {}) as opened:
        yield opened


@pytest.fixture
def here(kind: Harness) -> Side:
    side = kind.open()
    randomness = random.Random(7)
    for index in range(NUM_BLOCKS):
        side.memory.block(index)[:] = randomness.randbytes(BLOCK_BYTES)
    return side


@pytest.fixture
def there(kind: Harness, here: Side) -> RemotePeer:
    peer = kind.peer()
    connect(here, peer)
    return peer


def digest(side: Side, index: int) -> str:
    return xxhash.xxh3_64_hexdigest(side.memory.block(index))


def push(side: Side, peer: RemotePeer, blocks: Sequence[BlockPair], notice: bytes = b"notice") -> PushId:
    return side.transport.push(peer.endpoint.agent, blocks, notice)


def push_and_wait(side: Side, peer: RemotePeer, blocks: Sequence[BlockPair], notice: bytes = b"notice") -> None:
    posted = push(side, peer, blocks, notice)
    drive(side, lambda: posted in [event.push for event in side.of(PushDone)], [peer])


def push_fails(side: Side, peer: RemotePeer) -> PeerError:
    """Push everything to a dead peer and return why it failed, by exception or by event."""
    try:
        posted = push(side, peer, ALL_BLOCKS)
    except PeerGone as error:
        return error
    drive(side, lambda: posted in [event.push for event in side.of(PushFailed)])
    failure: PushFailed = side.of(PushFailed)[-1]
    return failure.error


def is_still(peer: RemotePeer) -> bool:
    """Whether nothing lands at ``peer`` while it is asked a hundred times."""
    first = peer.ask("digests")
    return all(peer.ask("digests") == first for _ in range(100))


class TestPush:
    def test_blocks_arrive_bit_exact_in_any_order_and_number(self, here: Side, there: RemotePeer) -> None:
        randomness = random.Random(11)
        empty = there.ask("digests")[0]
        expected = [empty] * NUM_BLOCKS
        for number in (1, 3, NUM_BLOCKS, 17):
            blocks = [
                BlockPair(local, remote)
                for local, remote in zip(
                    randomness.sample(range(NUM_BLOCKS), number),
                    randomness.sample(range(NUM_BLOCKS), number),
                    strict=True,
                )
            ]
            push_and_wait(here, there, blocks)
            for pair in blocks:
                expected[pair.remote] = digest(here, pair.local)
            drive(here, lambda: there.ask("digests") == expected, [there])

    def test_a_notice_is_seen_after_its_data(self, here: Side, there: RemotePeer) -> None:
        expected = []
        for number in range(1, 25):
            blocks = [BlockPair((number + index) % NUM_BLOCKS, index) for index in range(number)]
            push(here, there, blocks, b"@" + bytes(pair.remote for pair in blocks))
            expected.append([digest(here, pair.local) for pair in blocks])
            drive(here, lambda number=number: len(notices(there)) == number, [there])  # type: ignore[misc]
        assert [seen.digests for seen in notices(there)] == expected

    def test_notices_are_bytes_of_any_content_and_length(self, here: Side, there: RemotePeer) -> None:
        texts = [b"", bytes(range(256)), b"\0" * 10, random.Random(3).randbytes(300_000)]
        for text in texts:
            push_and_wait(here, there, [BlockPair(0, 0)], text)
        drive(here, lambda: len(notices(there)) == len(texts), [there])
        assert [seen.notice for seen in notices(there)] == texts
        assert {seen.agent for seen in notices(there)} == {here.transport.endpoint().agent}

    def test_each_event_comes_once(self, here: Side, there: RemotePeer) -> None:
        posted = [push(here, there, ALL_BLOCKS) for _ in range(8)]
        drive(here, lambda: len(here.of(PushDone)) == len(posted), [there])
        for _ in range(20):
            here.poll()
        assert sorted(event.push for event in here.of(PushDone)) == sorted(posted)

    def test_both_sides_can_push(self, here: Side, there: RemotePeer) -> None:
        there.ask("connect", endpoint=encode_endpoint(here.transport.endpoint()))
        there.ask("push", agent=here.transport.endpoint().agent, local=2, remote=5, fill=9, notice="back")
        drive(here, lambda: here.of(NoticeArrived), [there])
        assert arrived(here) == [(there.endpoint.agent, b"back")]
        assert bytes(here.memory.block(5)) == bytes([9]) * BLOCK_BYTES

    def test_two_peers_at_once(self, kind: Harness, here: Side, there: RemotePeer) -> None:
        other = kind.peer()
        connect(here, other)
        for number in range(6):
            push(here, [there, other][number % 2], ALL_BLOCKS, bytes([number]))
        drive(here, lambda: len(here.of(PushDone)) == 6, [there, other])
        for peer, expected in ((there, [b"\0", b"\2", b"\4"]), (other, [b"\1", b"\3", b"\5"])):
            drive(here, lambda peer=peer: len(notices(peer)) == 3, [peer])  # type: ignore[misc]
            assert sorted(seen.notice for seen in notices(peer)) == expected

    def test_a_push_to_a_receiver_that_forgot_still_says_what_it_is(self, here: Side, there: RemotePeer) -> None:
        push_and_wait(here, there, [BlockPair(1, 1)], b"epoch 1")
        push_and_wait(here, there, [BlockPair(2, 1)], b"epoch 2")
        drive(here, lambda: len(notices(there)) == 2, [there])
        assert [seen.notice for seen in notices(there)] == [b"epoch 1", b"epoch 2"]


class TestRefusal:
    def test_another_fingerprint_or_transport(self, here: Side, there: RemotePeer) -> None:
        for stranger in (replace(there.endpoint, fingerprint="other"), replace(there.endpoint, transport="pigeon")):
            with pytest.raises(IncompatiblePeer):
                here.transport.connect(stranger)

    def test_another_block_size(self, kind: Harness, here: Side) -> None:
        with pytest.raises(IncompatiblePeer):
            here.transport.connect(kind.peer(block_bytes=BLOCK_BYTES * 2).endpoint)

    @pytest.mark.parametrize("pair", [(-1, 0), (NUM_BLOCKS, 0), (0, -1), (0, NUM_BLOCKS)])
    def test_a_block_outside_of_either_pool(self, here: Side, there: RemotePeer, pair: tuple[int, int]) -> None:
        with pytest.raises(InvalidRequest):
            push(here, there, [BlockPair(0, 0), BlockPair(*pair)])
        push_and_wait(here, there, [BlockPair(0, 0)], b"still fine")

    def test_no_blocks_and_a_notice_that_is_too_long(self, here: Side, there: RemotePeer) -> None:
        with pytest.raises(InvalidRequest):
            push(here, there, [])
        with pytest.raises(InvalidRequest):
            push(here, there, [BlockPair(0, 0)], bytes(MAX_NOTICE_BYTES + 1))

    def test_a_peer_that_is_not_connected(self, here: Side, there: RemotePeer) -> None:
        with pytest.raises(PeerGone):
            here.transport.push("nobody", [BlockPair(0, 0)], b"")

    def test_connect_is_idempotent_and_always_answered(self, here: Side, there: RemotePeer) -> None:
        connect(here, there)
        connect(here, there)
        assert [event.agent for event in here.of(PeerConnected)] == [there.endpoint.agent] * 3
        push_and_wait(here, there, ALL_BLOCKS)


class TestDeath:
    def test_before_connect(self, kind: Harness, here: Side) -> None:
        dead, alive = kind.peer(), kind.peer()
        dead.kill()
        try:
            here.transport.connect(dead.endpoint)
        except PeerGone:
            pass
        else:
            push_fails(here, dead)
        connect(here, alive)
        push_and_wait(here, alive, ALL_BLOCKS)

    def test_while_idle(self, kind: Harness, here: Side, there: RemotePeer) -> None:
        other = kind.peer()
        connect(here, other)
        there.kill()
        assert isinstance(push_fails(here, there), PeerGone)
        with pytest.raises(PeerGone):
            push(here, there, ALL_BLOCKS)
        push_and_wait(here, other, ALL_BLOCKS)
        assert [event.agent for event in here.of(PeerLost)] == [there.endpoint.agent]

    def test_with_pushes_outstanding(self, kind: Harness, here: Side, there: RemotePeer) -> None:
        other = kind.peer()
        connect(here, other)
        there.stop()
        posted = [push(here, there, ALL_BLOCKS) for _ in range(3)]
        there.kill()
        drive(here, lambda: len(here.of(PushFailed)) == len(posted))
        assert sorted(event.push for event in here.of(PushFailed)) == sorted(posted)
        push_and_wait(here, other, ALL_BLOCKS)

    def test_after_a_push(self, here: Side, there: RemotePeer) -> None:
        push_and_wait(here, there, ALL_BLOCKS)
        there.kill()
        push_fails(here, there)
        assert len(here.of(PushDone)) == 1

    def test_a_restarted_peer_is_reached_under_its_new_name(self, kind: Harness, here: Side, there: RemotePeer) -> None:
        push_and_wait(here, there, ALL_BLOCKS)
        there.kill()
        push_fails(here, there)
        restarted = kind.peer()
        connect(here, restarted)
        push_and_wait(here, restarted, ALL_BLOCKS)
        drive(here, lambda: len(notices(restarted)) == 1, [restarted])
        with pytest.raises(PeerGone):
            push(here, there, ALL_BLOCKS)


class TestBrokenConnection:
    """The peer lives on, and uses its memory for something else once it was told that a push failed."""

    def test_once_a_push_failed_no_byte_of_it_leaves(self, kind: Harness, here: Side, there: RemotePeer) -> None:
        push_and_wait(here, there, ALL_BLOCKS)  # else the connection may still be under way, and is made anew
        there.stop()
        for _ in range(8):
            push(here, there, ALL_BLOCKS)
        kind.sever(there)
        push_fails(here, there)
        drive(here, lambda: len([*here.of(PushDone), *here.of(PushFailed)]) >= 9 and here.of(PeerLost))
        there.resume()
        drive(here, lambda: is_still(there), [there])

        there.ask("fill", fill=7)
        filled = there.ask("digests")
        here.memory.view[:] = bytes(here.memory.num_bytes)
        other = kind.peer()
        connect(here, other)
        push_and_wait(here, other, ALL_BLOCKS)
        for _ in range(200):
            here.poll()
            there.progress()
        assert there.ask("digests") == filled

    def test_whoever_lives_on_can_be_connected_again(self, kind: Harness, here: Side, there: RemotePeer) -> None:
        push_and_wait(here, there, ALL_BLOCKS)
        kind.sever(there)
        push_fails(here, there)
        kind.mend(there)
        connect(here, there)
        push_and_wait(here, there, ALL_BLOCKS, b"again")
        drive(here, lambda: len(notices(there)) == 2, [there])
        assert there.ask("digests") == [digest(here, index) for index in range(NUM_BLOCKS)]


class TestStandstill:
    def test_a_stopped_peer_stops_nobody_else_and_gets_everything_when_it_continues(
        self, kind: Harness, here: Side, there: RemotePeer
    ) -> None:
        other = kind.peer()
        connect(here, other)
        there.stop()
        posted = push(here, there, ALL_BLOCKS, b"late")
        for _ in range(50):
            here.poll()
        push_and_wait(here, other, ALL_BLOCKS)
        there.resume()
        drive(here, lambda: posted in [event.push for event in here.of(PushDone)], [there])
        drive(here, lambda: len(notices(there)) == 1, [there])
        assert there.ask("digests") == [digest(here, index) for index in range(NUM_BLOCKS)]
        assert not here.of(PushFailed)

    def test_a_peer_stopped_before_connect_is_reached_when_it_continues(self, kind: Harness, here: Side) -> None:
        peer = kind.peer()
        peer.stop()
        here.transport.connect(peer.endpoint)
        posted = push(here, peer, ALL_BLOCKS, b"late")
        for _ in range(50):
            here.poll()
        peer.resume()
        drive(here, lambda: posted in [event.push for event in here.of(PushDone)], [peer])
        drive(here, lambda: len(notices(peer)) == 1, [peer])


class TestClose:
    def test_close_is_idempotent_and_final(self, here: Side, there: RemotePeer) -> None:
        push_and_wait(here, there, ALL_BLOCKS)
        here.transport.close()
        here.transport.close()
        assert list(here.transport.poll()) == []
        with pytest.raises(PeerGone):
            push(here, there, ALL_BLOCKS)

    def test_close_with_pushes_outstanding_leaves_the_peer_usable(
        self, kind: Harness, here: Side, there: RemotePeer
    ) -> None:
        there.stop()
        push(here, there, ALL_BLOCKS)
        here.transport.close()
        there.resume()
        successor = kind.open()
        connect(successor, there)
        push_and_wait(successor, there, ALL_BLOCKS, b"successor")
        drive(successor, lambda: notices(there), [there])
        assert notices(there)[-1].notice == b"successor"
