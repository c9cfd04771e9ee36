"""The initiator of ``bench.nixl_faults``: pushes to a fresh target per repetition and writes down what it sees."""

import ctypes
import importlib
import mmap
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from bench.nixl_faults_stage import (
    BLOCK_BYTES,
    DEADLINE_S,
    DELAYS_S,
    FAST_POLL_S,
    FAULTS,
    NUM_BLOCKS,
    PUSH_BYTES,
    SLOW_POLL_S,
    STEPS,
    STOPPED_WATCH_S,
    Arena,
    Observation,
    descriptors,
    open_agent,
)


class Initiator:
    """Pushes to a fresh target per repetition and watches what happens."""

    def __init__(self, arena: Arena, transports: str, pipe: Connection, third_metadata: bytes) -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        self._arena = arena
        self._transports = transports
        self._pipe = pipe
        self._agent = open_agent("initiator", arena.source, transports)
        bindings = importlib.import_module("nixl_cu13._bindings")
        self._errors: tuple[type[Exception], ...] = tuple(
            getattr(bindings, name) for name in dir(bindings) if name.endswith("Error")
        )
        self._local = descriptors(self._agent, "NIXL_INIT_AGENT", arena.source)
        self._third = self._connect(third_metadata, arena.third)
        self._count = 0

    def repetition(self, step: str, fault: str, number: int) -> Observation:
        """Set the stage, strike, push, watch, clean up, and try a third peer."""
        seen = Observation(self._transports, step, fault)
        pattern = self._prepare()
        pid, metadata = self._spawn()
        is_stop = fault == FAULTS[0]
        number_of_signal = signal.SIGSTOP if is_stop else signal.SIGKILL
        delay_s = DELAYS_S[self._transports == "tcp"] * (number % 20 + 1) / 20
        handle = self._strike(seen, step, (pid, number_of_signal, delay_s), metadata)
        if is_stop:
            self._watch_stopped(seen, handle, pid, gives_up=number % 2 == 1, pattern=pattern)
        elif handle is not None:
            self._watch(seen, handle, DEADLINE_S)
        if seen.bytes_at_outcome < 0:
            seen.bytes_at_outcome = self._arena.landed(pattern)
        time.sleep(0.05)
        seen.bytes_at_end = self._arena.landed(pattern)
        seen.notices = self._arena.notices
        self._forget(seen, handle)
        seen.third_peer, _ = self._try(self._third, self._arena.third)
        if fault != FAULTS[1]:
            self._reconnect(seen, metadata, is_stop=is_stop)
        return seen

    def _prepare(self) -> int:
        self._count += 1
        pattern = self._count % 250 + 1
        self._arena.target[:] = bytes(PUSH_BYTES)
        self._arena.source[:] = bytes([pattern]) * PUSH_BYTES
        self._arena.poll_interval_s = FAST_POLL_S
        self._arena.notices = 0
        self._arena.signalled_at = 0.0
        return pattern

    def _spawn(self) -> tuple[int, bytes]:
        self._count += 1
        self._pipe.send(("spawn", f"target-{self._count}"))
        pid, metadata = self._pipe.recv()
        self._arena.notices = 0  # only now is the previous target dead
        return pid, metadata

    def _connect(self, metadata: bytes, memory: mmap.mmap) -> tuple[str, Any]:
        name = self._agent.add_remote_agent(metadata).decode()
        return name, descriptors(self._agent, name, memory)

    def _strike(self, seen: Observation, step: str, blow: tuple[int, int, float], metadata: bytes) -> Any:
        """Bring the pair to ``step``, send the signal there, and return the handle of the watched push, if any."""
        pid, number_of_signal, delay_s = blow
        try:
            if step == STEPS[0]:
                self._signal(pid, number_of_signal)
                self._peer = self._connect(metadata, self._arena.target)
                return self._post(seen)
            self._peer = self._connect(metadata, self._arena.target)
            self._warm()
            if step == STEPS[1]:
                self._signal(pid, number_of_signal)
                return self._post(seen)
            if step == STEPS[2]:
                self._pipe.send(("signal", pid, number_of_signal, delay_s))
                return self._post_under_fire(seen)
            self._arena.poll_interval_s = SLOW_POLL_S
            handle = self._post(seen)
            self._watch(seen, handle, DEADLINE_S)
            os.kill(pid, number_of_signal)
            time.sleep(0.002)
            seen.strike = f"{self._arena.notices} notices polled"
            self._arena.poll_interval_s = FAST_POLL_S
            return handle
        except self._errors as error:
            self._record(seen, type(error).__name__)
            return None

    def _signal(self, pid: int, number: int) -> None:
        self._arena.signalled_at = time.monotonic()
        os.kill(pid, number)
        time.sleep(0.01)

    def _post_under_fire(self, seen: Observation) -> Any:
        try:
            handle = self._post(seen)
            if not seen.outcome:
                self._watch(seen, handle, STOPPED_WATCH_S)
            return handle
        finally:
            while self._arena.signalled_at == 0.0:
                time.sleep(0.0002)
            if seen.outcome:
                seen.outcome_s = self._ended_at - self._arena.signalled_at
            seen.strike = "too late" if seen.outcome and seen.outcome_s < 0 else "in flight"
            time.sleep(0.002)

    def _warm(self) -> None:
        _, _ = self._try(self._peer, self._arena.target)
        deadline = time.monotonic() + DEADLINE_S
        while self._arena.notices == 0 and time.monotonic() < deadline:
            time.sleep(0.0005)
        self._arena.notices = 0
        self._arena.target[:BLOCK_BYTES] = bytes(BLOCK_BYTES)

    def _post(self, seen: Observation) -> Any:
        everything = list(range(NUM_BLOCKS))
        handle = self._agent.make_prepped_xfer("WRITE", self._local, everything, self._peer[1], everything, b"push")
        self._posted_at = time.monotonic()
        state = self._agent.transfer(handle)
        if state == "DONE":
            self._record(seen, "done")
        return handle

    def _watch(self, seen: Observation, handle: Any, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not seen.outcome and time.monotonic() < deadline:
            try:
                state = self._agent.check_xfer_state(handle)
            except self._errors as error:
                self._record(seen, type(error).__name__)
                return
            if state != "PROC":
                self._record(seen, state.lower())

    def _watch_stopped(self, seen: Observation, handle: Any, pid: int, *, gives_up: bool, pattern: int) -> None:
        if handle is not None:
            self._watch(seen, handle, STOPPED_WATCH_S)
        seen.outcome_while_stopped = seen.outcome or "in progress"
        if gives_up and not seen.outcome:
            seen.gave_up = True
            seen.outcome = "given up"
            self._forget(seen, handle)
            seen.bytes_at_outcome = self._arena.landed(pattern)
        os.kill(pid, signal.SIGCONT)
        if handle is not None and not seen.outcome:
            self._watch(seen, handle, DEADLINE_S)
        self._poll_for(0.05)

    def _poll_for(self, duration_s: float) -> None:
        deadline = time.monotonic() + duration_s
        while time.monotonic() < deadline:
            self._agent.get_new_notifs()
            time.sleep(0.0005)

    def _record(self, seen: Observation, outcome: str) -> None:
        seen.outcome = outcome
        self._ended_at = time.monotonic()
        seen.outcome_s = self._ended_at - max(self._arena.signalled_at, getattr(self, "_posted_at", 0.0))

    def _forget(self, seen: Observation, handle: Any) -> None:
        if seen.cleanup or not hasattr(self, "_peer"):
            return
        parts = [("release", handle.release)] if handle is not None else []
        parts += [("dlist", self._peer[1].release), ("remove", lambda: self._agent.remove_remote_agent(self._peer[0]))]
        for name, action in parts:
            try:
                action()
                seen.cleanup += f"{name} ok; "
            except self._errors as error:
                seen.cleanup += f"{name} {type(error).__name__}; "

    def _try(self, peer: tuple[str, Any], memory: mmap.mmap) -> tuple[str, float]:
        """Push one block and say how it went and how long it took."""
        memory[0] = 0
        started = time.monotonic()
        try:
            handle = self._agent.make_prepped_xfer("WRITE", self._local, [0], peer[1], [0], b"probe")
            state = self._agent.transfer(handle)
            while state == "PROC" and time.monotonic() - started < DEADLINE_S:
                state = self._agent.check_xfer_state(handle)
            handle.release()
        except self._errors as error:
            return type(error).__name__, time.monotonic() - started
        has_landed = memory[0] == self._arena.source[0]
        return f"{state.lower()}{'' if has_landed else ', nothing landed'}", time.monotonic() - started

    def _reconnect(self, seen: Observation, metadata: bytes, *, is_stop: bool) -> None:
        """Connect again: to the continued target under its name, or to a restarted one under a new name."""
        started = time.monotonic()
        try:
            if not is_stop:
                _, metadata = self._spawn()
                started = time.monotonic()
            peer = self._connect(metadata, self._arena.target)
            seen.afterwards, _ = self._try(peer, self._arena.target)
            peer[1].release()
            self._agent.remove_remote_agent(peer[0])
        except self._errors as error:
            seen.afterwards = type(error).__name__
        seen.afterwards_s = time.monotonic() - started
