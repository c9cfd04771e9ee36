"""The engine thread: runs ``step()`` for ever, takes commands through one inbox, answers through one outbox.

    event loop --- inbox: commands ------> engine thread
    event loop <-- outbox: results, steps - engine thread

Commands run between two steps, in order of arrival. Events of a request reach its ``EngineStream`` in
the order in which they happened, and never before the result of the command that made them possible.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from services.engine.engine import Engine
from services.engine.output import (
    ChunkComputed,
    FinalBlocks,
    HandedOver,
    RequestFailed,
    StepOutput,
    StepStats,
    TokenOutput,
)
from services.engine.prefix_cache import CacheChanges
from services.engine.scheduler import Scheduler
from services.errors import InternalError, InvalidRequest, Overloaded, TandemError, Unavailable
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

MAX_UNREAD = 2**18
"""About 40 MB."""

_log = get_logger(__name__)
Result = TypeVar("Result")
EngineEvent = FinalBlocks | ChunkComputed | TokenOutput | RequestFailed | HandedOver
Command = Callable[[Scheduler], Result]


@dataclass
class Unread:
    """What all streams of a worker hold that nobody has taken; a token counts once, and once more for each logprob."""

    count: int = 0


class EngineStream:
    """The events of one request; owned by the servicer that runs it."""

    def __init__(self, unread: Unread) -> None:
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self._unread = unread
        self._is_cut = False
        self.num_unread = 0
        """This stream's part of what is unread."""

    async def next(self) -> EngineEvent:
        """Return the next event.

        Raises:
            TandemError: the engine gave up on the request.
        """
        return _raised(self._taken(await self._events.get()))

    def drain(self) -> list[EngineEvent]:
        """Return what has happened already, without waiting."""
        return [_raised(event) for event in self.remaining()]

    def remaining(self) -> list[EngineEvent]:
        """Return what nobody has taken; for the owner of the thread."""
        return [self._taken(self._events.get_nowait()) for _ in range(self._events.qsize())]

    def deliver(self, event: EngineEvent) -> bool:
        """Append an event (called on the event loop); return whether somebody may still take it."""
        if self._is_cut:
            return False
        self._count(_size(event))
        self._events.put_nowait(event)
        return True

    def cut(self, failure: RequestFailed) -> list[EngineEvent]:
        """End the stream with a failure, and return what nobody will take any more."""
        dropped = self.remaining()
        self.deliver(failure)
        self._is_cut = True
        return dropped

    def _taken(self, event: EngineEvent) -> EngineEvent:
        self._count(-_size(event))
        return event

    def _count(self, change: int) -> None:
        self.num_unread += change
        self._unread.count += change


