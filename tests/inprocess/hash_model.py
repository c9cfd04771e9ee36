"""A model without weights whose every next token depends on every byte of KV before it.

The KV slot of a token holds a hash of (slot before, token, position); the logits are a hash of all slots of the
context, read through the block table. So a block that is wrong, missing, stale or of another request changes
what follows, as it would in a real model, only surely.
"""

import hashlib
import struct
import threading
from collections.abc import Callable, Sequence

import numpy
import torch

from services.engine.schedule import ScheduledSequence
from services.kv.layout import KVLayout, Plane
from services.transfer.memory import KVMemory

BLOCK_SIZE = 4
VOCAB_SIZE = 96
SLOT_BYTES = 16
DEADLINE_S = 30.0


def layout(name: str = "hash", slot_bytes: int = SLOT_BYTES) -> KVLayout:
    return KVLayout(
        model_identity=name,
        numerics_class="exact",
        block_size=BLOCK_SIZE,
        planes=(Plane(0, "key", 1, slot_bytes // 4, "float32"),),
    )


class StepGate:
    """Lets forward passes through, all of them or as many as a test says."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_allowed: int | None = None
        self.num_waiting = 0

    @property
    def holds_a_step(self) -> bool:
        """Whether a step stands here that only ``allow`` or ``open`` lets through."""
        with self._changed:
            return self._num_allowed == 0 and self.num_waiting > 0

    def close(self) -> None:
        with self._changed:
            self._num_allowed = 0

    def allow(self, num_steps: int) -> None:
        with self._changed:
            self._num_allowed = (self._num_allowed or 0) + num_steps
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._num_allowed = None
            self._changed.notify_all()

    def enter(self) -> None:
        with self._changed:
            self.num_waiting += 1
            try:
                if not self._changed.wait_for(lambda: self._num_allowed != 0, DEADLINE_S):
                    raise AssertionError("A step waited for ever at the gate of a test.")
            finally:
                self.num_waiting -= 1
            if self._num_allowed:
                self._num_allowed -= 1


class HashModel:
    """Implements ``services.engine.model.Model`` over ``memory``."""

    def __init__(self, memory: KVMemory, slot_bytes: int = SLOT_BYTES) -> None:
        self.gate = StepGate()
        self.salt = b""
        """Another salt is another model that nobody told the layout of."""
        self.defect: Callable[[], None] = lambda: None
        self.num_computed_tokens = 0
        self._memory = memory
        self._slot_bytes = slot_bytes
        self._slots = numpy.frombuffer(memory.view, dtype=numpy.uint8).reshape(-1, slot_bytes)

    def forward(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        self.gate.enter()
        self.defect()
        rows = []
        for sequence in sequences:
            self._write(sequence)
            rows += [self._logits(sequence, num_unseen) for num_unseen in reversed(range(sequence.num_sampled))]
        return torch.stack(rows) if rows else torch.empty(0, VOCAB_SIZE)

    def zero_tail(self, block_id: int, num_tokens: int) -> None:
        self._slots[block_id * BLOCK_SIZE + num_tokens : (block_id + 1) * BLOCK_SIZE] = 0

    def _write(self, sequence: ScheduledSequence) -> None:
        self.num_computed_tokens += len(sequence.new_token_ids)
        before = b""
        if sequence.start:
            before = self._slots[self._slot_of(sequence, sequence.start - 1)].tobytes()
        for position, token_id in enumerate(sequence.new_token_ids, sequence.start):
            payload = before + struct.pack("<II", token_id, position)
            before = hashlib.shake_128(payload).digest(self._slot_bytes)
            self._slots[self._slot_of(sequence, position)] = numpy.frombuffer(before, dtype=numpy.uint8)

    def _logits(self, sequence: ScheduledSequence, num_unseen: int) -> torch.Tensor:
        num_tokens = sequence.start + len(sequence.new_token_ids) - num_unseen
        digest = hashlib.blake2b(self.salt)
        slots = [self._slot_of(sequence, position) for position in range(num_tokens)]
        digest.update(self._slots[slots].tobytes())
        numbers = numpy.frombuffer(hashlib.shake_128(digest.digest()).digest(2 * VOCAB_SIZE), dtype="<u2")
        return torch.from_numpy(numbers.astype(numpy.float32) / 8192)

    def _slot_of(self, sequence: ScheduledSequence, position: int) -> int:
        return sequence.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
