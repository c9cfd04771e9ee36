"""``tandem``: one command for everything."""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence

from services.cli.failures import EXIT_REFUSED, reporting_failures
from services.command_line import nearest
from services.errors import ConfigurationError

COMMANDS = {
    "up": ("services.cli.up", "start a whole cluster on this machine"),
    "gateway": ("services.gateway.__main__", "run a gateway: the HTTP API"),
    "prefill": ("services.prefill.__main__", "run a prefill worker"),
    "decode": ("services.decode.__main__", "run a decode worker"),
    "embed": ("services.embed.__main__", "run an embedding worker"),
    "chat": ("services.cli.chat", "chat with a model over the API"),
    "config": ("services.cli.show_config", "show every setting of a process and where it came from"),
    "keys": ("services.cli.keys", "create, list and revoke API keys"),
    "export": ("services.cli.export", "write the objects of a project as JSON lines"),
    "import": ("services.cli.restore", "read such lines, or objects of OpenAI's API, into a project"),
    "status": ("services.cli.status", "show workers, load and block ledgers"),
    "drain": ("services.cli.drain", "let workers leave, without an error for anybody"),
}
"""Command to the module whose ``main(argv)`` runs it, imported only then, and a line of help."""

USAGE = "\n".join(
    [
        "usage: tandem COMMAND [options]",
        "",
        *(f"  {name:<10}{summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        "`tandem COMMAND --help` lists the options; each can also be set in the environment or a YAML file.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else EXIT_REFUSED
    if command in ("-V", "--version", "version"):
        print(f"tandem {importlib.metadata.version('tandem-serve')}")
        return 0
    if command not in COMMANDS:
        return reporting_failures("tandem", lambda: _refuse(command))
    return reporting_failures(f"tandem {command}", lambda: _main_of(command)(words[1:]))


def _main_of(command: str) -> Callable[[Sequence[str]], int | None]:
    found: Callable[[Sequence[str]], int | None] = importlib.import_module(COMMANDS[command][0]).main
    return found


def _refuse(command: str) -> int:
    raise ConfigurationError(f"unknown command {command}{nearest(command, COMMANDS)}")


if __name__ == "__main__":
    sys.exit(main())
