"""This gateway's shares of the cluster's limits: what it may use, what it uses, and the exchange with the ledger."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.cluster.background import Outage
from services.errors import StateUnavailable
from services.gateway.admission.ledger import Ask, Grant, ShareLedger
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_RENEW_S = 1.0
_SHORT_S = 0.25
"""Between two exchanges while a share is too small: others give back within one renewal."""
_MIN_PAUSE_S = 0.1
"""Many needs are one exchange."""

_log = get_logger(__name__)


@dataclass(eq=False)
class Budget:
    """One limit, as far as this gateway may use it."""

    name: str
    total: int
    """In the whole cluster; 0 while there is none."""
    share: int
    in_use: int = 0
    num_wanted: int = 0
    """Waiting for it."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody here uses it or waits for it."""
        return not self.in_use and not self.num_wanted

    @property
    def is_short(self) -> bool:
        """Whether somebody may wait because other gateways hold a part of it."""
        return self.num_wanted > 0 and self.share < self.total

    def fits(self, amount: int) -> bool:
        """Return whether ``amount`` may be used now. What is larger than the share runs alone."""
        return not self.total or not self.in_use or self.in_use + amount <= self.share


class Shares:
    """The budgets of one gateway.

    A budget begins with the part that is this gateway's own if all gateways want it, and goes on with at least
    that while the ledger is away: a request never waits for the ledger, only for what others hold.
    """

    def __init__(self, ledger: ShareLedger, holder: str, clock: Clock) -> None:
        self.on_change: Callable[[], None] = _do_nothing
        """Called when shares may have grown."""
        self._ledger = ledger
        self._holder = holder
        self._clock = clock
        self._budgets: dict[str, Budget] = {}
        self._num_holders = 1
        self._needed = asyncio.Event()
        self._outage = Outage("shares", _log)

    @property
    def num_budgets(self) -> int:
        """Limits that something here uses or waits for, or did at the last exchange."""
        return len(self._budgets)

    def budget(self, name: str, total: int) -> Budget:
        """Return the budget of a limit, which is ``total`` now; 0 means no limit."""
        budget = self._budgets.get(name)
        if budget is None:
            budget = self._budgets[name] = Budget(name, 0, 0)
        if budget.total != total:
            begins = not budget.total
            budget.share = total // self._num_holders if begins else budget.share * total // budget.total
            budget.total = total
            self._needed.set()
        return budget

    def need(self) -> None:
        """Ask the ledger soon: somebody waits."""
        self._needed.set()

    async def follow(self) -> None:
        """Keep the shares as the ledger grants them, until cancelled."""
        while True:
            await self.exchange()
            await self._clock.sleep(_MIN_PAUSE_S)
            await self._until_due()

    async def exchange(self) -> None:
        """Tell the ledger what is used and wanted here, and take what it grants."""
        self._needed.clear()
        idle = self._drop_idle()
        asks = {budget.name: _ask(budget) for budget in self._budgets.values() if budget.total}
        try:
            if idle:
                await self._ledger.leave(self._holder, idle)
            self._take(await self._ledger.exchange(self._holder, asks) if asks else {})
            self._outage.succeeded()
        except StateUnavailable as error:
            self._outage.failed(error)
            for budget in self._budgets.values():
                budget.share = max(budget.share, budget.total // self._num_holders)
        self.on_change()

    async def close(self) -> None:
        """Give everything back; a ledger that is away takes it back by itself."""
        names = [budget.name for budget in self._budgets.values() if budget.total]
        try:
            if names:
                await self._ledger.leave(self._holder, names)
        except StateUnavailable as error:
            _log.warning("shares.not_returned", reason=error.message)

    async def _until_due(self) -> None:
        is_short = any(budget.is_short for budget in self._budgets.values())
        try:
            async with asyncio.timeout(_SHORT_S if is_short else _RENEW_S):
                await self._needed.wait()
        except TimeoutError:
            return

    def _drop_idle(self) -> list[str]:
        """Forget what is idle, and return what of that the ledger may know."""
        idle = [budget for budget in self._budgets.values() if budget.is_idle]
        for budget in idle:
            del self._budgets[budget.name]
        return [budget.name for budget in idle if budget.total]

    def _take(self, grants: Mapping[str, Grant]) -> None:
        for name, grant in grants.items():
            if name in self._budgets:
                self._budgets[name].share = grant.share
        if grants:
            self._num_holders = max(grant.num_holders for grant in grants.values())


def _ask(budget: Budget) -> Ask:
    return Ask(budget.total, budget.in_use, min(budget.in_use + budget.num_wanted, budget.total))


def _do_nothing() -> None:
    return
