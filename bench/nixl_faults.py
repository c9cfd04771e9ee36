"""What the initiator of a NIXL write sees when its target is stopped, killed or restarted, step by step.

    python bench/nixl_faults.py --repetitions 100 --output nixl_faults.json

Three roles, each a process: the driver forks the others, sends the signals and outlives crashes; the
initiator pushes; targets own registered memory and poll for notices. Target memory is an anonymous
shared mapping that the driver made before forking, so the initiator can count what landed in it even
when its owner is stopped or dead. ``bench/nixl_faults_report.py`` turns the result into tables.
"""

import argparse
import ctypes
import importlib
import json
import logging
import mmap
import multiprocessing
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
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
    module = importlib.import_module("nixl_cu12")
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


def serve(name: str, memory: mmap.mmap, transports: str, arena: Arena, pipe: Connection) -> None:
    """Be a target: publish metadata, then poll for notices."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the driver
    agent = open_agent(name, memory, transports)
    pipe.send_bytes(agent.get_agent_metadata())
    while True:
        seen = sum(len(messages) for messages in agent.get_new_notifs().values())
        if name != "third" and seen:
            arena.notices += seen
        time.sleep(FAST_POLL_S if name == "third" else arena.poll_interval_s)


def fork(body: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(1)
    return pid


class Driver:
    """Forks, signals and reaps; serves one initiator at a time."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        open_agent("preload", arena.source, "preload").get_plugin_params("UCX")  # load the plugin before forking

    def spawn(self, name: str, memory: mmap.mmap, transports: str) -> tuple[int, bytes]:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        pid = fork(lambda: serve(name, memory, transports, self._arena, theirs))
        theirs.close()
        if not ours.poll(HANG_S):
            raise TimeoutError(f"target {name} did not start")
        return pid, ours.recv_bytes()

    def series(self, transports: str, step: str, fault: str, repetitions: int) -> list[Observation]:
        """Run ``repetitions`` of one cell; a crashed or hung initiator is recorded and replaced."""
        observations: list[Observation] = []
        while len(observations) < repetitions:
            observations += self._with_one_initiator(transports, step, fault, repetitions - len(observations))
        return observations

    def _with_one_initiator(self, transports: str, step: str, fault: str, repetitions: int) -> list[Observation]:
        third_pid, third_metadata = self.spawn("third", self._arena.third, transports)
        ours, theirs = multiprocessing.Pipe()

        def body() -> None:
            ours.close()
            initiator = Initiator(self._arena, transports, theirs, third_metadata)
            for number in range(repetitions):
                theirs.send(("observed", initiator.repetition(step, fault, number)))

        pid = fork(body)
        theirs.close()
        observations, children = self._serve_initiator(ours, transports, repetitions)
        if len(observations) < repetitions:
            is_hung = os.waitpid(pid, os.WNOHANG) == (0, 0)
            outcome = "initiator hung" if is_hung else "initiator process died"
            observations.append(Observation(transports, step, fault, outcome=outcome))
        for child in [pid, third_pid, *children]:
            end(child)
        return observations

    def _serve_initiator(
        self, pipe: Connection, transports: str, repetitions: int
    ) -> tuple[list[Observation], list[int]]:
        observations: list[Observation] = []
        children: list[int] = []
        while len(observations) < repetitions and pipe.poll(HANG_S):
            try:
                command, *values = pipe.recv()
            except EOFError:
                break
            if command == "spawn":
                pid, metadata = self.spawn(values[0], self._arena.target, transports)
                children.append(pid)
                pipe.send((pid, metadata))
            elif command == "signal":
                pid, number, delay_s = values
                time.sleep(delay_s)
                self._arena.signalled_at = time.monotonic()
                os.kill(pid, number)
            elif command == "observed":
                observations.append(values[0])
                for child in children:
                    end(child)
                children = []
        return observations, children


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


class Initiator:
    """Pushes to a fresh target per repetition and watches what happens."""

    def __init__(self, arena: Arena, transports: str, pipe: Connection, third_metadata: bytes) -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        self._arena = arena
        self._transports = transports
        self._pipe = pipe
        self._agent = open_agent("initiator", arena.source, transports)
        bindings = importlib.import_module("nixl_cu12._bindings")
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
            ended_at = time.monotonic()
            while self._arena.signalled_at == 0.0:
                time.sleep(0.0002)
            seen.strike = "in flight" if not seen.outcome or self._arena.signalled_at < ended_at else "too late"
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
        seen.outcome_s = time.monotonic() - max(self._arena.signalled_at, getattr(self, "_posted_at", 0.0))

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--transports", nargs="+", default=["all", "tcp"], help="values for UCX_TLS")
    parser.add_argument("--output", type=Path, default=Path("nixl_faults.json"))
    options = parser.parse_args()
    driver = Driver(Arena())
    observations: list[Observation] = []
    for transports in options.transports:
        for step in STEPS:
            for fault in FAULTS:
                started = time.monotonic()
                observations += driver.series(transports, step, fault, options.repetitions)
                elapsed_s = time.monotonic() - started
                sys.stderr.write(f"{transports:5} {step:32} {fault:18} {elapsed_s:6.1f} s\n")
                options.output.write_text(json.dumps([asdict(o) for o in observations], indent=0))


if __name__ == "__main__":
    main()
