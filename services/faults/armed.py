"""Counts the steps of this process and says what its fault plan wants at each; every fault is logged before it is."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from services.errors import ConfigurationError
from services.faults.plan import Action, Fault, FaultPlan, read_plan
from services.telemetry.logs import get_logger

_log = get_logger(__name__)
_SIGNALS = {Action.STOP: signal.SIGSTOP, Action.KILL: signal.SIGKILL}
_Version = tuple[int, int, int]


class ArmedFaults:
    """The plan of one process; the decorators ask it from any thread."""

    def __init__(self, plan: FaultPlan, *, signal_process: Callable[[signal.Signals], None] | None = None) -> None:
        self.plan = plan
        self.injected: Counter[Action] = Counter()
        self._signal_process = signal_process or _signal_this_process
        self._occurrences: Counter[str] = Counter()
        self._lock = threading.Lock()

    def at(self, step: str, able: Collection[Action]) -> Fault | None:
        """Count one occurrence of ``step``; return what the caller, who is ``able`` to that much, shall do.

        What ends or stops this process is done here; then the step happens as usual, if the process goes on.
        """
        fault = self.decide(step, able)
        return None if fault is None or self.signalled(fault) else fault

    def decide(self, step: str, able: Collection[Action]) -> Fault | None:
        """Count one occurrence of ``step`` and only say what shall happen."""
        with self._lock:
            self._refresh()
            self._occurrences[step] += 1
            fault = self.plan.at(step, self._occurrences[step])
            if fault is None or fault.action not in {*able, *_SIGNALS}:
                return None
            self.injected[fault.action] += 1
        _log.warning("faults.injected", step=step, occurrence=fault.occurrence, action=fault.action.value)
        return fault

    def signalled(self, fault: Fault) -> bool:
        """Stop or kill this process if the fault says so; return whether it did."""
        number = _SIGNALS.get(fault.action)
        if number is not None:
            self._signal_process(number)
        return number is not None

    def _refresh(self) -> None:
        """Take a newer plan, if there is one."""

    def arm(self, plan: FaultPlan) -> None:
        """Follow another plan; occurrences count from now on."""
        self.plan = plan
        self._occurrences.clear()


class FileFaults(ArmedFaults):
    """The plan in a file, read again whenever the file is another: replace it by a rename."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        super().__init__(read_plan(path))
        self._announce()

    def _refresh(self) -> None:
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self.arm(read_plan(self._path))
        except ConfigurationError as error:
            _log.warning("faults.refused", path=self._path, reason=error.message)
        else:
            self._announce()

    def _announce(self) -> None:
        _log.warning(
            "faults.armed",
            path=self._path,
            scripted=len(self.plan.faults),
            shares=sum(self.plan.shares.values()),
            seed=self.plan.seed,
            meaning="this process misbehaves on purpose",
        )


def faults_of(path: Path | None) -> ArmedFaults | None:
    """Return the faults that a setting asks for; None without one.

    Raises:
        ConfigurationError: the plan cannot be read or is refused.
    """
    return None if path is None else FileFaults(path)


def _version(path: Path) -> _Version | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _signal_this_process(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
