"""What an import does with objects that are there, lines that are wrong, and projects that are busy or full."""

from pathlib import Path
from typing import Any

import pytest

from services.errors import ConfigurationError, InvalidRequest, QuotaExceeded
from services.gateway.moving.lines import MAX_LINE_BYTES, lines_of
from services.gateway.moving.restoring import Restored
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Page, Query
from tests.gateway.apis.stored import stored_world
from tests.gateway.moving.moving import PROJECT, Reader, exported, imported, importer, kinds, lines
from tests.gateway.moving.test_openai_objects import ANSWERED, ASKED, ASSISTANT, FILE, RUN, STORE, STORED_FILE, THREAD
from tests.gateway.runs.client import Caller
from tests.gateway.search.searching import Library
from tests.gateway.twins import END_ID, MODEL, Script, World, raw_tokenizer, tokens

BEGIN = {
    "kind": "tandem.export",
    "body": {"version": 1, "project": "p", "created_at": 1, "tandem": "1.2.3", "schema_version": 1},
}


@pytest.fixture
def w(lib: Library) -> World:
    return lib.w


def end(num_objects: int) -> dict[str, Any]:
    return {"kind": "tandem.end", "body": {"num_objects": num_objects}}


async def messages(w: World) -> list[str]:
    return [each["id"] for each in await Reader(w).data("/v1/threads/thread_abc123/messages")]


async def test_another_object_of_the_same_id_ends_the_import(w: World) -> None:
    await imported(w, lines(ASSISTANT))
    other = {**ASSISTANT, "name": "Physics Tutor", "metadata": {}}

    with pytest.raises(InvalidRequest) as refused:
        await imported(w, lines(other, THREAD))
    assert refused.value.message == (
        "Line 1 (assistant asst_abc123): The project has another assistant 'asst_abc123': it differs in metadata, name."
    )
    assert await Reader(w).get("/v1/assistants/asst_abc123") == ASSISTANT


async def test_another_object_of_the_same_id_stays_if_that_is_wanted(w: World) -> None:
    await imported(w, lines(ASSISTANT))
    restored = await imported(w, lines({**ASSISTANT, "name": "Physics"}, THREAD), keeps_others=True)

    assert (restored.kept, restored.made) == ({"assistant": 1}, {"thread": 1})
    assert await Reader(w).get("/v1/assistants/asst_abc123") == ASSISTANT


async def test_a_message_of_another_thread_is_another_object(w: World) -> None:
    await imported(w, lines(THREAD, ASKED, {**THREAD, "id": "thread_2"}))

    with pytest.raises(InvalidRequest, match="The id 'msg_abc123' is taken by another message"):
        await imported(w, lines({**ASKED, "thread_id": "thread_2"}))


async def test_messages_keep_the_order_of_the_lines_whatever_their_times(w: World) -> None:
    later = {**ASKED, "id": "msg_3", "created_at": 1799017614}
    restored = await imported(w, lines(THREAD, ASKED, ANSWERED, later))

    assert await messages(w) == [ASKED["id"], ANSWERED["id"], "msg_3"]
    assert restored.num_older == 1  # the answer, by its time
    assert (await imported(w, lines(THREAD, ASKED, ANSWERED, later))).num_older == 0


async def test_lines_that_fail_are_told_and_the_others_imported(w: World) -> None:
    told: list[str] = []
    wrong = {**ASKED, "id": "msg_wrong", "content": "x"}
    restored = await imported(w, lines(BEGIN, THREAD, wrong, ASKED, end(3)), on_failure=told.append)

    assert (restored.num_failed, restored.made, restored.last_line) == (1, {"thread": 1, "thread.message": 1}, 5)
    [line] = told
    assert line.startswith("Line 3 (thread.message msg_wrong): Invalid type for 'content'")
    assert await messages(w) == ["msg_abc123"]


async def test_what_was_imported_before_a_failure_is_told(w: World) -> None:
    importing = importer(w)
    with pytest.raises(InvalidRequest):
        await importing.read(enumerate(lines(THREAD, ASKED, {"object": "x"}, ANSWERED).splitlines(), 1))

    restored = importing.restored
    assert (restored.last_line, restored.is_over, restored.made) == (2, False, {"thread": 1, "thread.message": 1})


async def test_progress_is_told_line_by_line(w: World) -> None:
    told: list[tuple[int, int]] = []

    def tell(restored: Restored) -> None:
        told.append((restored.last_line, restored.num_objects))

    await imported(w, lines(BEGIN, THREAD, ASKED, end(2)), on_line=tell)
    assert told == [(1, 0), (2, 1), (3, 2), (4, 2)]


async def test_an_export_that_lacks_lines_is_noticed(w: World) -> None:
    cut = await imported(w, lines(BEGIN, THREAD))
    assert cut.is_cut
    with pytest.raises(InvalidRequest, match="The export had 3 objects, and 1 came before its end"):
        await imported(w, lines(BEGIN, THREAD, end(3)))
    with pytest.raises(InvalidRequest, match="An export begins before the one before it has ended"):
        await imported(w, lines(BEGIN, THREAD, BEGIN))


async def test_an_export_of_a_newer_version_is_refused(w: World) -> None:
    newer = {**BEGIN, "body": {**BEGIN["body"], "version": 2}}  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match="The format has version 2, and this Tandem reads version 1"):
        await imported(w, lines(newer, THREAD), on_failure=lambda message: None)


