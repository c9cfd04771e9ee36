import asyncio
from typing import Any

import pytest

from services import errors
from services.errors import Draining, TandemError
from services.gateway.web.errors import body_of, headers_of, http_error
from services.telemetry.metrics import TOKEN_SOURCES
from tests.gateway.twins import Script, chat_body, tokens, world


def tree(root: type[TandemError]) -> list[type[TandemError]]:
    return [root, *(each for child in root.__subclasses__() for each in tree(child))]


@pytest.mark.parametrize("kind", tree(TandemError), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_a_body(kind: type[TandemError]) -> None:
    error = kind("what happened", param="field")

    assert 400 <= http_error(error).status < 600
    assert body_of(error)["error"].keys() == {"message", "type", "param", "code"}
    assert (http_error(error).status >= 500) == (http_error(error).type == "server_error")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.InvalidRequest, 400),
        (errors.AuthenticationFailed, 401),
        (errors.PermissionDenied, 403),
        (errors.QuotaExceeded, 403),
        (errors.ModelNotFound, 404),
        (errors.PayloadTooLarge, 413),
        (errors.PoolExhausted, 429),
        (errors.NoDecodeWorker, 503),
        (errors.DeadlineExceeded, 504),
        (errors.InternalError, 500),
    ],
)
def test_statuses_are_those_that_clients_know(kind: type[TandemError], status: int) -> None:
    assert http_error(kind("x")).status == status


def test_overload_and_absence_say_when_to_come_back() -> None:
    assert headers_of(errors.Overloaded("x", retry_after_s=2.1)) == {"retry-after": "3"}
    assert headers_of(Draining("x")) == {"retry-after": "2"}
    assert headers_of(errors.DeadlineExceeded("x")) == {"x-should-retry": "false"}
    assert headers_of(errors.InvalidRequest("x")) == {}


async def test_every_reply_carries_its_headers() -> None:
    async with world() as w:
        replies = [await w.chat(), await w.chat(stream=True), await w.chat(model="x"), await w.client.get("/x")]

    assert len({reply.headers["x-request-id"] for reply in replies}) == 4
    for reply in replies:
        assert reply.headers["openai-version"] == "2020-10-01"
        assert int(reply.headers["openai-processing-ms"]) >= 0


async def test_a_defect_is_500_with_the_id_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Any, name: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("services.gateway.models.ModelCatalog.resolve", broken)
    async with world() as w:
        response = await w.chat()

    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (500, "server_error")
    assert response.headers["x-request-id"] in error["message"]
    assert "secret" not in response.text


@pytest.mark.parametrize("kind", [PermissionError, KeyError])
async def test_a_defect_in_mid_stream_ends_the_stream_with_an_error(kind: type[Exception]) -> None:
    async with world() as w:
        w.decode.default = Script(tokens("Paris"), fail_after=1, error=kind("x"))  # type: ignore[arg-type]
        response = await w.chat(stream=True)

    assert response.status_code == 200
    assert '"code":"internal_error"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")


async def test_keys_are_needed_once_one_exists() -> None:
    async with world() as w:
        key = await w.keys.create("team")
        without = await w.chat()
        with_key = await w.post("/v1/chat/completions", chat_body(), headers={"authorization": f"Bearer {key}"})
        listed = await w.client.get("/v1/models", headers={"x-api-key": key})

    assert without.status_code == 401
    assert without.json()["error"]["code"] == "invalid_api_key"
    assert (with_key.status_code, listed.status_code) == (200, 200)
    assert [request.project for request in w.decode.requests] == ["team"]


async def test_callers_from_elsewhere_need_a_key() -> None:
    async with world(client_host="10.1.2.3") as w:
        assert (await w.chat()).status_code == 401
    assert w.decode.requests == []


async def test_a_timeline_is_not_shown_to_another_project() -> None:
    async with world() as w:
        mine = {"authorization": f"Bearer {await w.keys.create('mine')}"}
        theirs = {"authorization": f"Bearer {await w.keys.create('theirs')}"}
        request_id = (await w.post("/v1/chat/completions", chat_body(), headers=mine)).headers["x-request-id"]
        path = f"/v1/requests/{request_id}/timeline"

        assert (await w.client.get(path, headers=mine)).status_code == 200
        assert (await w.client.get(path, headers=theirs)).status_code == 404


async def test_requests_are_refused_once_the_gateway_has_closed() -> None:
    async with world() as w:
        await w.gateway.drain.leave(0.0)
        response, alive, ready = await w.chat(), await w.client.get("/livez"), await w.client.get("/readyz")

    assert response.status_code == 503
    assert response.headers["connection"] == "close"
    assert response.json()["error"]["code"] == "draining"
    assert (alive.status_code, ready.status_code) == (200, 503)


async def test_ready_means_that_a_decode_worker_is_known() -> None:
    async with world(members=[]) as w:
        empty = await w.client.get("/readyz")
    async with world() as w:
        w.registry.is_reachable = False
        await w.view.refresh()
        stale = await w.client.get("/readyz")

    assert (empty.status_code, stale.status_code) == (503, 200)


async def test_requests_are_counted_by_route_and_path() -> None:
    async with world() as w:
        await w.chat()
        await w.chat(model="x")
        text = (await w.client.get("/metrics")).text

    assert 'tandem_requests_total{path="pd"} 1.0' in text
    assert 'tandem_http_requests_total{method="POST",route="/v1/chat/completions",status="404"} 1.0' in text
    assert 'tandem_refusals_total{code="model_not_found"} 1.0' in text
    assert 'tandem_members{role="decode"} 1.0' in text
    assert "tandem_requests_running 0.0" in text


@pytest.mark.parametrize(("path", "source"), [("local", "computed"), ("fallback", "recomputed")])
async def test_prompt_tokens_are_counted_by_where_their_kv_came_from(path: str, source: str) -> None:
    async with world() as w:
        w.decode.default = Script(tokens("Paris"), path=path)
        await w.chat()

    counted = {
        each: w.metrics.get_sample_value("tandem_prompt_tokens_total", {"source": each}) for each in TOKEN_SOURCES
    }
    assert counted == {"cached": 16, "transferred": 32, "computed": 0, "recomputed": 0} | {source: 8}


async def test_too_many_requests_at_once_are_told_to_come_back() -> None:
    async with world(max_concurrent_requests=1, max_queue=0) as w:
        w.decode.first = [Script(tokens("Paris"), hang_after=0)]
        first = asyncio.create_task(w.chat())
        await w.decode.hanging.wait()
        second = await w.chat()
        w.decode.release.set()
        await first

    assert second.status_code == 429
    assert int(second.headers["retry-after"]) >= 1
