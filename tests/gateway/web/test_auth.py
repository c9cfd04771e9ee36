import asyncio

import pytest

from services.errors import AuthenticationFailed, StateUnavailable
from services.gateway.keys import MemoryKeyStore
from services.gateway.web.auth import DEFAULT_PROJECT, Authenticator, KnownKeys, key_in
from services.telemetry.clock import ManualClock


class Store(MemoryKeyStore):
    """Keys that can go away."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self._manual_clock = clock
        self.is_reachable = True
        self.num_reads = 0
        self.read_s = 0.0
        self.answers = asyncio.Event()
        self.answers.set()

    async def projects(self) -> "dict[str, str]":
        self.num_reads += 1
        self._manual_clock.advance(self.read_s)
        await self.answers.wait()
        if not self.is_reachable:
            raise StateUnavailable("away")
        return dict(await super().projects())


class Gate:
    def __init__(self, *, trust_loopback: bool = True) -> None:
        self.clock = ManualClock()
        self.store = Store(self.clock)
        self.keys = KnownKeys(self.store, self.clock, 2.0)
        self._authenticator = Authenticator(self.keys, trust_loopback=trust_loopback)

    async def project_of(self, key: str | None = None, host: str | None = "127.0.0.1", **headers: str) -> str:
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return await self._authenticator.project_of(headers, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", None])
@pytest.mark.parametrize("key", [None, "anything", "My API Key"])
async def test_while_no_key_exists_callers_from_here_need_none(host: str | None, key: str | None) -> None:
    assert await Gate().project_of(key, host) == DEFAULT_PROJECT


@pytest.mark.parametrize("host", ["10.0.0.7", "2001:db8::1", "testclient"])
async def test_callers_from_elsewhere_always_need_a_key(host: str) -> None:
    with pytest.raises(AuthenticationFailed):
        await Gate().project_of(None, host)


async def test_what_a_proxy_forwards_is_not_from_here() -> None:
    with pytest.raises(AuthenticationFailed):
        await Gate().project_of(**{"x-forwarded-for": "127.0.0.1"})


async def test_loopback_need_not_be_trusted() -> None:
    with pytest.raises(AuthenticationFailed):
        await Gate(trust_loopback=False).project_of()


async def test_once_a_key_exists_it_is_needed_and_names_its_project() -> None:
    gate = Gate()
    key = await gate.store.create("team")

    assert await gate.project_of(key, "10.0.0.7") == "team"
    for wrong in (None, "sk-tandem-wrong", key + "x"):
        with pytest.raises(AuthenticationFailed):
            await gate.project_of(wrong)


async def test_both_headers_carry_keys() -> None:
    assert key_in({"authorization": "Bearer My API Key"}) == "My API Key"
    assert key_in({"x-api-key": "k"}) == "k"
    assert key_in({"authorization": "Basic abc"}) is None
    assert key_in({"authorization": "Bearer "}) is None


async def test_the_refusal_does_not_repeat_the_key() -> None:
    gate = Gate()
    await gate.store.create("team")

    with pytest.raises(AuthenticationFailed) as caught:
        await gate.project_of("sk-tandem-0123456789abcdefghijklmnop")

    assert "0123456789" not in caught.value.message
    assert caught.value.message.startswith("Incorrect API key provided: sk-")


async def test_a_revoked_key_is_forgotten_after_the_refresh() -> None:
    gate = Gate()
    key = await gate.store.create("team")
    await gate.store.create("other")
    assert await gate.project_of(key) == "team"
    await gate.store.revoke((await gate.store.list())[0].key_id)
    revoked = [each for each in await gate.store.list() if each.project == "team"]
    if revoked:  # both were made in the same second, so the other one was listed first
        await gate.store.revoke(revoked[0].key_id)
        await gate.store.create("third")

    await gate.keys.refresh()

    with pytest.raises(AuthenticationFailed):
        await gate.project_of(key)


async def test_a_new_key_works_before_the_refresh() -> None:
    gate = Gate()
    await gate.store.create("first")
    with pytest.raises(AuthenticationFailed):
        await gate.project_of("unknown")
    key = await gate.store.create("second")

    gate.clock.advance(0.3)

    assert await gate.project_of(key) == "second"


async def test_unknown_keys_do_not_make_the_store_busy() -> None:
    gate = Gate()
    await gate.store.create("first")
    for _ in range(50):
        with pytest.raises(AuthenticationFailed):
            await gate.project_of("unknown")

    assert gate.store.num_reads == 1


async def test_the_slower_the_store_the_rarer_it_is_read_for_unknown_keys() -> None:
    gate = Gate()
    gate.store.read_s, began_s = 0.02, gate.clock.now()
    for _ in range(3):
        assert await gate.project_of("dummy") == DEFAULT_PROJECT

    assert gate.store.num_reads == 3
    assert gate.clock.now() - began_s == pytest.approx(2 * 0.2 + 0.02)


async def test_a_key_made_right_after_a_read_is_known_at_once() -> None:
    gate = Gate()
    await gate.store.create("first")
    await gate.keys.refresh()
    gate.clock.advance(0.001)
    key = await gate.store.create("team")
    assert await gate.project_of(key) == "team"
    assert gate.store.num_reads == 2


async def test_known_callers_are_let_in_while_the_store_is_away() -> None:
    gate = Gate()
    key = await gate.store.create("team")
    await gate.project_of(key)
    gate.store.is_reachable = False
    gate.clock.advance(3600)

    assert await gate.project_of(key) == "team"
    with pytest.raises(AuthenticationFailed):
        await gate.project_of("unknown")


async def test_without_any_knowledge_nobody_is_let_in() -> None:
    gate = Gate()
    gate.store.is_reachable = False

    with pytest.raises(StateUnavailable):
        await gate.project_of()


async def test_a_store_that_hangs_holds_up_nobody_who_is_known() -> None:
    gate = Gate()
    key = await gate.store.create("team")
    await gate.project_of(key)
    gate.store.answers.clear()
    refreshing = asyncio.create_task(gate.keys.refresh())
    while gate.store.num_reads < 2:
        await asyncio.sleep(0)

    assert await gate.project_of(key) == "team"
    assert not refreshing.done()
    gate.store.answers.set()
    await refreshing


async def test_all_who_must_wait_wait_for_one_read() -> None:
    gate = Gate()
    key = await gate.store.create("team")
    gate.store.answers.clear()
    callers = [asyncio.create_task(gate.project_of(key)) for _ in range(5)]
    while not gate.store.num_reads:
        await asyncio.sleep(0)
    gate.store.answers.set()

    assert await asyncio.gather(*callers) == ["team"] * 5
    assert gate.store.num_reads == 1


async def test_while_the_store_is_away_unknown_keys_wait_for_nothing() -> None:
    gate = Gate()
    assert await gate.project_of("dummy") == DEFAULT_PROJECT
    gate.store.is_reachable = False
    await gate.keys.refresh()
    gate.store.answers.clear()
    gate.clock.advance(3600)

    assert await gate.project_of("dummy") == DEFAULT_PROJECT
    assert gate.store.num_reads == 2


async def test_the_keys_are_followed_while_nobody_calls_and_after_the_store_was_away() -> None:
    gate = Gate()
    gate.store.is_reachable = False
    following = asyncio.create_task(gate.keys.follow())
    while gate.store.num_reads < 2:
        await asyncio.sleep(0)
    gate.store.is_reachable = True
    key = await gate.store.create("team")
    seen = gate.store.num_reads
    while gate.store.num_reads < seen + 2:
        await asyncio.sleep(0)
    following.cancel()

    assert await gate.project_of(key, "10.0.0.7") == "team"
