"""``python -m bench.gpu``: the engine on one GPU, and P/D in two processes that share it.

    python -m bench.gpu [--shape 1b] [--device cuda] [--no-cluster] [--json FILE]

Decode is compared with the time that reading weights and cache would take at the speed of a copy, prefill with the
speed of one large product, both measured here. The same with ``--exact`` follows. With ``--device cpu --shape tiny``
it shows that the command works.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from bench.catalog import LOADS, TANDEM_LOCAL, TANDEM_PD
from bench.gpu.device import copy_bytes_per_s, matrix_flops_per_s
from bench.gpu.engine import DeviceEngine, Limits, Load
from bench.gpu.shapes import SHAPES, save
from bench.row import Results
from bench.run import RESULTS, SETTINGS, measure_system
from bench.systems import cluster

SMALL = Load(batches=(1, 2), context=32, prompt=64, rounds=2)
"""For hosts without a GPU."""
CLUSTER_WORKLOADS = ("one", "batch16", "short", "prefill")


def measure_engine(shape: str, device: torch.device, dtype: str, folder: Path) -> dict[str, dict[str, float]]:
    """Return the figures of the engine as it comes and with ``--exact``, and what the device does by itself."""
    is_cuda = device.type == "cuda"
    limits = Limits(
        copy_bytes_per_s(device, num_bytes=2**30 if is_cuda else 2**20),
        matrix_flops_per_s(device, getattr(torch, dtype), size=8192 if is_cuda else 256),
    )
    found = {"device": {"copy_gb_per_s": limits.copy_bytes_per_s / 1e9, "tflops": limits.matrix_flops_per_s / 1e12}}
    for name, exact in (("engine", False), ("exact", True)):
        load = Load() if is_cuda else SMALL
        engine = DeviceEngine(SHAPES[shape], folder, dtype, device, load, folder / "kernels", exact=exact)
        found[name] = dict(engine.figures(limits))
    return found


def measure_clusters(folder: Path, device: str, dtype: str) -> Results:
    """Run workloads on two workers of one device, with every prompt prefilled by the peer and with none."""
    results = Results()
    loads = [each for each in LOADS if each.workload in CLUSTER_WORKLOADS]
    options = ["--model", str(folder), "--device", device, "--dtype", dtype]
    for name in (TANDEM_PD, TANDEM_LOCAL):
        measure_system(results, cluster(name, options, SETTINGS[name]), loads, range(1), RESULTS / "gpu")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--no-cluster", action="store_true", help="leave out P/D in two processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(prefix="tandem-gpu-") as name:
        folder = save(SHAPES[options.shape], Path(name), getattr(torch, options.dtype))
        found: dict[str, object] = {**measure_engine(options.shape, device, options.dtype, folder)}
        if not options.no_cluster:
            results = measure_clusters(folder, options.device, options.dtype)
            found["clusters"], found["failures"] = results.to_json(), results.failures
    text = json.dumps({"shape": options.shape, "torch": torch.__version__, **found}, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
