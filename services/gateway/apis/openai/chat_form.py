"""The form of chat answers, whole or in chunks."""

from collections.abc import Sequence
from typing import Any

from services.gateway.answering.answers import ChoiceEnd
from services.gateway.answering.choice_output import OutputPiece
from services.gateway.apis.openai.collected import CollectedChoice
from services.gateway.text.choice import Piece, TokenText
from services.gateway.tools.extraction import CallOpening, CallPiece


class ChatForm:
    """The choices of a chat answer."""

    def __init__(self, *, with_logprobs: bool, must_call: bool) -> None:
        """An answer that ``must_call`` has no content."""
        self._with_logprobs = with_logprobs
        self._must_call = must_call

    def opening(self, index: int) -> dict[str, Any]:
        """Return the chunk that names the role."""
        content = None if self._must_call else ""
        return self._choice(index, {"role": "assistant", "content": content, "refusal": None})

    def piece(self, index: int, piece: OutputPiece) -> dict[str, Any]:
        """Return more text, or more of a tool call."""
        match piece:
            case Piece():
                return self._choice(index, {"content": piece.text}, tokens=piece.tokens)
            case CallOpening():
                call = {"index": piece.call_index, **_call(piece.call_id, piece.name, "")}
            case CallPiece():
                call = {"index": piece.call_index, "function": {"arguments": piece.arguments}}
        return self._choice(index, {"tool_calls": [call]})

    def ending(self, end: ChoiceEnd) -> dict[str, Any]:
        """Return the end of a choice."""
        return {**self._choice(end.index, {}), "finish_reason": end.reason}

    def choices(self, choices: Sequence[CollectedChoice]) -> list[dict[str, Any]]:
        """Return all choices of a whole answer."""
        return [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": _logprobs(choice.tokens) if self._with_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]

    def _choice(self, index: int, delta: dict[str, Any], *, tokens: Sequence[TokenText] = ()) -> dict[str, Any]:
        logprobs = _logprobs(tokens) if self._with_logprobs and tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _message(choice: CollectedChoice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
    if not choice.calls:
        return message
    calls = [_call(call.call_id, call.name, "".join(call.arguments)) for call in choice.calls]
    return {**message, "content": choice.text or None, "tool_calls": calls}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    content = [
        {
            **_logprob(token.data, token.logprob),
            "top_logprobs": [_logprob(data, logprob) for data, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}
