import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bench.catalog import TANDEM, TANDEM_LOCAL
from bench.processes import SystemFailed
from bench.row import Results
from bench.run import measure_systems, with_needs
from bench.systems import Endpoint, System, running


class Chat(BaseHTTPRequestHandler):
    """Streams as many tokens as it is asked for.

    The model ``broken`` refuses what is not a greeting, ``proving`` says how long it waited for KV.
    """

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_greeting = body["messages"][-1]["content"] == "hello"
        self.send_response(500 if body["model"] == "broken" and not is_greeting else 200)
        self.end_headers()
        chunks = [{"choices": [{"delta": {"content": "word "}}]}] * body["max_tokens"]
        usage: dict[str, object] = {"completion_tokens": body["max_tokens"], "prompt_tokens": 7}
        if body["model"] == "proving":
            usage["tandem"] = {"timings_ms": {"transfer": 1.5}}
        for chunk in (*chunks, {"choices": [], "usage": usage}):
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def base_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def system(name: str, endpoint: Endpoint, events: list[str]) -> System:
    @contextmanager
    def serve(logs: Path) -> Iterator[Endpoint]:
        if endpoint.model == "missing":
            raise SystemFailed(f"did not start: see {logs / name}.log")
        events.append(f"{name} starts")
        yield endpoint
        events.append(f"{name} is stopped")

    return System(name, serve)


@pytest.mark.parametrize("text", ["vllm", "vllm=", "vllm=http://host:1", "=http://host:1,model"])
def test_a_peer_without_name_address_or_model_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=URL,MODEL"):
        running(text)


def test_a_peer_that_runs_is_measured_where_it_is(tmp_path: Path) -> None:
    with running("vllm=http://host:1/,name,with-comma").serve(tmp_path) as endpoint:
        assert endpoint == Endpoint("http://host:1/", "name,with-comma")


def test_systems_run_one_after_the_other_and_only_for_rows_that_are_needed(base_url: str, tmp_path: Path) -> None:
    made, events = Results(), list[str]()
    systems = [system(name, Endpoint(base_url, "good"), events) for name in (TANDEM, TANDEM_LOCAL, "peer")]

    measure_systems(made, systems, with_needs(["one", "short_ttft"]), range(2), tmp_path)

    assert events == [f"{name} {what}" for name in (TANDEM, "peer") for what in ("starts", "is stopped")]
    values = made.to_json()
    assert {name: {row: len(each) for row, each in rows.items()} for name, rows in values.items()} == {
        TANDEM: {"one": 2, "short_ttft": 2},
        "peer": {"one": 2, "short_ttft": 2},
    }


def test_figures_that_only_our_answers_tell_are_left_out_of_others(base_url: str, tmp_path: Path) -> None:
    made = Results()

    measure_systems(made, [system("peer", Endpoint(base_url, "good"), [])], with_needs(["kv_wait"]), [0], tmp_path)
    assert made.to_json() == {"peer": {}}

    measure_systems(made, [system(TANDEM, Endpoint(base_url, "proving"), [])], with_needs(["kv_wait"]), [0], tmp_path)
    assert made.to_json()[TANDEM] == {"kv_wait": [1.5]}


def test_a_system_that_does_not_start_or_refuses_work_leaves_the_others_their_turn(
    base_url: str, tmp_path: Path
) -> None:
    made, events = Results(), list[str]()
    systems = [system(model, Endpoint(base_url, model), events) for model in ("missing", "broken", "good")]

    measure_systems(made, systems, with_needs(["short_ttft"]), range(1), tmp_path)

    assert [*made.to_json()] == ["good"]
    assert made.failures["missing"] == f"did not start: see {tmp_path}/missing.log"
    assert made.failures["broken"].startswith("failed: RuntimeError 500")
    assert events[-1] == "good is stopped"


def test_a_server_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    made = Results()

    measure_systems(made, [running("gone=http://127.0.0.1:9,model")], with_needs(["one"]), range(1), tmp_path)

    assert made.failures["gone"].startswith("failed: ClientConnectorError")
