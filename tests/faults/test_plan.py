import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from services.errors import ConfigurationError
from services.faults.armed import ArmedFaults, FileFaults, faults_of
from services.faults.plan import Action, FaultPlan, read_plan
from services.faults.steps import STEPS

POSTED = "transfer.push.posted"


def plan_file(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def test_a_script_names_step_occurrence_and_action(tmp_path: Path) -> None:
    text = f"faults:\n  - {{step: {POSTED}, nth: 2, times: 2, action: delay, seconds: 0.5}}\n"
    plan = read_plan(plan_file(tmp_path, text))
    actions = [fault and (fault.action, fault.seconds) for fault in (plan.at(POSTED, n) for n in range(1, 5))]
    assert actions == [None, (Action.DELAY, 0.5), (Action.DELAY, 0.5), None]
    assert plan.at("transfer.push.done", 2) is None


def test_an_empty_file_plans_nothing(tmp_path: Path) -> None:
    assert read_plan(plan_file(tmp_path, "")) == FaultPlan()


def test_a_seeded_plan_is_a_function_of_seed_step_and_occurrence() -> None:
    shares = {Action.DELAY: 0.25, Action.DROP: 0.25}
    plans = [FaultPlan(seed=seed, shares=shares, steps=(POSTED,)) for seed in (1, 1, 2)]
    drawn = [[plan.at(POSTED, number) for number in range(400)] for plan in plans]
    assert drawn[0] == drawn[1] != drawn[2]
    counts = Counter(fault.action for fault in drawn[0] if fault is not None)
    assert set(counts) == {Action.DELAY, Action.DROP}
    assert all(60 < count < 140 for count in counts.values())
    assert plans[0].at("transfer.connect", 1) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("faults: [{step: transfer.push.post, action: kill}]", "did you mean transfer.push.posted"),
        ("faults: [{step: transfer.push.posted, action: explode}]", "faults.0.action"),
        ("faults: [{step: transfer.push.posted, action: kill, nth: 0}]", "faults.0.nth"),
        ("shares: {delay: 0.7, drop: 0.7}", "at most 1"),
        ("wrong: 1", "wrong"),
        ("[1, 2]", "refused"),
        ("{", "not valid YAML"),
    ],
)
def test_what_is_no_plan_is_refused_with_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        read_plan(plan_file(tmp_path, text))


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        faults_of(tmp_path / "nowhere.yaml")
    assert faults_of(None) is None


def test_what_the_caller_is_not_able_to_do_is_not_injected() -> None:
    faults = ArmedFaults(FaultPlan.model_validate({"faults": [{"step": POSTED, "action": "duplicate"}]}))
    assert faults.at(POSTED, {Action.DROP}) is None
    assert not faults.injected


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_kill_and_stop_are_signals_to_the_own_process(action: str, number: signal.Signals) -> None:
    plan = FaultPlan.model_validate({"faults": [{"step": POSTED, "action": action, "nth": 2}]})
    signals: list[signal.Signals] = []
    faults = ArmedFaults(plan, signal_process=signals.append)
    assert [faults.at(POSTED, ()) for _ in range(3)] == [None] * 3
    assert signals == [number]


def test_a_replaced_file_is_read_again_and_occurrences_count_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = plan_file(tmp_path, "")
    faults = FileFaults(path)
    assert [faults.at(POSTED, {Action.DROP}) for _ in range(3)] == [None] * 3
    replace(path, f"faults: [{{step: {POSTED}, action: drop}}]")
    fault = faults.at(POSTED, {Action.DROP})
    assert fault is not None
    assert (fault.action, fault.occurrence) == (Action.DROP, 1)
    replace(path, "nonsense: true")
    assert faults.at(POSTED, {Action.DROP}) is None
    events = [record.getMessage() for record in caplog.records]
    assert events == ["faults.armed", "faults.armed", "faults.injected", "faults.refused"]


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, path)


def test_every_step_can_be_planned() -> None:
    lines = [{"step": step, "action": action.value} for step in STEPS for action in Action]
    assert len(FaultPlan.model_validate({"faults": lines}).faults) == len(STEPS) * len(Action)
