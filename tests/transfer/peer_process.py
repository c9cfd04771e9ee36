"""A peer in a process of its own: polls for ever, and answers one JSON line per JSON line.

python -m tests.transfer.peer_process '{"transport": "tcp", "agent": "b", ...}'
"""

import base64
import json
import select
import sys
from dataclasses import asdict
from typing import Any

import xxhash

from services.transfer.memory import KVMemory, allocate
from services.transfer.nixl import NixlOptions
from services.transfer.open import TransportOptions, open_transport
from services.transfer.tcp import TcpOptions
from services.transfer.transport import BlockPair, Endpoint, NoticeArrived, Transport

POLL_INTERVAL_S = 0.0005


def encode_endpoint(endpoint: Endpoint) -> dict[str, str]:
    return asdict(endpoint) | {"metadata": base64.b64encode(endpoint.metadata).decode()}


def decode_endpoint(values: dict[str, str]) -> Endpoint:
    return Endpoint(**{**values, "metadata": base64.b64decode(values["metadata"])})  # type: ignore[arg-type]


def digests(memory: KVMemory, indexes: list[int]) -> list[str]:
    return [xxhash.xxh3_64_hexdigest(memory.block(index)) for index in indexes]


class Peer:
    """Keeps every notice with the digests of the blocks that it names, taken the moment it is seen."""

    def __init__(self, transport: Transport, memory: KVMemory) -> None:
        self._transport = transport
        self._memory = memory
        self._notices: list[dict[str, Any]] = []

    def poll(self) -> None:
        for event in self._transport.poll():
            if isinstance(event, NoticeArrived):
                indexes = list(event.notice[1:]) if event.notice.startswith(b"@") else []
                self._notices.append(
                    {
                        "agent": event.agent,
                        "notice": base64.b64encode(event.notice).decode(),
                        "digests": digests(self._memory, indexes),
                    }
                )

    def answer(self, question: dict[str, Any]) -> Any:
        match question["ask"]:
            case "notices":
                return self._notices
            case "digests":
                return digests(self._memory, list(range(self._memory.num_blocks)))
            case "fill":
                self._memory.view[:] = bytes([question["fill"]]) * self._memory.num_bytes
            case "connect":
                self._transport.connect(decode_endpoint(question["endpoint"]))
            case "push":
                self._memory.block(question["local"])[:] = bytes([question["fill"]]) * self._memory.block_bytes
                blocks = [BlockPair(question["local"], question["remote"])]
                self._transport.push(question["agent"], blocks, question["notice"].encode())
        return None


def main() -> None:
    settings = json.loads(sys.argv[1])
    memory = allocate(settings["num_blocks"], settings["block_bytes"])
    options = TransportOptions(
        tcp=TcpOptions(secret=settings["secret"].encode()), nixl=NixlOptions(ucx=settings["ucx"])
    )
    transport = open_transport(
        settings["transport"],
        agent=settings["agent"],
        fingerprint=settings["fingerprint"],
        memory=memory,
        options=options,
    )
    peer = Peer(transport, memory)
    sys.stdout.write(json.dumps(encode_endpoint(transport.endpoint())) + "\n")
    sys.stdout.flush()
    while True:
        peer.poll()
        if select.select([sys.stdin], [], [], POLL_INTERVAL_S)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            sys.stdout.write(json.dumps(peer.answer(json.loads(line))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
