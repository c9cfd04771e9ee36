"""Every live request, in the queue that its status calls for."""

from collections import OrderedDict

from services.engine.request import Request, Status
from services.engine.schedule import ScheduledSequence


class Queues:
    """Waiting, reserved and running requests; each is found, moved and removed without a search."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[str, Request] = OrderedDict()
        self.reserved: dict[str, Request] = {}
        self.catching_up: dict[str, Request] = {}
        """Running, with a prompt to compute."""
        self.generating: dict[str, Request] = {}
        """Running, one token behind: each step gives them their next one."""
        self.last_tokens: dict[str, ScheduledSequence] = {}
        """The last token of each request that generates, in the same order, as the next step computes it."""
        self._all: dict[str, Request] = {}
        self._num_arrived = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._all

    @property
    def num_running(self) -> int:
        """Requests that take part in steps."""
        return len(self.catching_up) + len(self.generating)

    @property
    def num_active(self) -> int:
        """Requests that hold blocks."""
        return self.num_running + len(self.reserved)

    @property
    def first_waiting(self) -> Request | None:
        """The request that is admitted next."""
        return next(iter(self.waiting.values()), None)

    @property
    def newest(self) -> Request:
        """The running request that arrived last, exported ones left out: they are over with their first token.

        Looks at all running requests, but only when the pool is full.
        """
        running = (*self.generating.values(), *self.catching_up.values())
        return max((request for request in running if not request.spec.export), key=lambda request: request.arrival)

    def get(self, request_id: str) -> Request | None:
        """Return the live request of that id."""
        return self._all.get(request_id)

    def wait(self, request: Request, *, first: bool = False) -> None:
        """Let ``request`` wait, behind or before all others."""
        self._enter(request, Status.WAITING)
        self.waiting[request.request_id] = request
        self.waiting.move_to_end(request.request_id, last=not first)

    def reserve(self, request: Request) -> None:
        """Keep ``request`` out of steps while a peer computes it."""
        self._enter(request, Status.RESERVED)
        self.reserved[request.request_id] = request

    def run(self, request: Request) -> None:
        """Let ``request`` take part in steps."""
        if request.num_uncomputed_tokens == 1:
            self.generate(request)
        else:
            self._enter(request, Status.RUNNING)
            self.catching_up[request.request_id] = request

    def generate(self, request: Request) -> None:
        """Let steps compute the last token of ``request``; one that generates already has another one now."""
        if request.request_id not in self.generating:
            self._enter(request, Status.RUNNING)
            self.generating[request.request_id] = request
        self.last_tokens[request.request_id] = ScheduledSequence(
            request.token_ids[-1:], request.num_computed_tokens, request.block_table, needs_logits=True
        )

    def remove(self, request: Request) -> None:
        """Forget ``request``: it is over."""
        self._leave(request)
        request.status = Status.FINISHED
        del self._all[request.request_id]

    def _enter(self, request: Request, status: Status) -> None:
        if request.request_id in self._all:
            self._leave(request)
        else:
            self._all[request.request_id] = request
            self._num_arrived += 1
            request.arrival = self._num_arrived
        request.status = status

    def _leave(self, request: Request) -> None:
        for queue in (self.waiting, self.reserved, self.catching_up, self.generating, self.last_tokens):
            queue.pop(request.request_id, None)
