import asyncio
import logging

import pytest

from services.cluster.registry import Role
from services.errors import IntegrityError, NotFound, TandemError
from services.kv.card import ModelCard
from tests.gateway.twins import MODEL, card, member, world


async def test_models_are_listed_with_what_clients_read() -> None:
    async with world() as w:
        listed = (await w.client.get("/v1/models")).json()
        one = (await w.client.get(f"/v1/models/{MODEL}")).json()
        absent = await w.client.get("/v1/models/a/b/c")

    assert listed["object"] == "list"
    assert listed["data"] == [one]
    assert one == {
        "id": MODEL,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "tandem",
        "max_model_len": 512,
    }
    assert absent.status_code == 404
    assert absent.json()["error"]["code"] == "model_not_found"


async def test_a_model_that_nobody_decodes_is_not_listed() -> None:
    async with world(members=[member("p1", Role.PREFILL)]) as w:
        listed = (await w.client.get("/v1/models")).json()

    assert listed["data"] == []


async def test_two_versions_share_the_requests_and_never_a_request() -> None:
    newer = card(fingerprint="a" * 64)
    prefill = member("p1", Role.PREFILL), member("p2", Role.PREFILL, newer)
    async with world(members=[member("d1"), prefill[0]]) as w:
        await w.join(member("d3", model=newer), newer)
        await w.join(prefill[1], newer)
        for _ in range(40):
            await w.chat()

    workers = {"f": ("d1:1", ["p1"]), "a": ("d3:1", ["p2"])}
    assert {request.fingerprint[0] for request in w.decode.requests} == {"f", "a"}
    for request, address in zip(w.decode.requests, w.decode.addresses, strict=True):
        candidates = [candidate.member_id for candidate in request.prefill_candidates]
        assert (address, candidates) == workers[request.fingerprint[0]]


async def test_a_version_without_a_prefill_worker_gets_nothing_while_another_one_has_one() -> None:
    newer = card(fingerprint="a" * 64)
    async with world(members=[member("d1"), member("p1", Role.PREFILL)]) as w:
        await w.join(member("d3", model=newer), newer)
        await w.join(member("d4", model=newer), newer)
        for _ in range(8):
            await w.chat()
        await w.registry.leave("d1")
        await w.view.refresh()
        await w.chat()

    assert [request.fingerprint[0] for request in w.decode.requests] == ["f"] * 8 + ["a"]


@pytest.mark.parametrize("failure", [NotFound("no card"), IntegrityError("another digest")])
async def test_a_card_that_cannot_be_read_hides_its_model_only_and_is_logged_once(
    failure: TandemError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = card(model_name="other")
    async with world() as w:
        await w.join(member("d2", model=other), other)
        read = w.view.card

        async def damaged(digest: str) -> ModelCard:
            if digest == other.digest:
                raise failure
            return await read(digest)

        monkeypatch.setattr(w.view, "card", damaged)
        listed = [(await w.client.get("/v1/models")).json()["data"] for _ in range(3)]
        absent = await w.client.get("/v1/models/other")
        monkeypatch.undo()
        mended = (await w.client.get("/v1/models")).json()["data"]

    assert [[model["id"] for model in models] for models in listed] == [[MODEL]] * 3
    assert absent.status_code == 404
    assert [model["id"] for model in mended] == ["other", MODEL]
    assert caplog.messages.count("model.not_listed") == 1


async def test_models_are_loaded_as_their_workers_come(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with world() as w:
        following = asyncio.create_task(w.gateway.catalog.follow())
        while "model.loaded" not in caplog.messages:
            await asyncio.sleep(0.001)
        w.registry.is_reachable = False
        response = await w.chat()
        following.cancel()

    assert response.status_code == 200


async def test_an_alias_answers_for_its_model_and_is_listed() -> None:
    async with world(model_aliases={"gpt-4o": MODEL, "gone": "absent", MODEL: "absent"}) as w:
        chat = await w.chat(model="gpt-4o")
        listed = (await w.client.get("/v1/models")).json()["data"]
        one = (await w.client.get("/v1/models/gpt-4o")).json()
        gone = await w.chat(model="gone")

    assert chat.json()["choices"][0]["message"]["content"] == "Paris"
    assert [model["id"] for model in listed] == ["gpt-4o", MODEL]
    assert one == {**listed[1], "id": "gpt-4o"}
    assert gone.status_code == 404
