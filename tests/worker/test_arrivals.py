import dataclasses
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.engine.output import Reservation
from services.engine.request import AttemptKey
from services.errors import IntegrityError, PayloadDigestMismatch, StaleEpoch, TokenDigestMismatch
from services.kv.hashes import cache_seed, token_digests
from services.telemetry.metrics import WorkerMetrics, counter_values
from services.worker.arrivals import Arrivals
from services.worker.notice import Notice
from services.worker.seal import Sealer

BLOCK_BYTES, BLOCK_SIZE = 64, 4
KEY = AttemptKey("request", 7)
TOKENS = list(range(15))
DIGESTS = tuple(token_digests(cache_seed("f", "p"), TOKENS, BLOCK_SIZE))
RESERVATION = Reservation("request", (5, 9, 2, 4), first_wanted=1, num_cached_tokens=4, token_digests=DIGESTS)


class Rig:
    def __init__(self, *, enabled: bool = True) -> None:
        self.memory = bytearray(range(256)) * (16 * BLOCK_BYTES // 256)
        self.sealer = Sealer(self.block, enabled=enabled)
        self.registry = CollectorRegistry()
        self.arrivals = Arrivals(WorkerMetrics(self.registry))
        self.arrival = self.arrivals.open(KEY, RESERVATION, self.sealer)

    def block(self, block_id: int) -> memoryview:
        return memoryview(self.memory)[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES]

    def notice(self, first: int, count: int, **changes: Any) -> bytes:
        blocks = RESERVATION.block_table[first : first + count]
        notice = Notice(KEY, first, DIGESTS[first : first + count], self.sealer.digests(blocks))
        return dataclasses.replace(notice, **changes).to_bytes()

    def failed_with(self) -> list[str]:
        """Codes of the failures that were counted."""
        counted = counter_values(self.registry)
        stale = ["stale_epoch"] * int(counted["tandem_stale_notices"])
        kinds = (TokenDigestMismatch, PayloadDigestMismatch, IntegrityError)
        name = 'tandem_integrity_failures{{kind="{}"}}'
        return stale + [kind.code for kind in kinds for _ in range(int(counted.get(name.format(kind.code), 0)))]


async def test_all_wanted_blocks_arrive_in_any_order() -> None:
    rig = Rig()
    rig.arrivals.on_notice("agent", rig.notice(2, 2))
    assert rig.arrival.num_arrived == 0
    rig.arrivals.on_notice("agent", rig.notice(1, 1))
    assert rig.arrival.num_arrived == 3
    await rig.arrival.verified(3)
    assert not rig.failed_with()


async def test_one_flipped_bit_is_never_accepted() -> None:
    rig = Rig()
    notice = rig.notice(1, 3)
    rig.block(2)[17] ^= 4
    rig.arrivals.on_notice("agent", notice)
    with pytest.raises(PayloadDigestMismatch):
        await rig.arrival.verified(3)
    assert rig.arrival.num_arrived == 0
    assert rig.failed_with() == [PayloadDigestMismatch.code]


async def test_swapped_blocks_are_never_accepted() -> None:
    rig = Rig()
    rig.arrivals.on_notice("agent", rig.notice(1, 2, token_digests=DIGESTS[2:0:-1]))
    with pytest.raises(TokenDigestMismatch):
        await rig.arrival.verified(3)


async def test_a_notice_of_another_epoch_is_counted_and_changes_nothing() -> None:
    rig = Rig()
    rig.arrivals.on_notice("agent", rig.notice(1, 3, attempt=AttemptKey("request", 6)))
    assert rig.arrival.num_arrived == 0
    assert rig.failed_with() == [StaleEpoch.code]


async def test_a_notice_after_the_attempt_was_left_is_counted() -> None:
    rig = Rig()
    rig.arrivals.close(KEY)
    rig.arrivals.on_notice("agent", rig.notice(1, 3))
    assert rig.failed_with() == [StaleEpoch.code]


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 2)])
async def test_blocks_that_were_not_wanted_are_refused(first: int, count: int) -> None:
    rig = Rig()
    rig.arrivals.on_notice("agent", rig.notice(first, 1, token_digests=(b"x" * 16,) * count))
    with pytest.raises(IntegrityError):
        await rig.arrival.verified(3)


async def test_garbage_is_counted() -> None:
    rig = Rig()
    rig.arrivals.on_notice("agent", b"\xff\xff\xff")
    assert rig.failed_with() == [IntegrityError.code]


async def test_a_notice_without_payload_digests_is_refused_unless_they_are_off() -> None:
    rig, off = Rig(), Rig(enabled=False)
    rig.arrivals.on_notice("agent", rig.notice(1, 3, payload_digests=()))
    off.arrivals.on_notice("agent", off.notice(1, 3, payload_digests=()))
    assert rig.failed_with() == [PayloadDigestMismatch.code]
    await off.arrival.verified(3)
