"""The process in which grammars are tried: ``grammar_trial`` starts it, asks and kills it."""

import json
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from services.engine.llguidance_grammar import LLGuidanceGrammars
from services.errors import InvalidRequest

_COMPILING_BYTES = 2**29
"""Most memory that a grammar may take beside the tokenizer."""


def answer(questions: Iterable[bytes], answers: IO[bytes]) -> None:
    """Answer each line of JSON with one: the first names the tokenizer, the others are definitions."""
    lines = iter(questions)
    setup = next(lines, None)
    if setup is None:
        return
    values = json.loads(setup)
    grammars = LLGuidanceGrammars(
        values["tokenizer_json"], vocab_size=values["vocab_size"], end_token_ids=values["end_token_ids"]
    )
    _limit_memory()
    _say(answers, None)
    for line in lines:
        try:
            grammars.compile(json.loads(line))
        except InvalidRequest as error:
            _say(answers, error.message)
        else:
            _say(answers, None)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _COMPILING_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _say(answers: IO[bytes], problem: str | None) -> None:
    answers.write(json.dumps(problem).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    answer(sys.stdin.buffer, sys.stdout.buffer)
