"""What a gateway needs to go on with a response beside its object and its log; kept in the response's private bytes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from services.gateway.jobs.events import Body
from services.gateway.runs.binding import Binding
from services.gateway.runs.job import Job
from services.gateway.runs.search_calls import Found


@dataclass(frozen=True)
class ResponseState:
    """The private state of a response."""

    job: Job = field(default_factory=Job)
    binding: Binding | None = None
    """The token ids of its last turn, once that is over."""
    found: Mapping[str, Found] = field(default_factory=dict)
    """By its searches of files, by item."""

    def to_bytes(self) -> bytes:
        """Return the private bytes."""
        binding = asdict(self.binding) if self.binding is not None else None
        found = {item_id: asdict(each) for item_id, each in self.found.items()}
        return orjson.dumps({"job": asdict(self.job), "binding": binding, "found": found})

    @classmethod
    def from_bytes(cls, data: bytes | None) -> "ResponseState":
        """Read what ``to_bytes`` wrote."""
        values: dict[str, Any] = orjson.loads(data or b"{}")
        job, binding = values.get("job") or {}, values.get("binding")
        return cls(
            Job.from_bytes(orjson.dumps(job)),
            Binding.from_bytes(orjson.dumps(binding)) if binding is not None else None,
            {item_id: Found.of(each) for item_id, each in values.get("found", {}).items()},
        )


def with_results(response: Body, private: bytes | None) -> Body:
    """Return a response that shows what its searches of files found."""
    found = ResponseState.from_bytes(private).found
    output = [
        {**item, "results": _results(found[item["id"]])} if item["id"] in found else item for item in response["output"]
    ]
    return {**response, "output": output}


def _results(found: Found) -> list[Body]:
    return [
        {"file_id": each["file_id"], "filename": each["file_name"], "score": each["score"], "text": text}
        for each, text in zip(found.shown["results"], found.texts, strict=True)
    ]
