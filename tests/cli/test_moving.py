"""``tandem export`` and ``tandem import`` over a real Redis: files, standard streams, what people are told."""

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from services.cli.__main__ import main
from services.cli.failures import EXIT_FAILED, EXIT_REFUSED
from services.cluster.embedded_redis import EmbeddedRedis
from tests.gateway.moving.test_openai_objects import ANSWERED, ASKED, ASSISTANT, FILE, THREAD
from tests.gateway.process import gateway

BYTES = b"trains and ships move people."


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    (tmp_path / "redis").mkdir()
    async with EmbeddedRedis(tmp_path / "redis") as server:
        yield server.url


def write(path: Path, *objects: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in objects))
    return path


async def tandem(*words: object) -> int:
    """Run a command in a thread, as it has an event loop of its own."""
    return await asyncio.to_thread(main, [str(word) for word in words])


async def filled(url: str, folder: Path) -> Path:
    """A project with an assistant, a thread and a file; returns its export."""
    (folder / "given.files").mkdir()
    (folder / "given.files" / "trains.txt").write_bytes(BYTES)
    given = write(folder / "given", FILE, ASSISTANT, THREAD, ASKED, ANSWERED)
    assert await tandem("import", given, "--project", "one", "--redis-url", url) == 0
    exported = folder / "one.jsonl"
    assert await tandem("export", "--project", "one", "--output", exported, "--redis-url", url) == 0
    return exported


async def test_a_project_moves_by_files(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = await filled(url, tmp_path)
    assert (tmp_path / "one.jsonl.files" / "file-abc").read_bytes() == BYTES
    assert exported.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(".part")) == []
    capsys.readouterr()

    assert await tandem("import", exported, "--project", "two", "--redis-url", url) == 0
    assert await tandem("import", exported, "--project", "two", "--redis-url", url) == 0
    again = tmp_path / "two.jsonl"
    assert await tandem("export", "--project", "two", "--output", again, "--redis-url", url) == 0
    assert again.read_bytes().split(b"\n")[1:] == exported.read_bytes().split(b"\n")[1:]
    async with Redis.from_url(url) as client:
        assert await client.smembers("tandem:projects") == {b"one", b"two"}  # which gateways look after
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "KIND            NEW  THERE ALREADY  KEPT ANOTHER",
        "file            1    0              0",
        "assistant       1    0              0",
        "thread          1    0              0",
        "thread.message  2    0              0",
        "KIND            NEW  THERE ALREADY  KEPT ANOTHER",
        "file            0    1              0",
        "assistant       0    1              0",
        "thread          0    1              0",
        "thread.message  0    2              0",
        "KIND            EXPORTED",
        "file            1",
        "assistant       1",
        "thread          1",
        "thread.message  2",
    ]


async def test_a_project_moves_by_standard_streams(
    url: str,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported = await filled(url, tmp_path)
    options = ("--files-folder", tmp_path / "files", "--redis-url", url)
    capsysbinary.readouterr()
    assert await tandem("export", "--project", "one", *options) == 0
    out = capsysbinary.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out)))
    assert await tandem("import", "-", "--project", "two", *options) == 0

    assert out.split(b"\n")[1:] == exported.read_bytes().split(b"\n")[1:]
    assert await tandem("export", "--project", "one", "--redis-url", url) == EXIT_REFUSED
    assert b"name a folder for their bytes: --files-folder FOLDER" in capsysbinary.readouterr().err


async def test_a_bad_line_is_told_with_the_way_on(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "lines", THREAD, ASKED, {**ANSWERED, "role": "system"}, ASSISTANT)
    assert await tandem("import", path, "--redis-url", url) == EXIT_FAILED
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "ended before all was read, line 2 was the last one that was dealt with: import the file again to go on; what "
        "is there already is passed over",
        "tandem import: Line 3 (thread.message msg_abc124): Invalid value: 'system'. Supported values are: 'user' and "
        "'assistant'.",
    ]

    assert await tandem("import", path, "--keep-going", "--redis-url", url) == EXIT_FAILED
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Line 3 (thread.message msg_abc124): Invalid value: 'system'")
    assert told[-1] == "1 lines failed: mend them and import the file again"
    assert "assistant       1    0              0" in told


async def test_what_is_there_otherwise_is_left_on_demand(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await tandem("import", write(tmp_path / "lines", THREAD), "--redis-url", url) == 0
    other = write(tmp_path / "other", {**THREAD, "metadata": {}})
    capsys.readouterr()
    assert await tandem("import", other, "--redis-url", url) == EXIT_FAILED
    assert capsys.readouterr().err.endswith("The project has another thread 'thread_abc123': it differs in metadata.\n")
    assert await tandem("import", other, "--on-conflict", "skip", "--redis-url", url) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "thread  0    0              1"


async def test_an_export_that_was_cut_is_told(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = await filled(url, tmp_path)
    exported.write_bytes(b"".join(exported.read_bytes().splitlines(keepends=True)[:-1]))

    assert await tandem("import", exported, "--project", "two", "--redis-url", url) == EXIT_FAILED
    assert capsys.readouterr().err.splitlines()[-1].startswith("the export has no end: it was cut")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import"], "tandem import: expected tandem import FILE|- [--project NAME]"),
        (["import", "a", "b"], "tandem import: expected tandem import FILE|- [--project NAME]"),
        (["import", "/nonexistent"], "tandem import: what is to be imported cannot be read: "),
        (["export", "--output", "/proc/none/x"], "tandem export: the export cannot be written: "),
        (["export", "--project", " x"], "tandem export: A project name has 1 to 64 printable characters."),
    ],
)
async def test_mistakes_are_one_line(
    url: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await tandem(*words, "--redis-url", url) in (EXIT_FAILED, EXIT_REFUSED)
    assert capsys.readouterr().err.startswith(message)


async def test_clients_of_a_running_gateway_see_what_was_imported(tmp_path: Path) -> None:
    path = write(tmp_path / "lines", ASSISTANT, THREAD, ASKED)
    async with gateway(tmp_path) as running, httpx.AsyncClient(base_url=running.url) as client:
        assert await tandem("import", path, "--redis-url", running.redis.url) == 0
        assistant = await client.get("/v1/assistants/asst_abc123")
        messages = await client.get("/v1/threads/thread_abc123/messages")

    assert assistant.json() == ASSISTANT
    assert [each["id"] for each in messages.json()["data"]] == ["msg_abc123"]


async def test_an_empty_project_is_said_to_be_empty(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await tandem("export", "--project", "none", "--redis-url", url) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 2
    assert told.err == "the project has no objects\n"


async def test_keys_of_another_version_are_left_alone(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with Redis.from_url(url) as client:
        await client.set("tandem:schema", 99)
    assert await tandem("export", "--redis-url", url) == EXIT_REFUSED
    assert "The keys in Redis have version 99" in capsys.readouterr().err
