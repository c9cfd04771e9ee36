"""Chooses operators from what the host has, once, at start."""

from pathlib import Path

import torch

from services.engine.attention import cuda
from services.engine.kernels import build
from services.engine.kernels.library import DTYPES
from services.engine.operators import Operators
from services.engine.products.product import TorchProducts
from services.engine.self_check import agrees
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


def default_operators(
    device: torch.device, dtype: torch.dtype, *, cache_folder: Path, num_threads: int, exact: bool = False
) -> Operators:
    """Return the best operators for ``device`` and ``dtype``.

    On CPU: our kernels, compiled into ``cache_folder`` at the first start; plain torch where the host has no
    C++ compiler, the kernels do not know ``dtype``, or what was compiled disagrees with plain torch.

    Raises:
        ConfigurationError: the compiler fails.
        ModelRefused: a device without an attention backend.
    """
    if device.type != "cpu":
        return Operators(cuda.default_backend(device, dtype, exact=exact), TorchProducts())
    compiler = build.find_compiler()
    if compiler is None:
        _log.warning("kernels.missing", reason="no C++ compiler was found (g++ or clang++): plain torch is slower")
        return Operators.plain()
    if dtype not in DTYPES:
        return Operators.plain()
    native = Operators.native(build.build(cache_folder, compiler), num_threads=num_threads)
    if agrees(native, dtype):
        return native
    _log.warning("kernels.refused", compiler=compiler, dtype=str(dtype), reason="they disagree with plain torch")
    return Operators.plain()