def test_lines_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"\n1\n" + b"x" * (MAX_LINE_BYTES + 1))
    with path.open("rb") as source, pytest.raises(InvalidRequest, match="Line 3 has more than"):
        assert [number for number, _ in lines_of(source)] == [2]


async def test_a_file_needs_its_own_bytes(w: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"are missing: put them into .* as file-abc or trains.txt"):
        await imported(w, lines(FILE), tmp_path)
    (tmp_path / "file-abc").write_text("trains")
    with pytest.raises(InvalidRequest, match=r"The file has 29 bytes, and .* has 6"):
        await imported(w, lines(FILE), tmp_path)
    (tmp_path / "file-abc").write_text("trains and ships move people.")
    await imported(w, lines(FILE), tmp_path)
    assert (await imported(w, lines(FILE), tmp_path)).present == {"file": 1}
    (tmp_path / "file-abc").write_text("trains and ships move things.")
    with pytest.raises(InvalidRequest, match="another file 'file-abc': it has other bytes"):
        await imported(w, lines(FILE), tmp_path)


async def test_names_of_files_lead_out_of_no_folder(w: World, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "secret").write_text("s")
    with pytest.raises(InvalidRequest, match=r"put them into .*files as file-abc\."):
        await imported(w, lines({**FILE, "filename": "../secret", "bytes": 1}), tmp_path / "files")


async def test_a_store_that_expired_takes_no_files(w: World, tmp_path: Path) -> None:
    (tmp_path / "file-abc").write_text("trains and ships move people.")
    expired = {**STORE, "status": "expired", "expires_after": {"anchor": "last_active_at", "days": 7}}
    with pytest.raises(InvalidRequest, match="Vector store vs_1 is expired"):
        await imported(w, lines(FILE, expired, STORED_FILE), tmp_path)
    store = await Reader(w).get("/v1/vector_stores/vs_1")
    assert (store["status"], store["expires_at"]) == ("expired", STORE["last_active_at"] + 7 * 86400)  # type: ignore[operator]


async def test_nothing_comes_into_a_thread_that_a_run_works_on(lib: Library) -> None:
    caller, decode = Caller(lib.w), lib.w.decode
    decode.default = Script([*tokens("Paris"), END_ID], hang_after=1)
    thread = await caller.thread("hello")
    run = await caller.run(thread, await caller.assistant())
    await decode.hanging.wait()

    with pytest.raises(InvalidRequest, match=r"Can't add messages to .* while a run .* is active"):
        await imported(lib.w, lines({**ASKED, "thread_id": thread}))
    data = await exported(lib.w, None)
    again = await imported(lib.w, data)
    decode.release.set()
    await caller.settled(thread, run["id"])

    assert kinds(data) == ["tandem.export", "assistant", "thread", "thread.message", "tandem.end"]
    assert (again.made.total(), again.present.total()) == (0, 3)


async def test_files_need_a_folder_to_be_exported_to(lib: Library) -> None:
    await lib.file()
    with pytest.raises(ConfigurationError, match="--files-folder"):
        await exported(lib.w, None)


async def test_an_import_keeps_within_the_quota(tmp_path: Path) -> None:
    async with stored_world(tmp_path, max_project_objects=2) as w:
        with pytest.raises(QuotaExceeded, match="The project has 2 stored objects and may have 2"):
            await imported(w, lines(THREAD, ASKED, ANSWERED), on_failure=lambda message: None)
        assert await messages(w) == ["msg_abc123"]


async def test_an_export_reads_page_by_page_and_searches_no_keys(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[int] = []
    list_page = Objects.list

    async def counted(objects: Objects, query: Query) -> Page:
        page = await list_page(objects, query)
        pages.append(len(page.records))
        return page

    await imported(w, lines(THREAD, *({**ASKED, "id": f"msg_{number}"} for number in range(250))))
    monkeypatch.setattr(Objects, "list", counted)
    data = await exported(w, None)
    await imported(w, data, project="second")

    assert kinds(data).count("thread.message") == 250
    assert [size for size in pages if size > 1] == [100, 100, 50]
    async with w.gateway.files.storage.of(PROJECT).state.reaching() as client:
        commands = set(await client.info("commandstats"))
    assert "cmdstat_zrangebyscore" in commands
    assert not commands & {"cmdstat_keys", "cmdstat_scan"}


async def test_runs_go_on_where_an_imported_thread_ends(lib: Library) -> None:
    plain = {**ANSWERED, "content": ANSWERED["content"][:2], "attachments": []}  # type: ignore[index]
    await imported(lib.w, lines({**ASSISTANT, "model": MODEL, "tools": []}, THREAD, ASKED, plain, RUN))
    caller = Caller(lib.w)
    await caller.post("/v1/threads/thread_abc123/messages", role="user", content="And?")
    run = await caller.run("thread_abc123", "asst_abc123")

    assert (await caller.settled("thread_abc123", run["id"]))["status"] == "completed"
    prompt = raw_tokenizer().decode(list(lib.w.decode.requests[-1].prompt_token_ids))
    assert "By learning 【4:0†source】.More I do not say." in prompt
    items = await Reader(lib.w).data("/v1/conversations/conv_abc123/items")
    assert [part["type"] for part in items[1]["content"]] == ["output_text", "refusal"]
