"""The embedding process: ``python -m services.embed`` or ``tandem embed``."""

import asyncio
import sys
from collections.abc import Sequence

from services.config import load
from services.embed.host import EmbedHost
from services.embed.settings import EmbedSettings
from services.telemetry.logs import configure_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Run an embedding worker until it is told to stop."""
    settings = load(EmbedSettings, sys.argv[1:] if argv is None else argv, prog="tandem embed").settings
    configure_logging(level=settings.log_level, as_json=settings.log_json, process="embed")
    asyncio.run(_run(settings))
    return 0


async def _run(settings: EmbedSettings) -> None:
    await EmbedHost(settings).run()


if __name__ == "__main__":
    sys.exit(main())
