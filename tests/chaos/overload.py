"""Callers that ask without end, and what they and the processes of the cluster experience meanwhile."""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

MAX_PAUSE_S = 1.0
"""After a refusal; the least that Retry-After can ask for, so that callers are impatient when it asks for more."""
SAMPLE_S = 0.5
WINDOW_GAPS = 100
_PAGE_BYTES = 4096
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@dataclass
class Heard:
    """What one project was answered."""

    num_answers: int = 0
    num_tokens: int = 0
    """Output tokens, counted as they came."""
    num_contended_tokens: int = 0
    """Those that came while all projects were served and had more to ask."""
    num_refused: int = 0
    gaps_s: list[float] = field(default_factory=list)
    """Between two pieces of text of one stream."""
    complaints: list[str] = field(default_factory=list)
    """Whatever should not have happened."""

    @property
    def num_asked(self) -> int:
        return self.num_answers + self.num_refused

    @property
    def median_gap_s(self) -> float:
        return statistics.median(self.gaps_s)

    @property
    def p99_gap_s(self) -> float:
        """Return the median of the 99th percentiles of windows of ``WINDOW_GAPS``: a hiccup of the host is none."""
        windows = [self.gaps_s[first : first + WINDOW_GAPS] for first in range(0, len(self.gaps_s), WINDOW_GAPS)]
        whole = [window for window in windows if len(window) == WINDOW_GAPS]
        return statistics.median(statistics.quantiles(window, n=100)[-1] for window in whole)


@dataclass(eq=False)
class Load:
    """Callers of one project, each with one request at a time."""

    url: str
    key: str
    model: str
    num_words: int
    max_tokens: int
    heard: Heard = field(default_factory=Heard)
    is_over: bool = False
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def run(self, num_callers: int) -> None:
        """Ask until ``is_over``; streams that are open then go on to their end."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            for _ in range(num_callers):
                tasks.create_task(self._ask_for_ever(session))

    async def _ask_for_ever(self, session: aiohttp.ClientSession) -> None:
        while not self.is_over:
            headers = {"authorization": f"Bearer {self.key}"}
            async with session.post(f"{self.url}/v1/chat/completions", json=self._body(), headers=headers) as response:
                if response.status == 200:
                    await self._listen(response)
                    continue
                self._note_refusal(response.status, response.headers, await response.json())
            await asyncio.sleep(MAX_PAUSE_S)

    async def _listen(self, response: aiohttp.ClientResponse) -> None:
        last_s, reason = None, None
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                self.heard.complaints.append(f"broken stream: {event}")
                return
            choice = event["choices"][0]
            reason = choice["finish_reason"] or reason
            if choice["delta"].get("content"):
                now_s = time.perf_counter()
                if last_s is not None:
                    self.heard.gaps_s.append(now_s - last_s)
                last_s = now_s
                self.heard.num_tokens += 1
        self.heard.num_answers += 1
        if reason != "length":
            self.heard.complaints.append(f"stream ended with {reason}")

    def _note_refusal(self, status: int, headers: Mapping[str, str], body: Any) -> None:
        self.heard.num_refused += 1
        wait = headers.get("retry-after", "")
        code = body.get("error", {}).get("code")
        if status != 429 or not wait.isdigit() or not 1 <= int(wait) <= 60 or code != "rate_limit_exceeded":
            self.heard.complaints.append(f"refused with {status}, retry-after {wait!r}: {body}")

    def _body(self) -> dict[str, Any]:
        number = next(self._numbers)
        words = " ".join(_WORDS[(number * 7 + place * place) % len(_WORDS)] for place in range(self.num_words))
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": f"{self.key[-6:]} {number} {words}"}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }


@dataclass
class Memory:
    """Resident memory of processes, sampled: name -> (seconds since the start, bytes)."""

    pids: Mapping[str, int]
    samples: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    is_over: bool = False
    began_s: float = 0.0

    @property
    def age_s(self) -> float:
        """Seconds since the first sample; 0 before."""
        return time.monotonic() - self.began_s if self.samples else 0.0

    async def watch(self) -> None:
        """Sample until ``is_over``."""
        self.began_s = time.monotonic()
        while not self.is_over:
            for name, pid in self.pids.items():
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.samples.setdefault(name, []).append((self.age_s, pages * _PAGE_BYTES))
            await asyncio.sleep(SAMPLE_S)

    def median(self, name: str, begin_s: float, end_s: float) -> float:
        """Return the median between two moments."""
        return statistics.median(size for moment_s, size in self.samples[name] if begin_s <= moment_s < end_s)


async def overload(
    loads: Mapping[Load, int], memory: Memory, *, is_enough: Callable[[], bool], deadline_s: float
) -> None:
    """Let all loads run, each with its number of callers, until it is enough and no longer than ``deadline_s``."""
    async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as tasks:
        tasks.create_task(memory.watch())
        running = [tasks.create_task(load.run(num_callers)) for load, num_callers in loads.items()]
        await _until(lambda: all(load.heard.num_tokens for load in loads))
        before = {load: load.heard.num_tokens for load in loads}
        await _until(is_enough)
        for load in loads:
            load.heard.num_contended_tokens = load.heard.num_tokens - before[load]
            load.is_over = True
        await asyncio.wait(running)
        memory.is_over = True


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
