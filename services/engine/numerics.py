"""The numerics class: everything that a result depends on, bitwise, besides model and request.

The number of threads is not part of it: linears, norms and attention gave equal bits with one and two threads.
"""

from importlib.metadata import version

import torch

from services.engine.attention.backend import AttentionBackend
from services.engine.kernels.build import instruction_sets

_KNOWN_FEATURES = ("amx_bf16", "avx512_fp16", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")


def numerics_class(
    *, dtype: str, weight_form: str, execution: str, backend: AttentionBackend, device: torch.device
) -> str:
    """Return the name of the class, e.g. ``bfloat16/dense/eager/native-avx512_bf16/amd-avx512_bf16/torch-2.13``.

    ``execution`` is ``eager`` or ``compiled``. Versions are those of torch and transformers, and of llguidance: whoever
    continues a sequence holds it to its grammar with the same masks.
    """
    hardware = cpu_name() if device.type == "cpu" else _gpu_name(device)
    libraries = (f"torch-{torch.__version__}", *(f"{name}-{version(name)}" for name in ("transformers", "llguidance")))
    return "/".join((dtype, weight_form, execution, backend.kernel_set, hardware, *libraries))


def cpu_name() -> str:
    """Return vendor and best known instruction set; BLAS libraries choose their kernels by both."""
    text = instruction_sets()
    features = set(text.split())
    best = next((feature for feature in _KNOWN_FEATURES if feature in features), "plain")
    vendor = next((name for name in ("AuthenticAMD", "GenuineIntel") if name in features), text.split()[0])
    return f"{vendor}-{best}"


def _gpu_name(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}-cuda{torch.version.cuda}"
