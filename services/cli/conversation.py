"""A conversation with history, and the three requests it needs of the HTTP API."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from services.cli.settings import ChatSettings
from services.errors import AuthenticationFailed, InvalidRequest, PeerError, PeerGone, PeerStalled, Unavailable


class ChatApi:
    """The part of the OpenAI API that a chat needs."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return str(self._client.base_url)

    def first_model(self) -> str:
        """Return the first model that is served.

        Raises:
            TandemError: the server cannot be reached, refuses, or serves nothing.
        """
        with _named_failures(self.base_url):
            response = self._client.get("/v1/models")
            _check(response)
            models = response.json()["data"]
        if not models:
            raise Unavailable(f"{self.base_url} serves no model yet")
        return str(models[0]["id"])

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of one chat completion.

        Raises:
            TandemError: the server cannot be reached, refuses, or breaks off.
        """
        with (
            _named_failures(self.base_url),
            self._client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response,
        ):
            _check(response)
            for data in _events(response):
                if data == "[DONE]":
                    return
                chunk: dict[str, Any] = json.loads(data)
                if "error" in chunk:
                    raise PeerError(_message(chunk))
                yield chunk
        raise PeerGone("the answer broke off: the server closed the stream before its end")


class Conversation:
    """Messages so far. A turn that fails or is interrupted leaves no trace in them."""

    def __init__(self, api: ChatApi, settings: ChatSettings, model: str) -> None:
        self._api = api
        self._settings = settings
        self._messages: list[dict[str, str]] = []
        self.model = model
        self.base_url = api.base_url
        self.last_proof: str | None = None
        """Which way the last answer went, if the settings ask for it."""
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        system = self._settings.system
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def ask(self, prompt: str) -> Iterator[str]:
        """Yield the answer's text as it comes, then remember both."""
        self.last_proof = None
        messages = [*self._messages, {"role": "user", "content": prompt}]
        parts: list[str] = []
        for chunk in self._api.stream(self._body(messages)):
            usage = chunk.get("usage") or {}
            if self._settings.proof and "tandem" in usage:
                self.last_proof = describe_proof(usage["tandem"])
            for choice in chunk["choices"]:
                text = choice["delta"].get("content") or ""
                parts.append(text)
                yield text
        self._messages = [*messages, {"role": "assistant", "content": "".join(parts)}]

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        optional = {"max_tokens": self._settings.max_tokens, "temperature": self._settings.temperature}
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        body |= {name: value for name, value in optional.items() if value is not None}
        return body | ({"stream_options": {"include_usage": True}} if self._settings.proof else {})


def describe_proof(proof: dict[str, Any]) -> str:
    """Return the path proof in one line."""
    names = ("path", "prefill", "decode", "transport", "cached_tokens", "transferred_tokens", "recomputed_tokens")
    parts = [f"{name} {proof[name]}" for name in (*names, "kv_bytes") if proof.get(name) not in (None, "")]
    timings = proof.get("timings_ms") or {}
    parts += [f"{name} {float(value):.0f} ms" for name, value in timings.items()]
    if proof.get("verified") is not None:
        parts.append("verified" if proof["verified"] else "unverified")
    return ", ".join(parts)


def _events(response: httpx.Response) -> Iterator[str]:
    """Yield the data of each server-sent event."""
    data: list[str] = []
    for line in response.iter_lines():
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        message = _message(response.json())
    except ValueError:
        message = response.text[:200] or response.reason_phrase
    text = f"the server answers {response.status_code}: {message}"
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise AuthenticationFailed(text)
    raise Unavailable(text) if response.is_server_error else InvalidRequest(text)


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", error) if isinstance(error, dict) else error or body)


@contextmanager
def _named_failures(base_url: str) -> Iterator[None]:
    """Turn the client library's errors into ours."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise PeerStalled(f"{base_url} did not answer in time") from error
    except httpx.TransportError as error:
        raise PeerGone(f"cannot talk to {base_url}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError(f"{base_url} sent something that is no answer: {error}") from error
