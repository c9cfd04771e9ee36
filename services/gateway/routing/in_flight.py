"""What a member is probably doing now: its last report, corrected by what this gateway did since."""

from collections.abc import Collection
from dataclasses import dataclass, field

from services.cluster.registry import MemberLoad


@dataclass
class _Account:
    own_requests: int = 0
    own_tokens: int = 0
    load: MemberLoad = field(default_factory=MemberLoad)
    requests_at_report: int = 0
    tokens_at_report: int = 0
    published: MemberLoad | None = None
    estimate: "Estimate | None" = None
    """Of this account as it is; None once it changed."""


@dataclass(frozen=True)
class Estimate:
    """Requests and uncomputed prompt tokens that a member has now, as far as this gateway can know."""

    requests: int
    queued_tokens: int
    used_share: float
    """Of its pool."""
    block_share: float
    """What one block is of its pool; 0 if it did not tell."""
    prefill_tokens_per_s: float


class InFlight:
    """One account per member id."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def started(self, member_id: str, num_tokens: int) -> None:
        """Count a request with ``num_tokens`` prompt tokens to compute."""
        account = self._changing(member_id)
        account.own_requests += 1
        account.own_tokens += num_tokens

    def computed(self, member_id: str, num_tokens: int) -> None:
        """Take back prompt tokens that need no computing any more."""
        self._changing(member_id).own_tokens -= num_tokens

    def ended(self, member_id: str) -> None:
        """Take back a request."""
        self._changing(member_id).own_requests -= 1

    def reported(self, member_id: str, load: MemberLoad) -> None:
        """Take a load that the member told in a reply."""
        account = self._changing(member_id)
        account.load = load
        account.requests_at_report = account.own_requests
        account.tokens_at_report = account.own_tokens

    def published(self, member_id: str, load: MemberLoad) -> None:
        """Take a load that the member published; the same one again says nothing new."""
        if self._account(member_id).published != load:
            self._account(member_id).published = load
            self.reported(member_id, load)

    def keep_only(self, member_ids: Collection[str]) -> None:
        """Forget members that left and have no request of ours."""
        for member_id in [member_id for member_id in self._accounts if member_id not in member_ids]:
            if self._accounts[member_id].own_requests == 0:
                del self._accounts[member_id]

    def estimate(self, member_id: str) -> Estimate:
        """Return the best guess for ``member_id``; never less than what is our own."""
        account = self._accounts.get(member_id) or self._account(member_id)
        return account.estimate or _estimated(account)

    def _changing(self, member_id: str) -> _Account:
        account = self._account(member_id)
        account.estimate = None
        return account

    def _account(self, member_id: str) -> _Account:
        if member_id not in self._accounts:
            self._accounts[member_id] = _Account()
        return self._accounts[member_id]


def _estimated(account: _Account) -> Estimate:
    load = account.load
    requests = load.running + load.waiting + account.own_requests - account.requests_at_report
    tokens = load.queued_tokens + account.own_tokens - account.tokens_at_report
    num_used = load.total_blocks - load.available_blocks
    account.estimate = Estimate(
        requests=max(requests, account.own_requests),
        queued_tokens=max(tokens, account.own_tokens),
        used_share=num_used / load.total_blocks if load.total_blocks else 0.0,
        block_share=1 / load.total_blocks if load.total_blocks else 0.0,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
    )
    return account.estimate
