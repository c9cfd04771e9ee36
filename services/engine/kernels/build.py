"""Compiles the CPU kernels with the host's C++ compiler, once, into a cache folder."""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from services.errors import ConfigurationError, DeadlineExceeded

UNITS = ("paged_attention.cpp", "linear.cpp", "packed.cpp", "rows.cpp")
HEADERS = (
    "attention_few.h",
    "attention_many.h",
    "attention_tile.h",
    "elements.h",
    "linear.h",
    "parallel.h",
    "scratch.h",
    "vector16.h",
)
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared")
COMPILE_TIMEOUT_S = 300.0
LOCK_POLL_S = 0.05


def sources() -> list[Path]:
    """Return every file that the kernels are made of."""
    return [Path(__file__).with_name(name) for name in (*UNITS, *HEADERS)]


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, or None."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def build(cache_folder: Path, compiler: str, *, march: str | None = None) -> Path:
    """Return the shared library for this host, compiling it unless the cache has it.

    The file name is a digest of sources, command line, compiler version and the CPU's instruction sets.
    ``march`` is the compiler's ``-march``; by default the host's own.

    Raises:
        ConfigurationError: the compiler fails; the text has its last lines.
        DeadlineExceeded: another process holds the lock for too long.
    """
    command = [compiler, *FLAGS, *_architecture(march)]
    library = cache_folder / f"kernels-{_key(command)}.so"
    cache_folder.mkdir(parents=True, exist_ok=True)
    if library.exists():
        return library
    with _locked(library.with_suffix(".lock")):
        if not library.exists():
            _compile(command, library)
    return library


def instruction_sets() -> str:
    """Return the CPU's vendor and feature flags as the kernel reports them, or the machine name elsewhere."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    wanted = ("vendor_id", "flags", "Features")
    found = {key: line for line in lines for key in wanted if line.startswith(key)}
    return "\n".join([platform.machine(), *(found[key] for key in wanted if key in found)])


def _architecture(march: str | None) -> list[str]:
    if march is None and platform.machine() in ("aarch64", "arm64"):
        return ["-mcpu=native"]
    return [f"-march={march or 'native'}"]


def _key(command: list[str]) -> str:
    digest = hashlib.sha256("\0".join([*command, instruction_sets()]).encode())
    digest.update(subprocess.run([command[0], "--version"], capture_output=True, timeout=30, check=False).stdout)
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(command: list[str], library: Path) -> None:
    units = [str(path) for path in sources() if path.name in UNITS]
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    result = subprocess.run(
        [*command, "-o", str(unfinished), *units],
        capture_output=True,
        text=True,
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )
    if result.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise ConfigurationError(f"{command[0]} cannot build the CPU kernels: {result.stderr[-2000:]}")
    unfinished.replace(library)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    deadline_s = time.monotonic() + COMPILE_TIMEOUT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise DeadlineExceeded(f"another process holds {path}") from None
                time.sleep(LOCK_POLL_S)
        yield
