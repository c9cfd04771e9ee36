"""What a run says of the form of its turns, in the words of chat completions."""

from collections.abc import Sequence
from typing import Any

from services.errors import ModelRefused
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.search_calls import DEFINITION, NAME, is_tool_of
from services.gateway.structured.answer_form import AnswerForm, answer_form
from services.gateway.tools.use import Definition

MAX_SEARCHES = 4
"""Of one run: small models that may search on and on do so."""


def turn_form(run: Body, called: Sequence[str] = ()) -> AnswerForm:
    """Return the form of a run's next turn; ``called`` are the functions that it has called so far.

    A choice that forces holds for the first turn. Behind it the model may call and answer after ``required``, and
    answers after a tool that was named. The prompt tells of all tools whatever may be called, so that prompts of
    one thread begin alike.

    Raises:
        InvalidRequest: a tool, the choice or the format is not what it should be.
        ModelRefused: a tool that cannot be had here.
    """
    if any(tool["type"] == "code_interpreter" for tool in run["tools"]):
        raise ModelRefused(
            "The tool 'code_interpreter' cannot be used here: it needs a sandbox, and none is configured. Leave it out "
            "of the run's tools."
        )
    tools = [_definition(tool) for tool in run["tools"]]
    choice, wanted = run["tool_choice"], run["response_format"]
    form = answer_form(
        tools,
        "auto" if called or choice == "none" else _choice(choice),
        run["parallel_tool_calls"],
        wanted if isinstance(wanted, dict) else None,
    )
    if choice == "none" or (called and isinstance(choice, dict)):
        return form.without_calls([tool["function"]["name"] for tool in tools])
    is_search_over = is_tool_of(run) and called.count(NAME) >= max_searches(run)
    return form.without_calls([NAME]) if is_search_over else form


def max_searches(run: Body) -> int:
    """Return how often a run or response may search; responses can say ``max_tool_calls``."""
    wanted = run.get("max_tool_calls")
    return MAX_SEARCHES if wanted is None else min(wanted, MAX_SEARCHES)


def check_form(run: Body) -> None:
    """Refuse a new run whose turns can have no form; one with a tool that cannot be had here fails later.

    Raises:
        InvalidRequest: a tool, the choice or the format is not what it should be; ``param`` names it.
    """
    try:
        turn_form(run)
    except ModelRefused:
        return


def _definition(tool: Body) -> Definition:
    return DEFINITION if tool["type"] == NAME else tool


def _choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice["type"] == NAME:
        return {"type": "function", "function": {"name": NAME}}
    return choice
