"""Drive any OpenAI-compatible server with fixed workloads; one JSON line each.

    python -m bench.load http://127.0.0.1:8000 smollm2 [one batch16 short prefill mixed turns]

All streams are greedy with ``ignore_eos``, so that every server does the same work. Serve at least 4096 tokens
of context.

    one      1 stream, short prompt, 192 tokens out              decode tok/s at batch 1
    batch16  16 streams at once, short prompts, 128 tokens out   decode tok/s at batch 16
    short    8 prompts of ~100 tokens one after the other        TTFT
    prefill  6 prompts of ~2000 tokens one after the other       prompt tok/s
    mixed    6 streams of 192 tokens while a ~2000-token prompt
             arrives every 4 s                                   inter-token latency, TTFT of the long prompts
    turns    6 turns on a ~1500-token system prompt              TTFT of each turn
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "kid body information back parent face others level office door health person art war history party result "
    "change morning reason research girl guy moment air teacher force education"
)
WORDS = _TEXT.split()
LONG_PROMPT_WORDS = 1950
SHORT_PROMPT_WORDS = 70
ARRIVAL_INTERVAL_S = 4.0

Figures = dict[str, Any]


@dataclass
class Answer:
    """One streamed answer; times in seconds since the request was sent."""

    text: str = ""
    stamps: list[float] = field(default_factory=list)
    total: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def ttft(self) -> float:
        return self.stamps[0] if self.stamps else self.total

    @property
    def kv_wait_ms(self) -> float | None:
        """How long nothing but KV was waited for, by the answer's proof of path; None unless a peer computed it."""
        timings: dict[str, float] = self.usage.get("tandem", {}).get("timings_ms", {})
        return timings.get("transfer")

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.stamps)]


class Client:
    """Streams chats from one server."""

    def __init__(self, base_url: str, model: str, session: aiohttp.ClientSession, turn: int = 0) -> None:
        self._url = base_url.rstrip("/") + "/v1/chat/completions"
        self._model = model
        self._session = session
        self._turn = turn

    def prompt(self, num_words: int, seed: int) -> str:
        """Return words of this round: a prompt of an earlier round would be found in a prefix cache."""
        words = random.Random(f"{self._turn} {seed}")
        return " ".join(words.choice(WORDS) for _ in range(num_words))

    async def chat(self, messages: Sequence[dict[str, str]], max_tokens: int) -> Answer:
        body = {
            "model": self._model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        began, answer = time.perf_counter(), Answer()
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status} {(await response.text())[:300]}")
            async for line in response.content:
                if line.startswith(b"data: ") and line[6:].strip() != b"[DONE]":
                    _take(answer, json.loads(line[6:]), time.perf_counter() - began)
        answer.total = time.perf_counter() - began
        return answer


def _take(answer: Answer, chunk: dict[str, Any], now: float) -> None:
    answer.usage = chunk.get("usage") or answer.usage
    content = chunk["choices"][0]["delta"].get("content") if chunk.get("choices") else None
    if content:
        answer.stamps.append(now)
        answer.text += content


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


async def one(client: Client) -> Figures:
    await client.chat(user(client.prompt(40, 1)), 16)
    answer = await client.chat(user(client.prompt(40, 2)), 192)
    count = answer.usage["completion_tokens"]
    return {
        "tok_s": round((count - 1) / (answer.total - answer.ttft), 1),
        "ttft_ms": ms(answer.ttft),
        "itl_p50_ms": ms(quantile(answer.gaps, 0.5)),
    }


async def batch16(client: Client) -> Figures:
    began = time.perf_counter()
    answers = await asyncio.gather(*(client.chat(user(client.prompt(40, 100 + i)), 128) for i in range(16)))
    wall = time.perf_counter() - began
    return {
        "tok_s": round(sum(answer.usage["completion_tokens"] for answer in answers) / wall, 1),
        "ttft_p50_ms": ms(statistics.median(answer.ttft for answer in answers)),
    }


async def short(client: Client) -> Figures:
    answers = [await client.chat(user(client.prompt(SHORT_PROMPT_WORDS, 2000 + i)), 1) for i in range(9)][1:]
    return {
        "ttft_p50_ms": ms(statistics.median(answer.ttft for answer in answers)),
        "prompt_tokens": sum(answer.usage["prompt_tokens"] for answer in answers) // len(answers),
    }


