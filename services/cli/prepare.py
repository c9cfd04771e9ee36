"""Makes a model ready in the cache: ``python -m services.cli.prepare``, run by ``tandem up`` before workers start."""

import sys
from collections.abc import Sequence
from pathlib import Path

from services.cli.failures import reporting_failures
from services.config import Settings, load


class PrepareSettings(Settings):
    """Download or convert a model unless that was done before."""

    model: str | None = None
    """What to prepare."""
    embedding_model: str | None = None
    """The embedding model to prepare."""
    dtype: str = "bfloat16"
    """Type that GGUF weights are converted to."""
    cache_dir: Path
    """Where the result is kept."""


def main(argv: Sequence[str]) -> int:
    """Prepare the model, telling the progress on standard error; return the exit status."""
    from services.embed.source import find_model
    from services.engine.weights.sources import resolve_model

    settings = load(PrepareSettings, argv, prog="tandem prepare").settings
    progress = _Progress()
    if settings.model is not None:
        resolve_model(settings.model, cache_dir=settings.cache_dir, dtype=settings.dtype, progress=progress.tell)
    if settings.embedding_model is not None:
        find_model(settings.embedding_model, cache_dir=settings.cache_dir, progress=progress.tell)
    return 0


class _Progress:
    """Prints a step when it begins, and every tenth of it."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def tell(self, text: str, share: float | None) -> None:
        tenth = int((share or 0.0) * 10)
        if self._last == (text, tenth):
            return
        self._last = (text, tenth)
        print(text if share is None else f"{text} ({share:.0%})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(reporting_failures("tandem prepare", lambda: main(sys.argv[1:])))
