"""``make bench``: measure, and print one table of our figures beside those of peers.

    python -m bench [--rows scheduler one ...] [--rounds 3] [--repeats 2] [--vllm DIR] [--llama-cpp DIR]
                    [--peer NAME=URL,MODEL ...] [--plots docs/performance] [-- options of `tandem up`]

Hosts are noisy: in each round all systems are measured in turn, and medians over all rounds are printed. Only the
system that is measured runs: each is started, runs its workloads and is stopped before the next one starts.
"""

import argparse
import asyncio
import json
import signal
import time
from collections.abc import Collection, Sequence, Set
from pathlib import Path
from types import FrameType

import aiohttp

from bench import plots
from bench.catalog import DIFFERENCES, LOADS, NAMES, PARTS, TANDEM, TANDEM_LOCAL, TANDEM_PD, Load, Part
from bench.load import run
from bench.peers import llama, vllm
from bench.processes import SystemFailed
from bench.report import add_differences, table, to_json
from bench.row import Results
from bench.rows.default_model import model_folder
from bench.systems import Endpoint, System, cluster, running
from services.engine.weights.sources import DEFAULT_MODEL
from services.resources import collect_garbage_seldom

RESULTS = Path(__file__).parent / "results"
SETTINGS = {
    TANDEM: {},
    TANDEM_PD: {"TANDEM_LOCAL_PREFILL_TOKENS": "0", "TANDEM_MAX_LOCAL_PREFILL_TOKENS": "0"},
    TANDEM_LOCAL: {"TANDEM_LOCAL_PREFILL_TOKENS": "1000000"},
}
"""Our systems, and what each is told as environment variables."""


def measure_parts(results: Results, parts: Sequence[Part], names: Collection[str]) -> None:
    """Measure once what needs no server."""
    for part in parts:
        if any(row.name in names for row in part.rows):
            try:
                figures = part.measure()
            except SystemFailed as error:
                _note(results, part.system, error)
            else:
                results.add(part.system, figures)
                print(json.dumps({"system": part.system, **figures}), flush=True)


def measure_systems(
    results: Results, systems: Sequence[System], needed: Set[tuple[str, str]], turns: Sequence[int], logs: Path
) -> None:
    """Run the workloads of the ``needed`` rows (named by system and row) on one system after the other.

    A peer needs the rows that our judged system needs. Prompts differ between ``turns``, each of which runs all
    workloads once.
    """
    for system in systems:
        like = system.name if system.name in SETTINGS else TANDEM
        loads = [each for each in LOADS if (like, each.row.name) in needed]
        if loads:
            measure_system(results, system, loads, turns, logs)


def measure_system(results: Results, system: System, loads: Sequence[Load], turns: Sequence[int], logs: Path) -> None:
    """Start a system, run the workloads of ``loads`` once for each of ``turns``, and stop it; a failure is noted."""
    began_s = time.monotonic()
    try:
        with system.serve(logs) as endpoint:
            print(f"-- {system.name} answers after {time.monotonic() - began_s:.0f} s", flush=True)
            for turn in turns:
                asyncio.run(_measure_loads(results, system.name, endpoint, loads, turn))
    except SystemFailed as error:
        _note(results, system.name, error)
    except (aiohttp.ClientError, TimeoutError, RuntimeError) as error:
        _note(results, system.name, SystemFailed(f"failed: {type(error).__name__} {error}: see {logs}"))
    print(f"-- {system.name} is stopped after {time.monotonic() - began_s:.0f} s", flush=True)


async def _measure_loads(results: Results, name: str, endpoint: Endpoint, loads: Sequence[Load], turn: int) -> None:
    workloads = [*dict.fromkeys(each.workload for each in loads)]
    async for workload, figures in run(endpoint.base_url, endpoint.model, workloads, turn):
        told = [each for each in loads if each.workload == workload and each.figure in figures]
        results.add(name, {each.row.name: figures[each.figure] for each in told})


def _note(results: Results, system: str, error: SystemFailed) -> None:
    results.fail(system, str(error))
    print(f"-- {system} {error}", flush=True)


def with_needs(names: Sequence[str]) -> set[tuple[str, str]]:
    """Return ``names`` as rows of the system that is judged, and the rows that they are computed from."""
    needs = {need for each in DIFFERENCES if each.row.name in names for need in each.needs}
    return needs | {(TANDEM, name) for name in names}


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=NAMES, default=NAMES, metavar="ROW", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=1, help="so often all systems are measured in turn")
    parser.add_argument("--repeats", type=int, default=1, help="so often a system runs its workloads at each start")
    parser.add_argument("--vllm", type=vllm.environment, metavar="DIR", help="made by bench/peers/install_vllm.sh")
    parser.add_argument(
        "--llama-cpp", type=llama.environment, metavar="DIR", help="made by bench/peers/install_llama_cpp.sh"
    )
    parser.add_argument(
        "--peer", type=running, action="append", default=[], metavar="NAME=URL,MODEL", help="runs already"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="what ours and vLLM serve, as `tandem up --model`")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write table.md, figures.json and plots there")
    parser.add_argument("up", nargs="*", help="options of `tandem up`, after --")
    return parser.parse_args(argv)


def systems_of(options: argparse.Namespace) -> list[System]:
    """Return all systems that run workloads, ours first."""
    up = ["--model", options.model, *options.up]
    own = [cluster(name, up, settings) for name, settings in SETTINGS.items()]
    peers = vllm.Vllm(options.vllm, model_folder(options.model)).systems() if options.vllm else ()
    return [*own, *peers, *options.peer]


def parts_of(options: argparse.Namespace) -> list[Part]:
    """Return all parts, those of peers last."""
    return [*PARTS, *([llama.part(options.llama_cpp)] if options.llama_cpp else [])]


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    options = parse_options()
    signal.signal(signal.SIGTERM, _leave)  # as Ctrl-C does, it stops what runs
    collect_garbage_seldom()  # as a worker and a gateway do
    results, needed = Results(), with_needs(options.rows)
    names = {name for _, name in needed}
    systems, parts = systems_of(options), parts_of(options)
    folder = RESULTS / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    for index in range(options.rounds):
        print(f"== round {index + 1} of {options.rounds}, logs in {folder}", flush=True)
        measure_parts(results, parts, names)
        turns = range(index * options.repeats, (index + 1) * options.repeats)
        measure_systems(results, systems, needed, turns, folder)
    add_differences(results)
    text, values = table(results, names), json.dumps(to_json(results, names), indent=1) + "\n"
    (folder / "figures.json").write_text(values)
    if options.plots is not None:
        plots.draw(results, options.plots)
        (options.plots / "table.md").write_text(text + "\n")
        (options.plots / "figures.json").write_text(values)
    print("\n" + text)
    if results.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
