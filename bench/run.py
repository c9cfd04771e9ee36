"""``make bench``: measure, and print one table of our figures beside those of peers that are running.

    python -m bench [--rows scheduler one ...] [--rounds 3] [--peer NAME=URL,MODEL ...] [--plots docs/performance]
                    [-- options of `tandem up`]

Rows that need a server start a cluster as it comes, and then two more side by side: with every prompt prefilled by a
peer, and with none. Hosts are noisy: systems are measured in turn within each round, medians over rounds are printed.
A peer is any OpenAI-compatible server; goals speak of `vllm-pd`, `vllm` and `vllm-chunk256`.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Collection, Sequence, Set
from contextlib import ExitStack
from pathlib import Path

from bench import plots
from bench.catalog import DIFFERENCES, LOADS, NAMES, PARTS, TANDEM, TANDEM_LOCAL, TANDEM_PD, Load
from bench.load import run
from bench.report import add_differences, table, to_json
from bench.row import Results
from bench.systems import System, cluster
from services.resources import collect_garbage_seldom

RESULTS = Path(__file__).parent / "results"
_SHARED_MEMORY = {"TANDEM_KV_MEMORY_SHARE_OF_ALL": "0.2"}
SETTINGS: tuple[dict[str, dict[str, str]], ...] = (
    {TANDEM: {}},
    {
        TANDEM_PD: {
            **_SHARED_MEMORY,
            "TANDEM_LOCAL_PREFILL_TOKENS": "0",
            "TANDEM_MAX_LOCAL_PREFILL_TOKENS": "0",
        },
        TANDEM_LOCAL: {**_SHARED_MEMORY, "TANDEM_LOCAL_PREFILL_TOKENS": "1000000"},
    },
)
"""Our systems, and what each is told as environment variables; those of one group run side by side."""


def measure_parts(results: Results, names: Collection[str], rounds: int) -> None:
    """Measure what needs no server."""
    for part in PARTS:
        if any(row.name in names for row in part.rows):
            for _ in range(rounds):
                figures = part.measure()
                results.add(TANDEM, figures)
                print(json.dumps(figures), flush=True)


def measure_loads(
    results: Results, needed: Set[tuple[str, str]], rounds: int, peers: Sequence[System], options: Sequence[str]
) -> None:
    """Run the workloads of the ``needed`` rows, named by system and row, on our systems and on all peers."""
    for group in SETTINGS:
        loads = [each for each in LOADS if any((name, each.row.name) in needed for name in group)]
        if not loads:
            continue
        with ExitStack() as stack:
            own = [stack.enter_context(cluster(name, options, settings)) for name, settings in group.items()]
            measure_systems(results, loads, rounds, [*own, *(peers if TANDEM in group else ())])


def measure_systems(results: Results, loads: Sequence[Load], rounds: int, systems: Sequence[System]) -> None:
    """Run workloads on servers in turn."""
    workloads = [*dict.fromkeys(each.workload for each in loads)]
    for turn in range(rounds):
        for system in systems:
            print(f"-- {system.name}", flush=True)
            figures = asyncio.run(run(system.base_url, system.model, workloads, turn))
            results.add(system.name, {each.row.name: figures[each.workload][each.figure] for each in loads})


def with_needs(names: Sequence[str]) -> set[tuple[str, str]]:
    """Return ``names`` as rows of the system that is judged, and the rows that they are computed from."""
    needs = {need for each in DIFFERENCES if each.row.name in names for need in each.needs}
    return needs | {(TANDEM, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=NAMES, default=NAMES, metavar="ROW", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=1, help="medians over so many rounds are printed")
    parser.add_argument("--peer", type=System.parse, action="append", default=[], metavar="NAME=URL,MODEL")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write table.md, figures.json and plots there")
    parser.add_argument("up", nargs="*", help="options of `tandem up`, after --")
    options = parser.parse_args()
    collect_garbage_seldom()  # as a worker and a gateway do
    results, needed = Results(), with_needs(options.rows)
    names = {name for _, name in needed}
    measure_parts(results, names, options.rounds)
    measure_loads(results, needed, options.rounds, options.peer, options.up)
    add_differences(results)
    RESULTS.mkdir(exist_ok=True)
    text, values = table(results, names), json.dumps(to_json(results, names), indent=1) + "\n"
    (RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(values)
    if options.plots is not None:
        plots.draw(results, options.plots)
        (options.plots / "table.md").write_text(text + "\n")
        (options.plots / "figures.json").write_text(values)
    print("\n" + text)


if __name__ == "__main__":
    main()
