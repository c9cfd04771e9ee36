import asyncio
import logging
from dataclasses import replace

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


async def test_of_two_versions_the_one_with_more_workers_is_served() -> None:
    newer = card(fingerprint="a" * 64)
    async with world(members=[member("d1"), member("d2")]) as w:
        await w.join(member("d3", model=newer), newer)
        await w.chat()
        await w.registry.leave("d1")
        await w.registry.renew(replace(member("d2"), draining=True))
        await w.view.refresh()
        await w.chat()

    assert [request.fingerprint[0] for request in w.decode.requests] == ["f", "a"]


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
