"""The part of OpenAI's API description that the gateway serves, made from the whole one.

    python -m tests.compat.description openapi.json    # of github.com/openai/openai-openapi, MIT licence

writes ``openapi.json`` beside this file: only the served paths and what they refer to, without prose and examples, and
with ``nullable: true``, which OpenAPI 3.1 does not know, as type unions. ``OPERATIONS`` is the list of what is served.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUBSET = Path(__file__).with_name("openapi.json")
PREFIXES = (
    "/assistants",
    "/chat/completions",
    "/conversations",
    "/embeddings",
    "/files",
    "/models",
    "/responses",
    "/threads",
    "/uploads",
    "/vector_stores",
)
NOT_SERVED = {
    ("/chat/completions", "get"),
    ("/chat/completions/{completion_id}", "get"),
    ("/chat/completions/{completion_id}", "post"),
    ("/chat/completions/{completion_id}", "delete"),
    ("/chat/completions/{completion_id}/messages", "get"),
    ("/models/{model}", "delete"),
}
"""Stored chats, and the deletion of fine-tuned models."""
ERROR = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}}
"""What OpenAI's description leaves out: the answer to a request that cannot be served."""
STREAMED = {
    "createRun": "AssistantStreamEvent",
    "createThreadAndRun": "AssistantStreamEvent",
    "submitToolOuputsToRun": "AssistantStreamEvent",
    "getResponse": "ResponseStreamEvent",
}
"""Operations that can stream, though the description does not say so there, and the schema of their events."""
_PROSE = {"description", "summary", "example", "examples", "externalDocs", "title", "tags", "deprecated"}
_LEFT_OUT = _PROSE | {"discriminator"}
"""Discriminators add nothing to the alternatives, and most of them call no schema by its name."""
_NAMED = {"properties", "schemas", "responses", "parameters", "patternProperties", "mapping", "paths", "headers"}
"""Keys whose values are named by whoever wrote the description, so that ``title`` is a name there."""


def subset(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a description that the gateway serves."""
    paths = {path: _served(path, item) for path, item in whole["paths"].items() if _is_served(path)}
    paths = {path: item for path, item in paths.items() if item}
    components: dict[str, dict[str, Any]] = {}
    waiting = list(_references(paths))
    while waiting:
        _, _, group, name = waiting.pop().split("/")
        if name not in components.setdefault(group, {}):
            components[group][name] = _plain(whole["components"][group][name])
            waiting += _references(components[group][name])
    components = {group: dict(sorted(entries.items())) for group, entries in sorted(components.items())}
    info = {key: whole["info"][key] for key in ("title", "version", "license")}
    return {"openapi": whole["openapi"], "info": info, "paths": paths, "components": components}


def _is_served(path: str) -> bool:
    """Return whether a path is; those with a query are previews of other forms of an operation."""
    return path.startswith(PREFIXES) and "?" not in path


def _served(path: str, item: Mapping[str, Any]) -> dict[str, Any]:
    kept = {method: _plain(operation) for method, operation in item.items() if (path, method) not in NOT_SERVED}
    for operation in kept.values():
        if events := STREAMED.get(operation["operationId"]):
            schema = {"$ref": f"#/components/schemas/{events}"}
            operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": schema}
        operation["responses"] = {"4XX": ERROR, **operation["responses"]}
    return kept


def _plain(node: Any, *, is_named: bool = False) -> Any:
    """Return a part of the description without prose and without ``nullable``."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: _plain(value, is_named=key in _NAMED and not is_named)
        for key, value in node.items()
        if is_named or not (key in _LEFT_OUT or key.startswith("x-"))
    }
    if is_named or kept.pop("nullable", False) is not True:
        return kept
    return {"anyOf": [kept, {"type": "null"}]}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from _references(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)


if __name__ == "__main__":
    whole = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    SUBSET.write_text(json.dumps(subset(whole), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
