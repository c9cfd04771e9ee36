"""How the turn of a response is made: what is asked of the model, in the words of a run."""

from collections.abc import Sequence
from typing import Any

from services.errors import ContextLengthExceeded, InternalError
from services.gateway.jobs.events import Body
from services.gateway.runs.search_calls import NAME
from services.gateway.runs.turns import HistoryEntry, TurnPlan, TurnRequest, Turns


async def plan_response(
    turns: Turns,
    response: Body,
    history: Sequence[HistoryEntry],
    used_tokens: int = 0,
    called: Sequence[str] = (),
    *,
    is_cut: bool = False,
) -> TurnPlan:
    """Return the plan of a response's next turn; ``used_tokens`` and ``called`` are output and calls of those before.

    ``is_cut`` says that there is more before the history.

    Raises:
        ContextLengthExceeded: the input does not fit, and the response must not leave anything out.
        InvalidRequest: the model refuses it, or it asks for something that cannot be had.
        Unavailable: nobody serves the model now.
    """
    plan = await turns.plan(TurnRequest(_as_run(response), history, used_completion_tokens=used_tokens, called=called))
    if plan is None:
        raise InternalError("A response has no limit of prompt tokens, but it was met.")
    begins_with = history[0].message_id if history else None
    is_cut = is_cut or plan.first_message_id not in (None, begins_with)
    if is_cut and response["truncation"] == "disabled":
        raise ContextLengthExceeded(
            "Your input exceeds the context window of this model: only a part of it would fit. Please adjust your "
            "input and try again, or set 'truncation' to 'auto'.",
            param="input",
        )
    return plan


def with_sampling(response: Body, plan: TurnPlan) -> Body:
    """Return a response that shows the sampling of its plan where the request left it open."""
    shown = {name: response[name] for name in ("temperature", "top_p")}
    chosen = {name: plan.sampling.get(name, 1.0) for name, value in shown.items() if value is None}
    return {**response, **chosen}


def _as_run(response: Body) -> Body:
    return {
        "id": response["id"],
        "model": response["model"],
        "instructions": response["instructions"] or "",
        "tools": [_tool(tool) for tool in response["tools"]],
        "tool_choice": _choice(response["tool_choice"]),
        "parallel_tool_calls": response["parallel_tool_calls"],
        "response_format": _format(response["text"]["format"]),
        "temperature": response["temperature"],
        "top_p": response["top_p"],
        "max_completion_tokens": response["max_output_tokens"],
        "max_prompt_tokens": None,
        "max_tool_calls": response["max_tool_calls"],
        "truncation_strategy": {"type": "auto", "last_messages": None},
    }


def _tool(tool: Body) -> Body:
    if tool["type"] != "function":
        return tool
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> Any:
    """Return a choice; one that is not what it should be is refused where chat completions refuse it."""
    if isinstance(choice, str):
        return choice
    if choice["type"] == "allowed_tools":
        allowed = [_named(each) for each in choice.get("tools", ())]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": allowed}}
    return _named(choice)


def _named(choice: Body) -> Body:
    if choice.get("type") == NAME:
        return {"type": "function", "function": {"name": NAME}}
    return {"type": choice.get("type"), "function": {"name": choice.get("name")}}


def _format(wanted: Body) -> Body:
    if wanted["type"] != "json_schema":
        return wanted
    return {"type": "json_schema", "json_schema": {name: value for name, value in wanted.items() if name != "type"}}
