"""The process that parses one document: bytes on standard input, UTF-8 text on standard output.

``python -m services.gateway.documents.child FORMAT MEMORY_BYTES CPU_S``; status 3 and a line on standard error mean
that the document cannot be read.
"""

import logging
import os
import resource
import sys
from collections.abc import Sequence

from services.gateway.documents.extract import EXTRACTORS, Unreadable

EXIT_UNREADABLE = 3
_NICENESS = 10


def main(argv: Sequence[str]) -> int:
    """Parse; return the exit status."""
    kind, memory_bytes, cpu_s = argv[0], int(argv[1]), int(argv[2])
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    logging.disable()  # the libraries' remarks on a stranger's document
    data = sys.stdin.buffer.read()
    try:
        text = EXTRACTORS[kind](data)
    except Unreadable as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNREADABLE
    sys.stdout.buffer.write(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
