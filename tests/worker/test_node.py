"""What a worker says of itself."""

import pytest

from services.engine.scheduler import Scheduler
from services.errors import InternalError
from tests.inprocess.client import generate, prompt
from tests.inprocess.cluster import Cluster, cluster


async def num_audits(running: Cluster, monkeypatch: pytest.MonkeyPatch, *, looks: int) -> int:
    """Return how often so many looks count the pool anew."""
    counted, audit = 0, Scheduler.audit

    def counting(scheduler: Scheduler) -> object:
        nonlocal counted
        counted += 1
        return audit(scheduler)

    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "audit", counting)
        for _ in range(looks):
            snapshot = await running.decode.node.audit_of_changes()
            assert snapshot.ledger.is_balanced
    return counted


async def test_an_idle_pool_is_counted_anew_once_after_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster() as running:
        assert await num_audits(running, monkeypatch, looks=5) == 1
        assert await num_audits(running, monkeypatch, looks=5) == 0
        await generate(running, prompt(30))
        await running.settled()
        assert await num_audits(running, monkeypatch, looks=5) == 1
        await running.decode.node.engine.call(lambda scheduler: scheduler.load())
        assert await num_audits(running, monkeypatch, looks=5) == 1


async def test_whoever_asks_for_an_audit_gets_one_whatever_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster() as running:
        await num_audits(running, monkeypatch, looks=2)
        await running.decode.node.engine.call(lambda scheduler: scheduler._pool._free.pop())
        for _ in range(2):
            with pytest.raises(InternalError):
                await running.decode.node.audit()
            with pytest.raises(InternalError):
                await running.decode.node.audit_of_changes()
        await running.decode.node.engine.call(lambda scheduler: scheduler._pool._free.append(0))
