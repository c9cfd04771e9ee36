"""The transfer thread: the only one that touches a transport, and the way to it from asyncio.

    event loop                          transfer thread
    connect, push --- commands --------> transport.connect, push
    await ...     <-- futures ---------- transport.poll -> events
                                         notices -> on_notice, right there

It polls fast while something is posted, connecting or expected, and sleeps otherwise.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from services.errors import InternalError, PeerError, PeerGone, TandemError
from services.telemetry.logs import get_logger
from services.transfer.pace import Pace, PaceSettings
from services.transfer.transport import (
    BlockPair,
    Endpoint,
    NoticeArrived,
    PeerConnected,
    PeerLost,
    PushDone,
    PushFailed,
    PushId,
    TransferEvent,
    Transport,
)
from services.transfer.waiters import Waiter

NoticeHandler = Callable[[str, bytes], None]
"""Gets an agent name and a notice, on the transfer thread; it neither raises nor waits."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Posted:
    key: Hashable
    waiter: Waiter[None]


class TransferThread:
    """Owns one transport from ``start`` to ``close``; its coroutines belong to one event loop."""

    def __init__(self, transport: Transport, *, on_notice: NoticeHandler, pace: PaceSettings | None = None) -> None:
        self._transport = transport
        self._endpoint = transport.endpoint()
        self._on_notice = on_notice
        self._pace = Pace(pace or PaceSettings())
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)
        self._wake = threading.Condition(threading.RLock())
        self._commands: deque[Callable[[], None]] = deque()
        self._num_expected = 0
        self._outstanding: Counter[Hashable] = Counter()
        """Pushes per key that were asked for and have not ended; guarded, like all above, by ``_wake``."""
        self._is_closing = False
        self._is_closed = False
        self._closing: list[Waiter[None]] = []
        self._connecting: dict[str, list[Waiter[None]]] = {}
        self._posted: dict[PushId, _Posted] = {}
        self._settling: dict[Hashable, list[Waiter[None]]] = {}
        self._is_failing = False
        """The last four belong to the transfer thread."""

    @property
    def is_closed(self) -> bool:
        """Whether the transport is closed, so that nothing reads or writes memory any more."""
        return self._is_closed

    @property
    def endpoint(self) -> Endpoint:
        """What a peer needs to push here."""
        return self._endpoint

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    async def connect(self, peer: Endpoint, timeout_s: float) -> None:
        """Make pushes to ``peer`` possible.

        Raises:
            IncompatiblePeer: another transport, layout or block size.
            PeerGone: it cannot be reached.
            PeerStalled: no answer within ``timeout_s``.
        """
        waiter: Waiter[None] = Waiter()
        self._submit(lambda: self._connect(peer, waiter))
        await waiter.result(timeout_s, f"Connecting to {peer.agent}")

    async def push(
        self, agent: str, blocks: Sequence[BlockPair], notice: bytes, *, key: Hashable, timeout_s: float
    ) -> None:
        """Write ``blocks`` and ``notice`` to a connected peer; return when local memory is no longer read.

        However this ends, ``is_outstanding(key)`` and ``wait_settled(key)`` say whether the push has ended:
        after ``PeerStalled``, or when the caller is cancelled, it has not.

        Raises:
            InvalidRequest: see ``Transport.push``; nothing was posted.
            Overloaded: too many pushes to this peer are outstanding; nothing was posted.
            PeerGone: the peer is not connected, or was lost on the way.
            PeerStalled: not done within ``timeout_s``.
        """
        waiter: Waiter[None] = Waiter()
        with self._wake:
            self._submit(lambda: self._push(agent, blocks, notice, _Posted(key, waiter)))
            self._outstanding[key] += 1
        await waiter.result(timeout_s, f"A push to {agent}")

    def is_outstanding(self, key: Hashable) -> bool:
        """Return whether a push with this key may still read local memory."""
        with self._wake:
            return self._outstanding[key] > 0

    async def wait_settled(self, key: Hashable, timeout_s: float) -> None:
        """Return once no push with this key is outstanding.

        Raises:
            PeerStalled: one still is after ``timeout_s``.
            PeerGone: this thread is closed.
        """
        waiter: Waiter[None] = Waiter()
        self._submit(lambda: self._wait_settled(key, waiter))
        await waiter.result(timeout_s, "The end of pushes")

    def expect(self, change: int) -> None:
        """Say that ``change`` more (or fewer) notices are waited for; while there are any, polling is fast."""
        with self._wake:
            if self._num_expected + change < 0:
                raise InternalError("More notices were taken back than expected.")
            self._num_expected += change
            self._wake.notify()

    async def close(self, timeout_s: float) -> None:
        """Close the transport and end the thread; whoever still waits gets ``PeerGone``. Idempotent.

        Raises:
            PeerStalled: the transport did not close within ``timeout_s``; the thread goes on trying.
        """
        waiter: Waiter[None] = Waiter()
        with self._wake:
            is_first = not self._is_closing
            self._is_closing = True
            if self._is_closed:
                return
            self._closing.append(waiter)
            self._wake.notify()
        if is_first and self._thread.ident is None:
            self._shut_down()  # never started, so there is no other thread to touch the transport
        await waiter.result(timeout_s, "Closing the transport")

    def _submit(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._is_closing:
                raise PeerGone("The transfer thread is closed.")
            self._commands.append(command)
            self._wake.notify()

    # From here on: the transfer thread.

    def _run(self) -> None:
        while not self._is_closing:
            did_something = self._run_commands()
            did_something |= self._poll()
            if did_something:
                self._pace.start_over()
            self._sleep()
        self._shut_down()

    def _run_commands(self) -> bool:
        with self._wake:
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        return bool(commands)

    def _poll(self) -> bool:
        events: list[TransferEvent] = []
        error = _attempt(lambda: events.extend(self._transport.poll()))
        if error is not None and not self._is_failing:
            self._fail_waiters(_explain(error, "transfer_poll_failed"))
        self._is_failing = error is not None
        for event in events:
            self._dispatch(event)
        return bool(events)

    def _sleep(self) -> None:
        with self._wake:
            if not self._commands and not self._is_closing:
                self._wake.wait(self._pace.next_s(is_busy=self._is_busy()))

    def _is_busy(self) -> bool:
        return not self._is_failing and bool(self._posted or self._num_expected or self._is_connecting())

    def _is_connecting(self) -> bool:
        return any(waiter.is_waited_for for waiters in self._connecting.values() for waiter in waiters)

    def _dispatch(self, event: TransferEvent) -> None:
        match event:
            case NoticeArrived():
                self._hand_over(event)
            case PushDone():
                self._end(event.push, None)
            case PushFailed():
                self._end(event.push, event.error)
            case PeerConnected():
                for waiter in self._connecting.pop(event.agent, ()):
                    waiter.resolve(None)
            case PeerLost():
                _log.event("transfer_peer_lost", agent=event.agent, reason=event.error.message)
                for waiter in self._connecting.pop(event.agent, ()):
                    waiter.fail(event.error)

    def _hand_over(self, event: NoticeArrived) -> None:
        error = _attempt(lambda: self._on_notice(event.agent, event.notice))
        if error is not None:
            _explain(error, "transfer_notice_handler_failed")

    def _connect(self, peer: Endpoint, waiter: Waiter[None]) -> None:
        waiters = self._connecting.setdefault(peer.agent, [])
        waiters.append(waiter)
        error = _attempt(lambda: self._transport.connect(peer))
        if error is not None:
            waiters.remove(waiter)
            waiter.fail(_explain(error, "transfer_connect_failed"))

    def _push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes, posted: _Posted) -> None:
        error = _attempt(lambda: self._post(agent, blocks, notice, posted))
        if error is not None:
            self._settle(posted.key)
            posted.waiter.fail(_explain(error, "transfer_push_failed"))

    def _post(self, agent: str, blocks: Sequence[BlockPair], notice: bytes, posted: _Posted) -> None:
        self._posted[self._transport.push(agent, blocks, notice)] = posted

    def _end(self, push: PushId, error: PeerError | None) -> None:
        posted = self._posted.pop(push, None)
        if posted is None:
            _log.warning("transfer_end_of_unknown_push", push=push)
            return
        self._settle(posted.key)
        if error is None:
            posted.waiter.resolve(None)
        else:
            posted.waiter.fail(error)

    def _settle(self, key: Hashable) -> None:
        with self._wake:
            self._outstanding[key] -= 1
            if self._outstanding[key]:
                return
            del self._outstanding[key]
        for waiter in self._settling.pop(key, ()):
            waiter.resolve(None)

    def _wait_settled(self, key: Hashable, waiter: Waiter[None]) -> None:
        if self.is_outstanding(key):
            self._settling.setdefault(key, []).append(waiter)
        else:
            waiter.resolve(None)

    def _fail_waiters(self, error: TandemError) -> None:
        """Fail everybody who waits for an event; what is posted stays outstanding until its event comes."""
        waiting = [posted.waiter for posted in self._posted.values()]
        for waiters in (*self._connecting.values(), *self._settling.values()):
            waiting += waiters
        self._connecting.clear()
        self._settling.clear()
        for waiter in waiting:
            waiter.fail(error)

    def _shut_down(self) -> None:
        error = _attempt(self._transport.close)
        if error is not None:
            _explain(error, "transfer_close_failed")
        self._run_commands()
        self._fail_waiters(PeerGone("The transfer thread was closed."))
        with self._wake:
            self._is_closed = True
            for waiter in self._closing:
                waiter.resolve(None)


def _attempt(action: Callable[[], None]) -> Exception | None:
    """Run what may have a defect, so that it does not end the transfers of everybody else."""
    try:
        action()
    except Exception as error:
        return error
    return None


def _explain(error: Exception, event: str) -> TandemError:
    """Return what a waiter shall see; log what nobody raised on purpose."""
    if isinstance(error, TandemError):
        return error
    _log.failure(event, error)
    return InternalError(f"The transfer thread met a defect: {error!r}")
