"""A fault plan: what happens at which occurrence of which protocol step, written down or drawn from a seed.

faults:                                             seed: 7
  - {step: transfer.push.posted, nth: 2, action: kill}   shares: {delay: 0.05, drop: 0.01}
"""

import random
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from services.command_line import nearest
from services.errors import ConfigurationError
from services.faults.steps import STEPS


class Action(Enum):
    """What can happen at a step."""

    DELAY = "delay"
    """It happens a little later."""
    STALL = "stall"
    """It happens much later: later than the other side waits."""
    DROP = "drop"
    """It never happens: a message is lost, a push fails, a completion is never told."""
    DUPLICATE = "duplicate"
    """It happens twice."""
    CORRUPT = "corrupt"
    """One bit is another: of a message, a notice or a block; the end of a push is told wrongly."""
    SWAP = "swap"
    """Two blocks of a push change places."""
    STOP = "stop"
    """This process stands still (SIGSTOP) until somebody continues it."""
    KILL = "kill"
    """This process is killed (SIGKILL)."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScriptedFault(_Strict):
    """One line of a script."""

    step: str
    action: Action
    nth: int = Field(default=1, ge=1)
    """At which occurrence in this process, counted from 1 when the plan was read."""
    times: int = Field(default=1, ge=1)
    """At how many occurrences in a row."""
    seconds: float | None = Field(default=None, gt=0)
    """How long a delay or a stall lasts; the plan's own time if not given."""

    @field_validator("step")
    @classmethod
    def _known(cls, step: str) -> str:
        return _known_step(step)

    def covers(self, occurrence: int) -> bool:
        """Whether it happens at this occurrence."""
        return self.nth <= occurrence < self.nth + self.times


class Fault(_Strict):
    """What happens now."""

    step: str
    occurrence: int
    action: Action
    seconds: float


class FaultPlan(_Strict):
    """A script, and shares for everything that it does not name."""

    faults: tuple[ScriptedFault, ...] = ()
    seed: int = 0
    shares: Mapping[Action, float] = Field(default_factory=dict)
    """Probability of each action at each occurrence; their sum is at most 1."""
    steps: tuple[str, ...] = tuple(STEPS)
    """Where the shares hold."""
    delay_s: float = Field(default=0.05, gt=0)
    stall_s: float = Field(default=30.0, gt=0)

    @field_validator("steps")
    @classmethod
    def _known(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_known_step, steps))

    @model_validator(mode="after")
    def _is_a_distribution(self) -> "FaultPlan":
        if any(share < 0 for share in self.shares.values()) or sum(self.shares.values()) > 1:
            raise ValueError("shares must not be negative, and their sum must be at most 1")
        return self

    def at(self, step: str, occurrence: int) -> Fault | None:
        """Return what happens at the n-th occurrence of a step: a pure function of the plan and its arguments."""
        for line in self.faults:
            if line.step == step and line.covers(occurrence):
                return self._fault(step, occurrence, line.action, line.seconds)
        if not self.shares or step not in self.steps:
            return None
        number = random.Random(f"{self.seed} {step} {occurrence}").random()
        for action, share in self.shares.items():
            number -= share
            if number < 0:
                return self._fault(step, occurrence, action, None)
        return None

    def _fault(self, step: str, occurrence: int, action: Action, seconds: float | None) -> Fault:
        default_s = self.stall_s if action is Action.STALL else self.delay_s
        return Fault(step=step, occurrence=occurrence, action=action, seconds=seconds or default_s)


def read_plan(path: Path) -> FaultPlan:
    """Read a plan from YAML or JSON; an empty file plans nothing.

    Raises:
        ConfigurationError: it cannot be read, or says something that is not a plan; the text says what.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return FaultPlan.model_validate({} if content is None else content)
    except OSError as error:
        raise ConfigurationError(
            f"The fault plan {path} cannot be read: {error.strerror}.", param="fault_plan"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ConfigurationError(f"The fault plan {path} is not valid YAML: {text}", param="fault_plan") from error
    except ValidationError as error:
        problems = "; ".join(_described(problem) for problem in error.errors(include_url=False))
        raise ConfigurationError(f"The fault plan {path} is refused: {problems}.", param="fault_plan") from error


def _known_step(step: str) -> str:
    if step not in STEPS:
        raise ValueError(f"unknown step '{step}'{nearest(step, STEPS)}")
    return step


def _described(problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
