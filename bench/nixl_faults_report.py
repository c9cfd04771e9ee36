"""Turns the result of ``bench.nixl_faults`` into Markdown tables.

python -m bench.nixl_faults_report nixl_faults.json
"""

import argparse
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.nixl_faults_stage import PUSH_BYTES, STEPS, Observation

Key = TypeVar("Key")
HEAD = (
    "| step | signal | n | what the initiator sees | ms, median / max | landed when it knew | landed at the end "
    "| notice | third peer | afterwards |\n|---|---|---|---|---|---|---|---|---|---|"
)
ERRORS = {"nixlBackendError": "`BackendError` at connect", "nixlRemoteDisconnectError": "`RemoteDisconnectError`"}


def seen(observation: Observation) -> str:
    outcome = ERRORS.get(observation.outcome, observation.outcome)
    if observation.strike == "too late" or (observation.step == STEPS[3] and observation.outcome == "done"):
        return f"{outcome}, before the signal"
    if observation.outcome_while_stopped == "done":
        return "done while stopped"
    if observation.outcome_while_stopped:
        return f"in progress while stopped, then {outcome}"
    return outcome


def spread(values: list[int]) -> str:
    shares = sorted({round(100 * value / PUSH_BYTES) for value in values})
    return f"{shares[0]} %" if len(shares) == 1 else f"{shares[0]}-{shares[-1]} %"


def counts(values: list[str]) -> str:
    counted = Counter(value for value in values if value)
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{value} x {number}" for value, number in counted.most_common()) or "-"


def row(step: str, fault: str, group: list[Observation]) -> str:
    times_ms = [observation.outcome_s * 1000 for observation in group if observation.outcome_s >= 0]
    after_ms = [observation.afterwards_s * 1000 for observation in group if observation.afterwards_s >= 0]
    cells = [
        step,
        fault,
        str(len(group)),
        seen(group[0]),
        f"{statistics.median(times_ms):.1f} / {max(times_ms):.1f}" if times_ms else "-",
        spread([observation.bytes_at_outcome for observation in group]),
        spread([observation.bytes_at_end for observation in group]),
        counts([str(observation.notices) for observation in group]),
        counts([observation.third_peer for observation in group]),
        counts([observation.afterwards for observation in group])
        + (f", {statistics.median(after_ms):.0f} / {max(after_ms):.0f} ms" if after_ms else ""),
    ]
    return f"| {' | '.join(cells)} |"


def tables(observations: list[Observation]) -> str:
    lines: list[str] = []
    for transports, of_transports in by(observations, lambda each: each.transports).items():
        lines += ["", f"UCX_TLS={transports}:", "", HEAD]
        for (step, fault), cell in by(of_transports, lambda each: (each.step, each.fault)).items():
            for group in sorted(by(cell, seen).values(), key=len, reverse=True):
                lines.append(row(step, fault, group))
    return "\n".join(lines)


def by(observations: list[Observation], key: Callable[[Observation], Key]) -> dict[Key, list[Observation]]:
    groups: dict[Key, list[Observation]] = defaultdict(list)
    for observation in observations:
        groups[key(observation)].append(observation)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("result", type=Path)
    values = json.loads(parser.parse_args().result.read_text())
    print(tables([Observation(**value) for value in values]))


if __name__ == "__main__":
    main()
