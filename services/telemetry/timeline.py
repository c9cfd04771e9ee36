"""One request as named, timed steps: what happened, when, for how long, and with whom.

request arrives                                                          answer ends
|--- encode ---|-- route --|------------- generate (decode=...) -------------|
                               |-- prefill (told by the worker) --|
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from services.errors import IntegrityError
from services.telemetry.clock import Clock

MAX_STEPS = 256
"""Steps kept for one request; further ones are only counted."""

Attribute = str | int | float | bool


@dataclass(frozen=True)
class Step:
    """A named stretch of time; milliseconds count from the request's start."""

    name: str
    start_ms: float
    duration_ms: float | None
    """None if it had not ended when the timeline was written down."""
    attributes: dict[str, Attribute] = field(default_factory=dict)
    """Ids, counts and reasons; never prompts or tokens."""


@dataclass(frozen=True)
class TimelineRecord:
    """A timeline as it is kept and shown; ``steps`` are in the order of their start."""

    request_id: str
    project: str
    started_at: float
    """Seconds since the Unix epoch."""
    steps: tuple[Step, ...]
    num_dropped_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "steps": [asdict(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TimelineRecord":
        """Read what ``to_dict`` returned.

        Raises:
            IntegrityError: the values are not a timeline.
        """
        try:
            steps = tuple(Step(**step) for step in values["steps"])
            return cls(**{**values, "steps": steps})
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"The stored timeline cannot be read: {error}.") from error


class OpenStep:
    """A step that runs; what is learnt while it runs is added with ``note``."""

    def __init__(self, name: str, start_s: float, attributes: dict[str, Attribute]) -> None:
        self.name = name
        self.start_s = start_s
        self.end_s: float | None = None
        self.attributes = attributes

    def note(self, **attributes: Attribute) -> None:
        """Add attributes; a later value replaces an earlier one."""
        self.attributes.update(attributes)


class Timeline:
    """Records the steps of one request while they happen; used by one event loop."""

    def __init__(self, request_id: str, clock: Clock, *, project: str, started_s: float | None = None) -> None:
        """``started_s`` is when the request arrived, on the clock's ``now``; now if not given."""
        self.request_id = request_id
        self.project = project
        self._clock = clock
        now_s = clock.now()
        self._start_s = now_s if started_s is None else started_s
        self._started_at = clock.wall() - (now_s - self._start_s)
        self._steps: list[OpenStep] = []
        self._num_dropped_steps = 0

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request's start."""
        return 1e3 * (self._clock.now() - self._start_s)

    @contextmanager
    def step(self, name: str, **attributes: Attribute) -> Iterator[OpenStep]:
        """Time the block; if it raises, the step has an ``error`` attribute with the exception's class."""
        step = OpenStep(name, self._clock.now(), attributes)
        self._keep(step)
        try:
            yield step
        except BaseException as error:
            step.note(error=type(error).__name__)
            raise
        finally:
            step.end_s = self._clock.now()

    def event(self, name: str, **attributes: Attribute) -> None:
        """Record something that takes no time, now."""
        self.add(name, start_ms=self.elapsed_ms, duration_ms=0.0, **attributes)

    def add(self, name: str, *, start_ms: float, duration_ms: float, **attributes: Attribute) -> None:
        """Record a step that somebody else timed; ``start_ms`` counts from the request's start."""
        step = OpenStep(name, self._start_s + start_ms / 1e3, attributes)
        step.end_s = step.start_s + duration_ms / 1e3
        self._keep(step)

    def record(self) -> TimelineRecord:
        """Write down what happened so far."""
        steps = sorted(self._steps, key=lambda step: step.start_s)
        return TimelineRecord(
            request_id=self.request_id,
            project=self.project,
            started_at=self._started_at,
            steps=tuple(self._written(step) for step in steps),
            num_dropped_steps=self._num_dropped_steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what happened so far as plain values for JSON."""
        return self.record().to_dict()

    def _keep(self, step: OpenStep) -> None:
        if len(self._steps) < MAX_STEPS:
            self._steps.append(step)
        else:
            self._num_dropped_steps += 1

    def _written(self, step: OpenStep) -> Step:
        duration_ms = None if step.end_s is None else _rounded_ms(step.end_s - step.start_s)
        return Step(step.name, _rounded_ms(step.start_s - self._start_s), duration_ms, dict(step.attributes))


def _rounded_ms(duration_s: float) -> float:
    """Return milliseconds to the microsecond, which is what a clock can tell."""
    return round(1e3 * duration_s, 3)