class EngineThread:
    """Owns an engine and the thread that runs it."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Clock,
        seal: Callable[[FinalBlocks], FinalBlocks],
        on_step: Callable[[StepStats, float], None],
        on_cache_change: Callable[[CacheChanges], None],
        on_defect: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._seal = seal
        self._on_step = on_step
        self._on_cache_change = on_cache_change
        self._on_defect = on_defect
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, EngineStream] = {}
        self.unread = Unread()
        self._pending: set[asyncio.Future[Any]] = set()
        self._defect: TandemError | None = None
        self.load = engine.scheduler.load()
        """How busy the engine was after its last step or command; read it from any thread."""
        self.max_sequences = engine.scheduler.max_active
        """Most sequences that run at once."""
        self.num_steps = 0
        self.num_commands = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # -- event loop side -----------------------------------------------------------------------------

    def subscribe(self, request_id: str) -> EngineStream:
        """Open the stream of a request that is about to be added or reserved.

        Raises:
            InvalidRequest: a request of that id is in progress.
        """
        if request_id in self._streams:
            raise InvalidRequest(f"A request {request_id} is in progress.", param="request_id")
        stream = EngineStream(self.unread)
        self._streams[request_id] = stream
        return stream

    def unsubscribe(self, request_id: str) -> None:
        """Close a stream; events that are left or still come are dropped, but the holds they name are released."""
        stream = self._streams.pop(request_id, None)
        for event in stream.remaining() if stream is not None else ():
            self._drop(event)

    async def call(self, command: Command[Result]) -> Result:
        """Run ``command`` on the engine thread between two steps and return its result, or raise its error."""
        future: asyncio.Future[Result] = self._loop.create_future()

        def run() -> None:
            try:
                result = self._run_command(command)
            except TandemError as error:
                self._loop.call_soon_threadsafe(_fail, future, error)
            else:
                self._loop.call_soon_threadsafe(_resolve, future, result)

        if self._defect is not None:
            raise self._defect
        self._inbox.put(run)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return await future

    def post(self, command: Command[None]) -> None:
        """Run ``command`` between two steps; it must not raise. Without an engine there is nothing left to do."""
        if self._defect is None:
            self._inbox.put(lambda: self._run_command(command))

    async def close(self, timeout_s: float) -> None:
        """End the thread after the running step."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)
        self._fail_all(Unavailable("The worker is shutting down."))

    # -- engine thread side --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._serve_inbox():
                if self._engine.scheduler.has_work:
                    self._step()
        except Exception as error:
            _log.failure("engine.defect", error)
            self._loop.call_soon_threadsafe(self._break)

    def _serve_inbox(self) -> bool:
        """Run waiting commands; wait for one when there is nothing to compute. False ends the thread."""
        block = not self._engine.scheduler.has_work
        while True:
            try:
                run = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if run is None:
                return False
            run()
            block = False

    def _run_command(self, command: Command[Result]) -> Result:
        self.num_commands += 1
        try:
            return command(self._engine.scheduler)
        finally:
            self.load = self._engine.scheduler.load()
            self._tell_cache_changes()

    def _step(self) -> None:
        began = self._clock.now()
        output = self._engine.step()
        self.num_steps += 1
        self.load = self._engine.scheduler.load()
        output = replace(
            output,
            final_blocks=tuple(self._seal(final) for final in output.final_blocks),
            chunks=tuple(replace(chunk, step_began_s=began) for chunk in output.chunks),
        )
        self._tell_cache_changes()
        self._loop.call_soon_threadsafe(self._publish, output, self._clock.now() - began)

    def _tell_cache_changes(self) -> None:
        if changes := self._engine.scheduler.take_cache_changes():
            self._loop.call_soon_threadsafe(self._on_cache_change, changes)

    def emit(self, event: EngineEvent) -> None:
        """Send an event to its stream from within a command."""
        self._loop.call_soon_threadsafe(self._deliver, event)

    # -- back on the event loop ----------------------------------------------------------------------

    def _publish(self, output: StepOutput, duration_s: float) -> None:
        self._on_step(output.stats, duration_s)
        events: list[EngineEvent] = [*output.final_blocks, *output.chunks, *output.tokens, *output.failures]
        for event in events:
            self._deliver(event)

    def _deliver(self, event: EngineEvent) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None or not stream.deliver(event):
            self._drop(event)
        elif self.unread.count > MAX_UNREAD:
            self._cut_the_slowest()

    def _cut_the_slowest(self) -> None:
        """Give up the request whose reader is furthest behind; its gateway continues it when the reader comes on."""
        request_id, stream = max(self._streams.items(), key=lambda each: each[1].num_unread)
        _log.warning("stream.cut", request_id=request_id, unread=stream.num_unread)
        error = Overloaded("The reader of this stream is too far behind.", retry_after_s=1.0)
        for event in stream.cut(RequestFailed(request_id, error)):
            self._drop(event)
        self.post(lambda scheduler: scheduler.cancel(request_id))

    def _drop(self, event: EngineEvent) -> None:
        if isinstance(event, FinalBlocks | HandedOver) and (hold := event.hold) is not None:
            self.post(lambda scheduler: scheduler.release(hold))

    def _break(self) -> None:
        self._fail_all(InternalError("The engine of this worker failed; its log has the details."))
        self._on_defect()

    def _fail_all(self, error: TandemError) -> None:
        self._defect = error
        for request_id, stream in self._streams.items():
            stream.deliver(RequestFailed(request_id, error))
        for future in list(self._pending):
            _fail(future, error)


def _size(event: EngineEvent) -> int:
    return 1 + len(event.token.top) if isinstance(event, TokenOutput) else 1


def _raised(event: EngineEvent) -> EngineEvent:
    if isinstance(event, RequestFailed):
        raise event.error
    return event


def _resolve(future: "asyncio.Future[Result]", result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Result]", error: TandemError) -> None:
    if not future.done():
        future.set_exception(error)
