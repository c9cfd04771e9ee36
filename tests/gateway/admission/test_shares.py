from collections.abc import Collection, Mapping

from services.errors import StateUnavailable
from services.gateway.admission.ledger import Ask, Grant, MemoryShareLedger
from services.gateway.admission.shares import Budget, Shares
from services.telemetry.clock import ManualClock


class FlakyLedger(MemoryShareLedger):
    """A ledger that can be away; counts what it was asked."""

    def __init__(self) -> None:
        super().__init__(ManualClock())
        self.is_away = False
        self.num_exchanges = 0
        self.left: list[str] = []

    async def exchange(self, holder: str, asks: Mapping[str, Ask]) -> Mapping[str, Grant]:
        if self.is_away:
            raise StateUnavailable("away")
        self.num_exchanges += 1
        return await super().exchange(holder, asks)

    async def leave(self, holder: str, names: Collection[str]) -> None:
        if self.is_away:
            raise StateUnavailable("away")
        self.left += names
        await super().leave(holder, names)


def shares(ledger: FlakyLedger, holder: str = "a") -> Shares:
    return Shares(ledger, holder, ManualClock())


def used(budget: Budget, amount: int = 1) -> Budget:
    budget.in_use += amount
    return budget


async def test_a_gateway_alone_may_use_the_whole_limit_before_it_asked_anybody() -> None:
    budget = shares(FlakyLedger()).budget("tokens", 100)
    assert (budget.total, budget.share) == (100, 100)
    used(budget, 40)
    assert (budget.fits(60), budget.fits(61)) == (True, False)


def test_no_limit_fits_all() -> None:
    assert used(Budget("tokens", 0, 0), 10**9).fits(10**9)


def test_what_is_larger_than_the_share_runs_alone() -> None:
    budget = Budget("tokens", 100, 50)
    assert budget.fits(1000)
    assert not used(budget).fits(1000)


async def test_two_gateways_that_want_everything_have_half() -> None:
    ledger = FlakyLedger()
    first, second = shares(ledger, "a"), shares(ledger, "b")
    budgets = [each.budget("tokens", 100) for each in (first, second)]
    for budget in budgets:
        budget.num_wanted = 1000
    for _ in range(2):
        await first.exchange()
        await second.exchange()
    assert [budget.share for budget in budgets] == [50, 50]
    assert all(budget.is_short for budget in budgets)


async def test_a_new_limit_begins_with_the_own_part() -> None:
    ledger = FlakyLedger()
    first, second = shares(ledger, "a"), shares(ledger, "b")
    for each in (first, second):
        used(each.budget("tokens", 100))
        await each.exchange()
    assert second.budget("tokens:project", 10).share == 5


async def test_a_limit_that_grows_or_shrinks_takes_the_share_along() -> None:
    ledger = FlakyLedger()
    first, second = shares(ledger, "a"), shares(ledger, "b")
    for _ in range(2):
        for each in (first, second):
            each.budget("tokens", 100).num_wanted = 100
            await each.exchange()
    assert [first.budget("tokens", total).share for total in (100, 200, 40, 0, 40)] == [50, 100, 20, 0, 20]


async def test_while_the_ledger_is_away_a_gateway_keeps_what_it_has_and_at_least_its_own_part() -> None:
    ledger = FlakyLedger()
    first, second = shares(ledger, "a"), shares(ledger, "b")
    rich, poor = used(first.budget("tokens", 100), 90), used(second.budget("tokens", 100))
    await first.exchange()
    await second.exchange()
    assert (rich.share, poor.share) == (100, 0)
    ledger.is_away = True
    await first.exchange()
    await second.exchange()
    assert (rich.share, poor.share) == (100, 50)
    ledger.is_away = False
    await second.exchange()
    assert poor.share == 0  # the first one has not said yet that it uses less


async def test_what_is_idle_is_given_back_and_forgotten() -> None:
    ledger = FlakyLedger()
    mine = shares(ledger)
    for number in range(100):
        used(mine.budget(f"tokens:{number}", 10))
    await mine.exchange()
    for number in range(100):
        mine.budget(f"tokens:{number}", 10).in_use = 0
    assert mine.num_budgets == 100
    await mine.exchange()
    assert (mine.num_budgets, len(ledger.left)) == (0, 100)
    assert await ledger.exchange("b", {"tokens:7": Ask(10, 0, 0)}) == {"tokens:7": Grant(10, 1)}


async def test_without_limits_the_ledger_is_not_asked() -> None:
    ledger = FlakyLedger()
    mine = shares(ledger)
    used(mine.budget("tokens", 0))
    await mine.exchange()
    assert ledger.num_exchanges == 0


async def test_closing_gives_back_what_is_still_in_use() -> None:
    ledger = FlakyLedger()
    mine = shares(ledger)
    used(mine.budget("tokens", 100), 10)
    await mine.exchange()
    await mine.close()
    assert ledger.left == ["tokens"]


async def test_closing_without_a_ledger_is_no_error() -> None:
    ledger = FlakyLedger()
    mine = shares(ledger)
    used(mine.budget("tokens", 100), 10)
    ledger.is_away = True
    await mine.close()
    assert ledger.left == []


async def test_every_exchange_is_told() -> None:
    ledger, told = FlakyLedger(), []
    mine = shares(ledger)
    mine.on_change = lambda: told.append(ledger.is_away)
    await mine.exchange()
    ledger.is_away = True
    used(mine.budget("tokens", 100))
    await mine.exchange()
    assert told == [False, True]
