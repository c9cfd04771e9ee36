"""A tutor: an assistant with a textbook chapter, functions and a thread of ten turns, by the plain ``openai`` client.

    python examples/tutor/tutor.py --base-url http://127.0.0.1:8000/v1

Nothing here is special to Tandem but what it prints of ``usage``: how much of each prompt was in the KV cache.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

CHAPTER = Path(__file__).parent / "chapter.md"
INSTRUCTIONS = "You are a helpful tutor who answers questions of pupils about the water cycle in one short sentence."
TOPICS = ["evaporation", "condensation", "precipitation", "groundwater"]
EXERCISES = {
    "evaporation": "Two puddles lie in the sun, one in the wind, one behind a wall. Which one dries first, and why?",
    "condensation": "Why do you see your breath on a cold day?",
    "precipitation": "Cut a hailstone in half. What do you see, and what does it tell?",
    "groundwater": "Why does a well have water long after the last rain?",
}
FUNCTIONS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "next_exercise",
            "description": "Get an exercise about a topic of the chapter.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"topic": {"type": "string", "enum": TOPICS}},
                "required": ["topic"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "write_report",
            "description": "Write down how well the pupil did an exercise.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    "topic": {"type": "string", "enum": TOPICS},
                    "is_correct": {"type": "boolean"},
                },
                "required": ["topic", "is_correct"],
                "additionalProperties": False,
            },
        },
    },
]
SEARCH: Any = {"type": "file_search"}
ANSWER: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "answer": {"type": "string", "maxLength": 120},
                "topic": {"type": "string", "enum": TOPICS},
            },
            "required": ["answer", "topic"],
            "additionalProperties": False,
        },
    },
}
"""What the tutor says; without a bound a model this small talks on and on."""


def calling(name: str) -> Any:
    """Return the choice of a function."""
    return {"type": "function", "function": {"name": name}}


LESSON: Sequence[tuple[str, Any]] = [
    ("What is a cloud made of?", "none"),
    ("Where does the water in the air come from?", SEARCH),
    ("Please give me an exercise about evaporation.", calling("next_exercise")),
    ("The puddle in the wind dries first, because the wind carries the vapour away.", calling("write_report")),
    ("Can I touch a cloud?", "none"),
    ("What is hail?", SEARCH),
    ("An exercise about precipitation, please!", calling("next_exercise")),
    ("I see rings like in an onion.", calling("write_report")),
    ("How long does water stay in the ground?", SEARCH),
    ("Thank you! What is your favourite river?", "none"),
]
"""What the pupil says, and what the tutor shall do about it first."""


@dataclass
class ModelTurn:
    """What one step of a run used: one prompt, and what the model made of it."""

    kind: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass
class Turn:
    """One question, and what came of it."""

    question: str
    status: str = ""
    answer: str = ""
    calls: list[str] = field(default_factory=list)
    """Functions that were called, with their arguments."""
    found: list[str] = field(default_factory=list)
    """Passages that a search of the chapter found."""
    citations: list[str] = field(default_factory=list)
    """Files that the answer cites."""
    model_turns: list[ModelTurn] = field(default_factory=list)
    thread_kv: str | None = None
    """What was found of the earlier turns' KV: hit, partial or expired."""


