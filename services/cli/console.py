"""One log for many processes: lines prefixed and coloured on the terminal, and kept in a file per process."""

from pathlib import Path
from typing import TextIO

_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_NAME_WIDTH = 9


class Console:
    """Writes the lines of all processes to ``stream``; close it after use."""

    def __init__(self, stream: TextIO, log_folder: Path, *, use_colour: bool) -> None:
        self._stream = stream
        self._folder = log_folder
        self._use_colour = use_colour
        self._files: dict[str, TextIO] = {}
        log_folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write_line(self, name: str, line: str) -> None:
        """Show one line of the process ``name`` and keep it."""
        text = line.rstrip()
        if not text:
            return
        file = self._file(name)
        file.write(text + "\n")
        self._stream.write(f"{self._prefix(name)} {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _prefix(self, name: str) -> str:
        prefix = f"{name:<{_NAME_WIDTH}} |"
        if not self._use_colour:
            return prefix
        colour = _COLOURS[list(self._files).index(name) % len(_COLOURS)]
        return f"\033[{colour}m{prefix}\033[0m"

    def _file(self, name: str) -> TextIO:
        """Return the open log of a process; that of the start before is kept as ``.old``."""
        if name not in self._files:
            path = self._folder / f"{name}.log"
            if path.exists():
                path.replace(path.with_suffix(".log.old"))
            self._files[name] = path.open("w", encoding="utf-8", buffering=1)
        return self._files[name]
