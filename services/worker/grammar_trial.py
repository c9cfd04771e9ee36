"""Tries grammars in another process, which can be ended: a deadline and a memory limit that really hold.

    decode worker                                trial process (services.worker.grammar_child)
      | tokenizer, vocabulary, end tokens --------->| reads the tokenizer, once
      |<---------------------------------- ready ---|
      | definition -------------------------------->| compiles, with the limits that the worker has
      |<-------------------------- error or none ---|
      | ... or the deadline passes: killed, and started anew when it is needed again

Native code cannot be stopped from within its process. What compiles there in time compiles in the worker, too.
"""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from services.engine.grammar import PARAM
from services.errors import InvalidRequest, Unavailable
from services.parent_death import dying_with_parent
from services.telemetry.logs import get_logger

_START_TIMEOUT_S = 60.0
_COMMAND = (sys.executable, "-m", "services.worker.grammar_child")

_log = get_logger(__name__)


class Trial(Protocol):
    """Finds out what a grammar costs."""

    async def run(self, definition: str) -> None:
        """Return if the definition compiles within its limits; one call at a time.

        Raises:
            InvalidRequest: it does not.
            Unavailable: it cannot be tried now.
        """

    async def close(self) -> None:
        """Give everything back."""


@dataclass(frozen=True)
class GrammarSetup:
    """What grammars are built over, as ``LLGuidanceGrammars`` takes it."""

    tokenizer_json: str
    vocab_size: int
    end_token_ids: tuple[int, ...]


class TrialProcess:
    """A child process that compiles one grammar at a time; it starts when it is first needed."""

    def __init__(self, setup: GrammarSetup, *, timeout_s: float) -> None:
        self._setup = setup
        self._timeout_s = timeout_s
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the child, if it runs."""
        return None if self._process is None else self._process.pid

    async def run(self, definition: str) -> None:
        """Let the child compile; kill it when it takes too long, or when nobody waits for it any more."""
        process = await self._started()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await _asked(process, definition)
        except TimeoutError as error:
            raise InvalidRequest(
                f"The schema takes longer than {self._timeout_s:g} s to compile: make it simpler.", param=PARAM
            ) from error
        except EOFError as error:
            raise InvalidRequest(
                "The schema takes more memory than it may to compile: make it simpler.", param=PARAM
            ) from error
        else:
            self._process = process
        finally:
            if self._process is None:
                _log.warning("grammars.trial_ended", pid=process.pid)
                await _killed(process)
        if answer is not None:
            raise InvalidRequest(answer, param=PARAM)

    async def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is not None:
            await _killed(process)

    async def _started(self) -> Process:
        """Take the child out of ``self``, which gets it back after an answer, or start one."""
        process, self._process = self._process, None
        if process is not None:
            return process
        command = dying_with_parent(_COMMAND, signal.SIGKILL)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await _asked(process, asdict(self._setup))
        except BaseException as error:
            await _killed(process)
            if isinstance(error, TimeoutError | EOFError):
                raise Unavailable("The process that tries grammars did not start.") from error
            raise
        _log.event("grammars.trial_started", pid=process.pid)
        return process


async def _asked(process: Process, question: Any) -> str | None:
    """Return the child's answer: what is wrong, or None.

    Raises:
        EOFError: the child ended instead.
    """
    if process.stdin is None or process.stdout is None:
        raise EOFError
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
        await process.stdin.drain()
    except ConnectionError as error:
        raise EOFError from error
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer: str | None = json.loads(line)
    return answer


async def _killed(process: Process) -> None:
    """End the child for good."""
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        process.kill()
    await process.wait()
