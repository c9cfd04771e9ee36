"""``tandem config [PROCESS]``: every setting of a process and where it came from."""

import re
from collections.abc import Sequence

from services.command_line import display, nearest
from services.config import SETTINGS_CLASSES, Loaded, SettingsT, load, settings_class_of
from services.errors import ConfigurationError


def main(argv: Sequence[str]) -> int:
    """Print the settings as ``tandem PROCESS`` with the same options would read them."""
    words = list(argv)
    kind = words.pop(0) if words and not words[0].startswith("-") else "up"
    if kind not in SETTINGS_CLASSES:
        raise ConfigurationError(f"unknown process {kind}{nearest(kind, SETTINGS_CLASSES)}")
    loaded = load(settings_class_of(SETTINGS_CLASSES[kind]), words, prog=f"tandem {kind}")
    print(settings_table(loaded))
    return 0


def settings_table(loaded: Loaded[SettingsT]) -> str:
    """Return one line per field, in order of declaration; secrets are masked."""
    rows = [
        (name, _mask(display(getattr(loaded.settings, name))), str(origin))
        for name, origin in loaded.provenance.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows)


def _mask(text: str) -> str:
    """Hide the password of a URL."""
    return re.sub(r"(://[^/@:]*:)[^/@]+@", r"\1***@", text)
