"""What a gateway needs to go on with a run beside its objects and its log; kept in the run's private bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from services.gateway.runs.binding import Binding
from services.gateway.runs.lifecycle import Body, usage_json
from services.gateway.runs.turns import TurnPlan
from services.gateway.store.private import known_fields


@dataclass(frozen=True)
class Used:
    """Tokens of ended turns."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    kv: str | None = None
    """What the last turn found of the thread's earlier KV."""

    def plus(self, other: "Used") -> "Used":
        """Return both together."""
        return Used(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            other.kv if other.kv is not None else self.kv,
        )

    @property
    def usage(self) -> Body:
        """As the API shows it."""
        return usage_json(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.kv)


@dataclass(frozen=True)
class Job:
    """The private state of a run."""

    plan: TurnPlan | None = None
    """The turn that is being made, or whose calls wait for their outputs."""
    first_event: int = 1
    """The first event of that turn."""
    used: Used = field(default_factory=Used)
    """By the turns before it."""
    turn: Used | None = None
    """By that turn, once it is over."""
    called: Binding | None = None
    """The token ids of the last turn that called and went on or waits."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Files by the marks that the turn may cite."""
    waiting_messages: Sequence[Body] = ()
    """Messages that the run adds to its thread when it gets it."""

    @property
    def total(self) -> Used:
        """Tokens of all turns that are over."""
        return self.used if self.turn is None else self.used.plus(self.turn)

    def next_turn(self) -> "Job":
        """Return the job after its turn."""
        return replace(self, plan=None, used=self.total, turn=None)

    def to_bytes(self) -> bytes:
        """Return the private bytes."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes | None) -> "Job":
        """Read what ``to_bytes`` wrote; what only a newer version knows is left out."""
        values: dict[str, Any] = orjson.loads(data or b"{}")
        for name, kind in (("plan", TurnPlan), ("used", Used), ("turn", Used)):
            if values.get(name) is not None:
                values[name] = kind(**known_fields(kind, values[name]))
        if (called := values.get("called")) is not None:
            values["called"] = Binding.of_json(called)
        if (plan := values.get("plan")) is not None:
            values["plan"] = replace(plan, prompt_ids=tuple(plan.prompt_ids))
        return cls(**known_fields(cls, values))
