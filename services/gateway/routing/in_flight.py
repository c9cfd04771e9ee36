"""What a member is probably doing now: its last report, corrected by what this gateway did since."""

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


@dataclass(frozen=True)
class Estimate:
    """Requests and uncomputed prompt tokens that a member has now, as far as this gateway can know."""

    requests: int
    queued_tokens: int
    available_blocks: int
    total_blocks: int
    prefill_tokens_per_s: float


class InFlight:
    """One account per member id."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def started(self, member_id: str, num_tokens: int) -> None:
        """Count a request with ``num_tokens`` prompt tokens to compute."""
        account = self._account(member_id)
        account.own_requests += 1
        account.own_tokens += num_tokens

    def computed(self, member_id: str, num_tokens: int) -> None:
        """Take back prompt tokens that need no computing any more."""
        self._account(member_id).own_tokens -= num_tokens

    def ended(self, member_id: str) -> None:
        """Take back a request."""
        self._account(member_id).own_requests -= 1

    def reported(self, member_id: str, load: MemberLoad) -> None:
        """Take a load that the member told in a reply."""
        account = self._account(member_id)
        account.load = load
        account.requests_at_report = account.own_requests
        account.tokens_at_report = account.own_tokens

    def published(self, member_id: str, load: MemberLoad) -> None:
        """Take a load that the member published; the same one again says nothing new."""
        if self._account(member_id).published != load:
            self._account(member_id).published = load
            self.reported(member_id, load)

    def keep_only(self, member_ids: set[str]) -> None:
        """Forget members that left and have no request of ours."""
        for member_id in [member_id for member_id in self._accounts if member_id not in member_ids]:
            if self._accounts[member_id].own_requests == 0:
                del self._accounts[member_id]

    def estimate(self, member_id: str) -> Estimate:
        """Return the best guess for ``member_id``; never less than what is our own."""
        account = self._account(member_id)
        load = account.load
        requests = load.running + load.waiting + account.own_requests - account.requests_at_report
        tokens = load.queued_tokens + account.own_tokens - account.tokens_at_report
        return Estimate(
            requests=max(requests, account.own_requests),
            queued_tokens=max(tokens, account.own_tokens),
            available_blocks=load.available_blocks,
            total_blocks=load.total_blocks,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
        )

    def _account(self, member_id: str) -> _Account:
        return self._accounts.setdefault(member_id, _Account())
