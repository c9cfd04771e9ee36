"""How a command ends: one line on standard error and an exit status that ``tandem up`` understands."""

import sys
from collections.abc import Callable

from services.errors import ConfigurationError, ModelRefused, TandemError

EXIT_FAILED = 1
EXIT_REFUSED = 2
"""The settings or the model cannot work: starting the process again would not help."""
EXIT_INTERRUPTED = 130

_EXTRAS = {
    "torch": "worker",
    "transformers": "worker",
    "safetensors": "worker",
    "nixl": "worker",
    "fastapi": "gateway",
    "uvicorn": "gateway",
    "uvloop": "gateway",
    "orjson": "gateway",
    "jinja2": "gateway",
    "tokenizers": "gateway",
    "httpx": "cli",
}


def reporting_failures(prog: str, run: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; errors that Tandem raises on purpose become one line."""
    try:
        return run() or 0
    except TandemError as error:
        _complain(prog, " ".join(error.message.split()))
        return EXIT_REFUSED if isinstance(error, ConfigurationError | ModelRefused) else EXIT_FAILED
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _complain(prog, f"{error.name} is not installed; install the extra: pip install 'tandem-serve[{extra}]'")
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _complain(prog: str, message: str) -> None:
    print(f"{prog}: {message}", file=sys.stderr)
