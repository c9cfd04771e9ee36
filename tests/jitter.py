"""``pytest --jitter SEED``: delays as a slow, busy host has them, so that tests that rely on luck fail.

Threads, loops, servers and processes are held up where they may be anyway: before a thread begins, takes its next
command or tells a loop something, before a loop goes round, before an answer of Redis or of a worker arrives, before a
new process does anything. In each test some of them are slow, others are not. Nothing is lost, and what happens in
order in one of them stays in order.
"""

import asyncio
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import thread as thread_pool
from contextlib import aclosing
from functools import wraps
from typing import Any

import pytest

SHARES = (0.0, 0.03, 0.3)
"""How often one that is quick, usual or slow is held up."""
SHORT_S, LONG_S = (0.001, 0.03), 0.2
LONG_SHARE = 0.04
LOOP_SHARE = 0.1
"""How much seldomer a loop is held up, which goes round much more often than anything else happens."""
PROCESS_SHARE, PROCESS_S = 0.5, (0.01, 1.0)
SWITCH_S = 1e-5
"""For how long a thread runs Python before another may."""


class Jitter:
    """Draws who is slow and how long each of its delays is, from a seed."""

    def __init__(self) -> None:
        self._random = random.Random()
        self._shares: dict[object, float] = {}

    def begin(self, seed: str) -> None:
        """Draw from ``seed`` from now on."""
        self._random.seed(seed)
        self._shares.clear()

    def pause(self) -> None:
        """Hold up the thread that calls."""
        if delay_s := self._delay_s(threading.get_ident()):
            time.sleep(delay_s)

    def pause_loop(self) -> None:
        """Hold up the event loop that calls, seldom."""
        if self._random.random() < LOOP_SHARE:
            self.pause()

    def pause_other_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hold up the thread that calls unless it runs ``loop``."""
        if asyncio._get_running_loop() is not loop:
            self.pause()

    async def pause_task(self, peer: object) -> None:
        """Hold up the task that calls, which hears from ``peer``."""
        if delay_s := self._delay_s(peer):
            await asyncio.sleep(delay_s)

    def process_delay_s(self) -> float:
        """Return how long a new process waits before it begins."""
        return self._random.uniform(*PROCESS_S) if self._random.random() < PROCESS_SHARE else 0.0

    def _delay_s(self, who: object) -> float:
        share = self._shares.setdefault(who, self._random.choice(SHARES))
        if self._random.random() >= share:
            return 0.0
        return LONG_S if self._random.random() < LONG_SHARE else self._random.uniform(*SHORT_S)


_jitter = pytest.StashKey[Jitter]()
_patches = pytest.StashKey[pytest.MonkeyPatch]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--jitter", metavar="SEED", help="delay threads and answers as a slow host does (docs/testing.md)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--jitter"):
        config.stash[_jitter], config.stash[_patches] = Jitter(), pytest.MonkeyPatch()
        _shake(config.stash[_jitter], config.stash[_patches])
        sys.setswitchinterval(SWITCH_S)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _patches in config.stash:
        config.stash[_patches].undo()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _jitter in item.config.stash:
        item.config.stash[_jitter].begin(f"{item.config.getoption('--jitter')} {item.nodeid}")


def _shake(jitter: Jitter, patches: pytest.MonkeyPatch) -> None:
    from redis.asyncio.connection import DefaultParser

    from services.rpc import server
    from services.transfer.loop import TransferThread
    from services.worker.engine_thread import EngineThread

    def before(owner: Any, name: str, pause: Callable[..., None]) -> None:
        patches.setattr(owner, name, _after(pause, getattr(owner, name)))

    def before_async(owner: Any, name: str) -> None:
        patches.setattr(owner, name, _after_async(lambda: jitter.pause_task(owner), getattr(owner, name)))

    for owner, name in (
        (threading.Thread, "run"),
        (thread_pool._WorkItem, "run"),
        (EngineThread, "_serve_inbox"),
        (EngineThread, "_step"),
        (EngineThread, "_run_command"),
        (TransferThread, "_poll"),
    ):
        before(owner, name, lambda *arguments: jitter.pause())
    before(asyncio.BaseEventLoop, "_run_once", lambda loop: jitter.pause_loop())
    before(asyncio.BaseEventLoop, "call_soon_threadsafe", lambda loop, *rest: jitter.pause_other_thread(loop))
    before_async(DefaultParser, "read_response")
    before_async(server._Gate, "intercept_service")
    patches.setattr(server, "_writer", _with_late_messages(jitter, server._writer))
    patches.setattr(subprocess.Popen, "__init__", _with_late_begin(jitter, subprocess.Popen.__init__))


def _after(pause: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def late(*arguments: Any, **named: Any) -> Any:
        pause(*arguments)
        return function(*arguments, **named)

    return late


def _after_async(
    pause: Callable[[], Awaitable[None]], function: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    @wraps(function)
    async def late(*arguments: Any, **named: Any) -> Any:
        await pause()
        return await function(*arguments, **named)

    return late


def _with_late_messages(jitter: Jitter, writer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Hold up each message of a servicer's stream on its way to the caller."""

    def late_writer(generate: Any) -> Any:
        async def late(request: Any, context: Any) -> AsyncGenerator[Any, None]:
            async with aclosing(generate(request, context)) as messages:
                async for message in messages:
                    await jitter.pause_task(generate.__qualname__)
                    yield message

        return writer(late)

    return late_writer


def _with_late_begin(jitter: Jitter, begin: Callable[..., None]) -> Callable[..., None]:
    """Let a shell wait before it becomes the command; one that cannot be found fails as ever."""

    @wraps(begin)
    def late(process: Any, command: str | Sequence[Any], *arguments: Any, **named: Any) -> None:
        delay_s = jitter.process_delay_s()
        if delay_s and not isinstance(command, str) and not named.get("executable") and shutil.which(command[0]):
            command = ["sh", "-c", f'sleep {delay_s:.3f}; exec "$@"', "sh", *command]
        begin(process, command, *arguments, **named)

    return late
