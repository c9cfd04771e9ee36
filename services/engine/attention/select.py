"""Chooses the attention backend from what the host has, once, at start."""

from pathlib import Path

import torch

from services.engine.attention import cuda, native_build, self_check
from services.engine.attention.backend import AttentionBackend
from services.engine.attention.native import DTYPES, NativeAttention
from services.engine.attention.reference import ReferenceAttention
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


def default_backend(
    device: torch.device, dtype: torch.dtype, *, cache_folder: Path, num_threads: int, exact: bool = False
) -> AttentionBackend:
    """Return the best backend for ``device`` and ``dtype``.

    On CPU: our kernels, compiled into ``cache_folder`` at the first start; plain torch where the host has no
    C++ compiler, the kernels do not know ``dtype``, or what was compiled disagrees with plain torch.

    Raises:
        ConfigurationError: the compiler fails.
        ModelRefused: a device without a backend.
    """
    if device.type != "cpu":
        return cuda.default_backend(device, dtype, exact=exact)
    compiler = native_build.find_compiler()
    if compiler is None or dtype not in DTYPES:
        return ReferenceAttention()
    native = NativeAttention(native_build.build(cache_folder, compiler), num_threads=num_threads)
    if self_check.agrees(native, dtype):
        return native
    _log.warning("kernels.refused", compiler=compiler, dtype=str(dtype), reason="they disagree with plain torch")
    return ReferenceAttention()
