"""What the initiator of a NIXL write sees when its target is stopped, killed or restarted, step by step.

    python -m bench.nixl_faults --repetitions 100 --output nixl_faults.json
    python -m bench.nixl_faults_report nixl_faults.json

Three roles, each a process: the driver forks the others, sends the signals and outlives crashes; the
initiator pushes; targets own registered memory and poll for notices. Target memory is an anonymous
shared mapping that the driver made before forking, so the initiator can count what landed in it even
when its owner is stopped or dead.
"""

import argparse
import ctypes
import json
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from bench.nixl_faults_initiator import Initiator
from bench.nixl_faults_stage import FAST_POLL_S, FAULTS, HANG_S, STEPS, Arena, Observation, open_agent


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
