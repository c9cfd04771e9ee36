"""What a run says of the form of its turns, in the words of chat completions."""

from typing import Any

from services.errors import ModelRefused
from services.gateway.answer_form import AnswerForm, answer_form
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.search_calls import DEFINITION, NAME
from services.gateway.tools.use import Definition


def turn_form(run: Body, *, has_called: bool = False) -> AnswerForm:
    """Return the form of a turn; who has called already is not made to call again.

    Raises:
        InvalidRequest: a tool, the choice or the format is not what it should be.
        ModelRefused: a tool that cannot be had here.
    """
    if any(tool["type"] == "code_interpreter" for tool in run["tools"]):
        raise ModelRefused(
            "The tool 'code_interpreter' cannot be used here: it needs a sandbox, and none is configured. Leave it out "
            "of the run's tools."
        )
    choice = _choice(run["tool_choice"])
    wanted = run["response_format"]
    return answer_form(
        [_definition(tool) for tool in run["tools"]],
        "auto" if has_called and choice != "none" else choice,
        run["parallel_tool_calls"],
        wanted if isinstance(wanted, dict) else None,
    )


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