async def prefill(client: Client) -> Figures:
    answers = [await client.chat(user(client.prompt(LONG_PROMPT_WORDS, 1000 + i)), 1) for i in range(6)][1:]
    seconds = [answer.total for answer in answers]
    tokens = sum(answer.usage["prompt_tokens"] for answer in answers)
    waits_ms = [answer.kv_wait_ms for answer in answers if answer.kv_wait_ms is not None]
    return {
        "prompt_tok_s": round(tokens / sum(seconds), 1),
        "ttft_p50_ms": ms(statistics.median(seconds)),
        "prompt_tokens": tokens // len(answers),
        **({"kv_wait_p50_ms": statistics.median(waits_ms)} if waits_ms else {}),
    }


async def mixed(client: Client) -> Figures:
    stop = asyncio.Event()
    arrivals = asyncio.create_task(_arrivals(client, stop))
    await asyncio.sleep(0.2)
    began = time.perf_counter()
    steady = await asyncio.gather(*(client.chat(user(client.prompt(40, 300 + i)), 192) for i in range(6)))
    wall = time.perf_counter() - began
    stop.set()
    longs = await arrivals
    gaps = [gap for answer in steady for gap in answer.gaps]
    return {
        "itl_p50_ms": ms(quantile(gaps, 0.5)),
        "itl_p99_ms": ms(quantile(gaps, 0.99)),
        "itl_max_ms": ms(max(gaps)),
        "steady_tok_s": round(sum(answer.usage["completion_tokens"] for answer in steady) / wall, 1),
        "long_ttft_p50_ms": ms(statistics.median(answer.ttft for answer in longs)),
        "longs": len(longs),
    }


async def _arrivals(client: Client, stop: asyncio.Event) -> list[Answer]:
    tasks: list[asyncio.Task[Answer]] = []
    while not stop.is_set():
        tasks.append(asyncio.create_task(client.chat(user(client.prompt(LONG_PROMPT_WORDS, 5000 + len(tasks))), 8)))
        try:
            async with asyncio.timeout(ARRIVAL_INTERVAL_S):
                await stop.wait()
        except TimeoutError:
            continue
    return await asyncio.gather(*tasks)


async def turns(client: Client) -> Figures:
    messages, ttft_ms = [{"role": "system", "content": client.prompt(1400, 9)}], []
    for turn in range(6):
        messages += user(client.prompt(60, 700 + turn))
        answer = await client.chat(messages, 48)
        ttft_ms.append(ms(answer.ttft))
        messages.append({"role": "assistant", "content": answer.text})
        await asyncio.sleep(0.3)
    return {"ttft_ms": ttft_ms, "ttft_turns_2_to_6_p50_ms": statistics.median(ttft_ms[1:])}


WORKLOADS: dict[str, Callable[[Client], Awaitable[Figures]]] = {
    "one": one,
    "batch16": batch16,
    "short": short,
    "prefill": prefill,
    "mixed": mixed,
    "turns": turns,
}


async def run(base_url: str, model: str, names: Sequence[str], turn: int = 0) -> AsyncIterator[tuple[str, Figures]]:
    """Run the named workloads one after the other, each yielded and printed as it ends; prompts differ by ``turn``.

    Raises:
        RuntimeError: the server refused a request.
        aiohttp.ClientError: the connection failed.
        TimeoutError: an answer took longer than ten minutes.
    """
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        client = Client(base_url, model, session, turn)
        await client.chat(user("hello"), 8)
        for name in names:
            figures = await WORKLOADS[name](client)
            print(json.dumps({"workload": name, **figures}), flush=True)
            yield name, figures


async def _print_all(base_url: str, model: str, names: Sequence[str]) -> None:
    async for _ in run(base_url, model, names):
        continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url", help="for example http://127.0.0.1:8000")
    parser.add_argument("model", help="name of the served model")
    parser.add_argument("workloads", nargs="*", choices=[*WORKLOADS, []], help="all if none is named")
    options = parser.parse_args()
    asyncio.run(_print_all(options.base_url, options.model, options.workloads or [*WORKLOADS]))


if __name__ == "__main__":
    main()
