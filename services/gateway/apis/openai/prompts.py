"""The four forms of a completion's prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidRequest
from services.gateway.models import ServedModel

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as ids and as text."""

    token_ids: tuple[int, ...]
    text: str


def listed_prompts(given: Any) -> list[Prompt]:
    """Return the prompts of a request: a string, a list of strings, a list of ids, or a list of those.

    No prompt at all is an empty one.

    Raises:
        InvalidRequest: something else.
    """
    if given is None:
        return [""]
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise _wrong_form()
    return [tuple(given)] if _is_ids(given) else [_one_of_several(prompt) for prompt in given]


def encode_prompts(model: ServedModel, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
    """Return the ids of each prompt; CPU work.

    Raises:
        InvalidRequest: an id that the model does not have.
    """
    return [_encode(model, prompt) for prompt in prompts]


def _one_of_several(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and _is_ids(prompt):
        return tuple(prompt)
    raise _wrong_form()


def _encode(model: ServedModel, prompt: Prompt) -> EncodedPrompt:
    if isinstance(prompt, str):
        return EncodedPrompt(tuple(model.tokenizer.encode_prompt(prompt)), prompt)
    vocab_size = model.card.vocab_size
    unknown = next((token_id for token_id in prompt if not 0 <= token_id < vocab_size), None)
    if unknown is not None:
        raise InvalidRequest(f"The model has no token {unknown}; ids go up to {vocab_size - 1}.", param="prompt")
    return EncodedPrompt(prompt, model.tokenizer.raw.decode(list(prompt), skip_special_tokens=False))


def _is_ids(values: list[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _wrong_form() -> InvalidRequest:
    return InvalidRequest(
        "'prompt' must be a string, a list of strings, a list of token ids or a list of such lists, not empty.",
        param="prompt",
    )
