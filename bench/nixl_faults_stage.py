"""What the roles of ``bench.nixl_faults`` share: shared memory, NIXL agents over it, and a row of results."""

import ctypes
import importlib
import logging
import mmap
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

PUSH_BYTES = 16 << 20
BLOCK_BYTES = 64 << 10
NUM_BLOCKS = PUSH_BYTES // BLOCK_BYTES
STEPS = ("before connect", "connected idle", "during a push", "after a push, notice not polled")
FAULTS = ("SIGSTOP + SIGCONT", "SIGKILL", "SIGKILL + restart")
STOPPED_WATCH_S = 0.1
FAST_POLL_S = 0.0005
SLOW_POLL_S = 0.02
DEADLINE_S = 5.0
DELAYS_S = (0.003, 0.008)
"""Most seconds from a large post to the signal: one post takes about that long (all transports, tcp only)."""
HANG_S = 30.0


@dataclass
class Observation:
    """What one repetition showed; times in seconds, -1 where it does not apply."""

    transports: str
    step: str
    fault: str
    outcome: str = ""
    outcome_s: float = -1.0
    strike: str = ""
    outcome_while_stopped: str = ""
    bytes_at_outcome: int = -1
    bytes_at_end: int = -1
    notices: int = -1
    gave_up: bool = False
    cleanup: str = ""
    third_peer: str = ""
    afterwards: str = ""
    afterwards_s: float = -1.0


class Arena:
    """Memory that all processes share: three pools, the target's poll interval, counters."""

    def __init__(self) -> None:
        self.target = mmap.mmap(-1, PUSH_BYTES)
        self.source = mmap.mmap(-1, PUSH_BYTES)
        self.third = mmap.mmap(-1, PUSH_BYTES)
        self._control = mmap.mmap(-1, 4096)
        self.poll_interval_s = FAST_POLL_S

    @property
    def poll_interval_s(self) -> float:
        """How long the target sleeps between two looks for notices."""
        return float(struct.unpack_from("<d", self._control, 0)[0])

    @poll_interval_s.setter
    def poll_interval_s(self, value: float) -> None:
        struct.pack_into("<d", self._control, 0, value)

    @property
    def notices(self) -> int:
        """How many notices the target has seen."""
        return int(struct.unpack_from("<Q", self._control, 8)[0])

    @notices.setter
    def notices(self, value: int) -> None:
        struct.pack_into("<Q", self._control, 8, value)

    @property
    def signalled_at(self) -> float:
        """When the driver sent the last signal (monotonic seconds)."""
        return float(struct.unpack_from("<d", self._control, 16)[0])

    @signalled_at.setter
    def signalled_at(self, value: float) -> None:
        struct.pack_into("<d", self._control, 16, value)

    def landed(self, pattern: int) -> int:
        """Return how many bytes of the target's memory hold ``pattern``."""
        return int(np.count_nonzero(np.frombuffer(self.target, dtype=np.uint8) == pattern))


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def load_nixl() -> Any:
    module = importlib.import_module("nixl_cu13")
    logging.getLogger("nixl").setLevel(logging.WARNING)
    return module


def open_agent(name: str, memory: mmap.mmap, transports: str) -> Any:
    nixl = load_nixl()
    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(enable_prog_thread=False, backends=[]))
    if transports != "preload":
        agent.create_backend("UCX", {} if transports == "all" else {"engine_config": f"TLS={transports}"})
        agent.register_memory([(address_of(memory), PUSH_BYTES, 0, "")], "DRAM")
    return agent


def descriptors(agent: Any, owner: str, memory: mmap.mmap) -> Any:
    rows = [(address_of(memory) + i * BLOCK_BYTES, BLOCK_BYTES, 0) for i in range(NUM_BLOCKS)]
    return agent.prep_xfer_dlist(owner, rows, "DRAM")
