"""Parses documents: tells their format, and has a bounded process read them."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from services.gateway.documents.child import EXIT_UNREADABLE
from services.gateway.documents.extract import Unreadable, plain_text
from services.parent_death import dying_with_parent
from services.telemetry.logs import get_logger

HEAD_BYTES = 1024
"""What tells the format of a file, together with its name."""
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")
_UNREAD_SUFFIXES = (".doc", ".ppt", ".pptx", ".xls", ".xlsx", ".odt", ".rtf", ".epub", ".zip", ".png", ".jpg", ".jpeg")
_MAX_REASON_LENGTH = 300

_log = get_logger(__name__)


class DocumentRefused(Exception):
    """A document that cannot be searched; ``code`` is the one that API objects show."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class ParserLimits:
    """Bounds of one document."""

    memory_bytes: int
    timeout_s: float
    max_text_bytes: int


class Parser:
    """Reads documents."""

    def __init__(self, limits: ParserLimits) -> None:
        self._limits = limits

    async def text(self, filename: str, chunks: AsyncIterator[bytes]) -> str:
        """Return the text of a file whose bytes come in ``chunks``.

        Raises:
            DocumentRefused: it has no text that can be read here.
        """
        head = await anext(chunks, b"")
        kind = _format(filename, head)
        text = await (self._plain(head, chunks) if kind == "text" else self._parsed(kind, head, chunks))
        if not text.strip():
            raise DocumentRefused("invalid_file", "The file has no text; pictures of text cannot be read.")
        return text

    async def _plain(self, head: bytes, chunks: AsyncIterator[bytes]) -> str:
        data, chunk = bytearray(), head
        while chunk:
            data += chunk
            if len(data) > self._limits.max_text_bytes:
                raise self._too_long()
            chunk = await anext(chunks, b"")
        try:
            return await asyncio.to_thread(plain_text, bytes(data))
        except Unreadable as error:
            raise DocumentRefused("unsupported_file", f"The file cannot be searched: {error}.") from error

    async def _parsed(self, kind: str, head: bytes, chunks: AsyncIterator[bytes]) -> str:
        limits = self._limits
        numbers = (str(limits.memory_bytes), str(int(limits.timeout_s) + 1))
        command = [sys.executable, "-m", "services.gateway.documents.child", kind, *numbers]
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent(command, signal.SIGKILL), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(limits.timeout_s):
                return await self._spoken(process, head, chunks)
        except TimeoutError as error:
            text = f"The file could not be parsed within {limits.timeout_s:g} s."
            raise DocumentRefused("invalid_file", text) from error
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _spoken(self, process: Process, head: bytes, chunks: AsyncIterator[bytes]) -> str:
        """Hand the document to the process and return what it answers."""
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        remarks = asyncio.create_task(process.stderr.read())
        try:
            try:
                process.stdin.write(head)
                async for chunk in chunks:
                    process.stdin.write(chunk)
                    await process.stdin.drain()
                process.stdin.close()
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended; its status says why
            answer = await self._answer(process)
            status = await process.wait()
            if status == 0:
                return answer.decode()
            reason = (await remarks).decode(errors="replace").strip()[-_MAX_REASON_LENGTH:]
        finally:
            remarks.cancel()
        if status != EXIT_UNREADABLE:
            _log.warning("document.parser_died", status=status, reason=reason.splitlines()[-1:] or "")
            reason = "it is damaged, or takes more memory or time than a document may"
        raise DocumentRefused("invalid_file", f"The file cannot be parsed: {reason}.")

    async def _answer(self, process: Process) -> bytes:
        assert process.stdout is not None
        answer = bytearray()
        while piece := await process.stdout.read(2**16):
            answer += piece
            if len(answer) > self._limits.max_text_bytes:
                raise self._too_long()
        return bytes(answer)

    def _too_long(self) -> DocumentRefused:
        return DocumentRefused("invalid_file", f"The file has more than {self._limits.max_text_bytes} bytes of text.")


def _format(filename: str, head: bytes) -> str:
    """Return the format of a file by its first bytes and, where those do not tell, its name.

    Raises:
        DocumentRefused: it is one that is known but not read here.
    """
    suffix = PurePosixPath(filename.lower()).suffix
    start = head[:HEAD_BYTES].lstrip().lower()
    if b"%pdf-" in start:
        return "pdf"
    if suffix == ".docx":
        return "docx"
    if suffix in _UNREAD_SUFFIXES:
        raise DocumentRefused(
            "unsupported_file",
            f"Files of type {suffix} cannot be searched; use text, Markdown, source code, HTML, PDF or DOCX.",
        )
    if suffix in _HTML_SUFFIXES or start.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "text"
