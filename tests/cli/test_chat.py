"""``tandem chat`` against a small HTTP server."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.cli.__main__ import main
from services.cli.chat import answer_once, take_turn
from services.cli.conversation import ChatApi, Conversation, describe_proof
from services.cli.settings import ChatSettings
from services.errors import AuthenticationFailed, InvalidRequest, PeerGone, TandemError, Unavailable
from tests.cli.fake_api import PROOF, FakeApi, serving


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi()) as api:
        yield api


@pytest.fixture
def client(api: FakeApi) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.base_url, trust_env=False, timeout=60.0) as client:
        yield client


def converse(client: httpx.Client, settings: ChatSettings | None = None) -> Conversation:
    return Conversation(ChatApi(client), settings or ChatSettings(), "smollm2")


def said(api: FakeApi) -> list[list[tuple[str, str]]]:
    return [[(message["role"], message["content"]) for message in body["messages"]] for body in api.bodies]


def test_the_history_grows_with_each_turn_and_reset_keeps_the_system_message(
    api: FakeApi, client: httpx.Client
) -> None:
    conversation = converse(client, ChatSettings(system="Be short."))
    output = io.StringIO()
    for line in ("Capital of France?", "Sure?", "/reset", "", "Again."):
        take_turn(conversation, line, output)
    system = ("system", "Be short.")
    first = [system, ("user", "Capital of France?")]
    assert said(api) == [
        first,
        [*first, ("assistant", "Paris."), ("user", "Sure?")],
        [system, ("user", "Again.")],
    ]
    assert output.getvalue() == "Paris.\nParis.\nforgotten\nParis.\n"


def test_only_given_options_are_sent(api: FakeApi, client: httpx.Client) -> None:
    list(converse(client).ask("a"))
    list(converse(client, ChatSettings(max_tokens=5, temperature=0, proof=True)).ask("a"))
    assert set(api.bodies[0]) == {"model", "messages", "stream"}
    assert api.bodies[1]["max_tokens"] == 5
    assert api.bodies[1]["temperature"] == 0
    assert api.bodies[1]["stream_options"] == {"include_usage": True}


def test_the_proof_is_shown_when_asked_for(client: httpx.Client) -> None:
    output = io.StringIO()
    take_turn(converse(client, ChatSettings(proof=True)), "a", output)
    assert output.getvalue() == f"Paris.\n[{describe_proof(PROOF)}]\n"
    assert describe_proof(PROOF).startswith("path pd, prefill p1, decode d1, transport nixl, cached_tokens 0")
    assert describe_proof(PROOF).endswith("kv_bytes 4096, prefill 12 ms, verified")


def test_a_failed_turn_is_forgotten_and_the_chat_goes_on(api: FakeApi, client: httpx.Client) -> None:
    conversation = converse(client)
    output = io.StringIO()
    api.breaks_off = True
    take_turn(conversation, "lost", output)
    api.breaks_off = False
    take_turn(conversation, "kept", output)
    assert "failed: the answer broke off" in output.getvalue()
    assert said(api)[1] == [("user", "kept")]


@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationFailed), (404, InvalidRequest), (503, Unavailable)])
def test_refusals_say_what_the_server_said(
    api: FakeApi, client: httpx.Client, status: int, error: type[TandemError]
) -> None:
    api.error_status = status
    with pytest.raises(error, match=f"the server answers {status}: no such thing"):
        list(converse(client).ask("a"))


def test_nothing_to_talk_to(client: httpx.Client, api: FakeApi) -> None:
    api.models = []
    with pytest.raises(Unavailable, match="serves no model yet"):
        ChatApi(client).first_model()
    with httpx.Client(base_url="http://127.0.0.1:1", trust_env=False) as nowhere, pytest.raises(PeerGone):
        ChatApi(nowhere).first_model()


def test_an_empty_prompt_is_refused(client: httpx.Client) -> None:
    with pytest.raises(InvalidRequest, match="no prompt"):
        answer_once(converse(client), io.StringIO(" \n"), io.StringIO())


def test_a_piped_prompt_is_answered_by_the_first_model(
    api: FakeApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.models = ["first", "second"]
    monkeypatch.setattr("sys.stdin", io.StringIO("line one\nline two\n"))
    assert main(["chat", "--base-url", api.base_url, "--api-key", "sk-1", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "Paris.\n"
    assert api.bodies[0]["model"] == "first"
    assert said(api) == [[("user", "line one\nline two")]]
    assert set(api.keys) == {"Bearer sk-1"}
