"""``tandem chat``: a conversation in the terminal over the HTTP API."""

import sys
from collections.abc import Sequence
from typing import TextIO
from urllib.parse import urlsplit

import httpx

from services.cli.conversation import ChatApi, Conversation
from services.cli.settings import ChatSettings
from services.cli.state import find_running
from services.config import load
from services.errors import InvalidRequest, TandemError

DEFAULT_URL = "http://127.0.0.1:8000"
HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it"


def main(argv: Sequence[str]) -> int:
    """Chat until the user leaves; without a terminal, answer what stands on standard input."""
    settings = load(ChatSettings, argv, prog="tandem chat").settings
    with _client(settings) as client:
        api = ChatApi(client)
        conversation = Conversation(api, settings, settings.model or api.first_model())
        if not sys.stdin.isatty():
            answer_once(conversation, sys.stdin, sys.stdout)
        else:
            chat(conversation, sys.stdout)
    return 0


def answer_once(conversation: Conversation, source: TextIO, output: TextIO) -> None:
    """Answer the whole text of ``source``.

    Raises:
        InvalidRequest: it is empty.
        TandemError: the server refused or failed.
    """
    prompt = source.read().strip()
    if not prompt:
        raise InvalidRequest("standard input has no prompt")
    _answer(conversation, prompt, output)


def chat(conversation: Conversation, output: TextIO) -> None:
    """Read prompts from the terminal and answer each; a failed answer does not end the conversation."""
    import readline  # noqa: F401  # gives input() line editing and history

    print(f"{conversation.model} at {conversation.base_url}; {HELP}", file=output)
    while True:
        try:
            prompt = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=output)
            return
        if prompt == "/exit":
            return
        take_turn(conversation, prompt, output)


def take_turn(conversation: Conversation, prompt: str, output: TextIO) -> None:
    """Obey one command or answer one prompt; what fails is said and forgotten."""
    if prompt == "/reset":
        conversation.reset()
        print("forgotten", file=output)
    elif prompt.startswith("/"):
        print(HELP, file=output)
    elif prompt:
        try:
            _answer(conversation, prompt, output)
        except TandemError as error:
            print(f"\nfailed: {error}", file=output)
        except KeyboardInterrupt:
            print("\ninterrupted", file=output)


def _answer(conversation: Conversation, prompt: str, output: TextIO) -> None:
    for text in conversation.ask(prompt):
        output.write(text)
        output.flush()
    print(file=output)
    if conversation.last_proof is not None:
        print(f"[{conversation.last_proof}]", file=output)


def _client(settings: ChatSettings) -> httpx.Client:
    cluster = find_running(settings.data_dir)
    base_url = settings.base_url or (cluster.base_url if cluster else DEFAULT_URL)
    headers = {} if settings.api_key is None else {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    is_local = urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")
    return httpx.Client(base_url=base_url, headers=headers, timeout=settings.timeout_s, trust_env=not is_local)
