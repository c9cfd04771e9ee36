"""The load process: many streaming chats at once over plain sockets; counts bytes and tokens, and takes times.

Prints one JSON line.
"""

import argparse
import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.front.model import MODEL, NUM_STEPS

_WORD = re.compile(rb" t(\d+)\.")
_END = b"data: [DONE]\n\n"


@dataclass
class Seen:
    """What all streams saw."""

    num_bytes: int = 0
    num_tokens: int = 0
    num_ended: int = 0
    latencies_s: list[float] = field(default_factory=list)
    began_s: float = 0.0
    ended_s: float = 0.0


class Stream(asyncio.Protocol):
    """One chat; the connection is closed by us when its end came."""

    def __init__(self, request: bytes, seen: Seen, made_at: np.ndarray, ended: "asyncio.Future[None]") -> None:
        self._request = request
        self._seen = seen
        self._made_at = made_at
        self._ended = ended
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        """Ask."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count what came; the text of a token is never cut by us, but may be by the network."""
        now_s, seen = time.monotonic(), self._seen
        seen.num_bytes += len(data)
        data = self._tail + data
        events, _, self._tail = data.rpartition(b"\n\n")
        for step in _WORD.findall(events):
            seen.num_tokens += 1
            seen.latencies_s.append(now_s - self._made_at[int(step) % NUM_STEPS])
        if _END in data:
            seen.num_ended += 1
            seen.ended_s = now_s
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that it is over."""
        if not self._ended.done():
            self._ended.set_result(None)


def request(url_host: str, max_tokens: int) -> bytes:
    """Return one chat as HTTP."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "a b c d e f g h"}],
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url_host}\r\ncontent-type: application/json\r\n"
    return head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body


async def run(host: str, port: int, *, num_streams: int, max_tokens: int, made_at: np.ndarray) -> Seen:
    """Run all streams at once."""
    loop, seen = asyncio.get_running_loop(), Seen(began_s=time.monotonic())
    asked, ends = request(f"{host}:{port}", max_tokens), []
    for _ in range(num_streams):
        ended: asyncio.Future[None] = loop.create_future()
        ends.append(ended)
        await loop.create_connection(lambda ended=ended: Stream(asked, seen, made_at, ended), host, port)  # type: ignore[misc]
    await asyncio.gather(*ends)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--made-at", type=Path, required=True)
    options = parser.parse_args()
    made_at = np.memmap(options.made_at, dtype=np.float64, mode="r", shape=(NUM_STEPS,))
    seen = asyncio.run(
        run(
            "127.0.0.1",
            options.port,
            num_streams=options.streams,
            max_tokens=options.max_tokens,
            made_at=made_at,
        )
    )
    latencies_s = np.sort(np.array(seen.latencies_s))
    print(
        json.dumps(
            {
                "bytes": seen.num_bytes,
                "tokens": seen.num_tokens,
                "ended": seen.num_ended,
                "seconds": seen.ended_s - seen.began_s,
                "latency_p50_ms": 1e3 * float(np.quantile(latencies_s, 0.5)),
                "latency_p99_ms": 1e3 * float(np.quantile(latencies_s, 0.99)),
            }
        )
    )


if __name__ == "__main__":
    main()