class Tutor:
    """An assistant that has read the chapter, and its reports."""

    def __init__(self, client: openai.OpenAI, model: str, say: Callable[[str], None]) -> None:
        self._client = client
        self._say = say
        self.reports: list[dict[str, Any]] = []
        self._assistant = client.beta.assistants.create(
            model=model,
            name="Tutor",
            instructions=INSTRUCTIONS,
            temperature=0,
            response_format=ANSWER,
            tools=[{"type": "file_search", "file_search": {"max_num_results": 1}}, *FUNCTIONS],
            tool_resources={"file_search": {"vector_store_ids": [self._store()]}},
        )
        self._thread = client.beta.threads.create()

    def _store(self) -> str:
        """Return a vector store with the chapter in it."""
        chapter = self._client.files.create(file=CHAPTER, purpose="assistants")
        store = self._client.vector_stores.create(
            name="textbook",
            file_ids=[chapter.id],
            chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}},
        )
        deadline_s = time.monotonic() + 300
        while store.file_counts.in_progress:
            if time.monotonic() > deadline_s:
                raise TimeoutError("The chapter is not indexed. Does the cluster have an embedding worker?")
            time.sleep(0.2)
            store = self._client.vector_stores.retrieve(store.id)
        if store.file_counts.failed:
            [file] = self._client.vector_stores.files.list(store.id)
            raise RuntimeError(f"The chapter could not be indexed: {file.last_error}")
        return store.id

    def ask(self, question: str, choice: Any) -> Turn:
        """Return what came of one question; the answer is shown as it comes."""
        turn, runs = Turn(question), self._client.beta.threads.runs
        self._say(f"\nPupil: {question}\n")
        self._client.beta.threads.messages.create(self._thread.id, role="user", content=question)
        opening = runs.stream(
            thread_id=self._thread.id,
            assistant_id=self._assistant.id,
            tool_choice=choice,
        )
        run = self._told(opening, turn)
        while run.status == "requires_action":
            outputs: list[Any] = [
                self._output(call, turn) for call in run.required_action.submit_tool_outputs.tool_calls
            ]
            going_on = runs.submit_tool_outputs_stream(run_id=run.id, thread_id=self._thread.id, tool_outputs=outputs)
            run = self._told(going_on, turn)
        turn.status = run.status
        turn.thread_kv = getattr(run.usage, "thread_kv", None)
        if run.last_error is not None:
            raise RuntimeError(run.last_error.message)
        self._review(run.id, turn)
        return turn

    def _told(self, opening: Any, turn: Turn) -> Any:
        """Show a stream, and return its run."""
        run = None
        with opening as stream:
            for event in stream:
                if event.event == "thread.message.created":
                    self._say("Tutor: ")
                elif event.event == "thread.message.delta":
                    text = event.data.delta.content[0].text.value
                    self._say(text)
                    turn.answer += text
                elif event.event == "thread.message.completed":
                    self._say("\n")
                elif event.event.startswith("thread.run.") and event.data.object == "thread.run":
                    run = event.data
        return run

    def _output(self, call: Any, turn: Turn) -> Any:
        """Do what the model called for."""
        arguments = json.loads(call.function.arguments)
        turn.calls.append(f"{call.function.name}({call.function.arguments})")
        self._say(f"  [calls {turn.calls[-1]}]\n")
        if call.function.name == "next_exercise":
            output = EXERCISES[arguments["topic"]]
        else:
            self.reports.append(arguments)
            output = "The report is written."
        return {"tool_call_id": call.id, "output": output}

    def _review(self, run_id: str, turn: Turn) -> None:
        """Read what the run has done from its steps."""
        steps: Any = self._client.beta.threads.runs.steps.list(
            run_id,
            thread_id=self._thread.id,
            order="asc",
            include=["step_details.tool_calls[*].file_search.results[*].content"],
        )
        for step in steps:
            details, kind = step.step_details, "answer"
            if details.type == "tool_calls":
                kind = "+".join(call.type for call in details.tool_calls)
                for call in details.tool_calls:
                    if call.type == "file_search":
                        turn.found += [part.text for result in call.file_search.results for part in result.content]
                        self._say(f"  [finds {turn.found[-1][:70]!r}]\n" if turn.found else "  [finds nothing]\n")
            else:
                message: Any = self._client.beta.threads.messages.retrieve(
                    details.message_creation.message_id, thread_id=self._thread.id
                )
                cited = [each for part in message.content for each in part.text.annotations]
                turn.citations += [each.file_citation.file_id for each in cited]
            if (usage := step.usage) is not None:
                cached = usage.prompt_tokens_details["cached_tokens"]
                turn.model_turns.append(ModelTurn(kind, usage.prompt_tokens, usage.completion_tokens, cached))
                self._say(f"  [{kind}: {usage.prompt_tokens} prompt tokens, {cached} of them cached]\n")


def teach(client: openai.OpenAI, model: str, say: Callable[[str], None]) -> tuple[list[Turn], list[dict[str, Any]]]:
    """Return all turns of the lesson, and the tutor's reports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the client says so of all of the Assistants API
        tutor = Tutor(client, model, say)
        return [tutor.ask(question, choice) for question, choice in LESSON], tutor.reports


def main() -> None:
    """Give the lesson."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="smollm2")
    options = parser.parse_args()
    with openai.OpenAI(base_url=options.base_url, api_key=options.api_key) as client:
        turns, reports = teach(client, options.model, lambda text: print(text, end="", flush=True))
    print(f"\n{len(turns)} turns, reports: {reports}")


if __name__ == "__main__":
    main()
