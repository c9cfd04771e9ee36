"""Tools and formats of responses with the models of the cluster."""

from pathlib import Path

import orjson

from tests.gateway.apis.stored import stored_world
from tests.gateway.responses.client import Caller, said
from tests.gateway.runs.test_function_calls import PARIS, ROOMY, TOLD, WEATHER, output
from tests.gateway.twins import END_ID, Script, tokens

TOOL = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FORMAT = {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}


async def test_a_response_calls_what_it_has_to_and_is_held_to_its_format(tmp_path: Path) -> None:
    async with stored_world(tmp_path, model=ROOMY) as w:
        caller = Caller(w)
        w.decode.first = [Script(output(PARIS)), Script([*tokens('{"city": "Paris"}'), END_ID])]
        asked = await caller.create("Weather?", tools=[TOOL], tool_choice="required")
        [call] = asked["output"]
        answer = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        whole = await caller.create([answer], previous_response_id=asked["id"], text={"format": FORMAT})
        w.decode.first = [Script(output(PARIS))]
        await caller.create("And now?", previous_response_id=whole["id"], tools=[TOOL], tool_choice="required")
        forced, held, forced_again = [orjson.loads(request.sampling.grammar) for request in w.decode.requests]

    assert [(call["name"], call["arguments"])] == TOLD[:1]
    assert "start: calls" in forced["grammars"][0]["lark_grammar"]
    assert "start: calls" in forced_again["grammars"][0]["lark_grammar"]
    assert held["grammars"][0]["json_schema"]["properties"] == SCHEMA["properties"]
    assert said(whole) == '{"city": "Paris"}'
