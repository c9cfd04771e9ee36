"""Forms with one file (multipart/form-data), read as they come: fields to memory, the file to wherever it goes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.errors import InvalidRequest
from services.gateway.web.problems import wrong_type

MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 2**10
MAX_NAME_LENGTH = 255

Sink = Callable[[bytes], Awaitable[None]]


@dataclass
class Form:
    """What a form held besides the bytes of its file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    has_file: bool = False


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)
    is_ended: bool = False


class FormReader:
    """Reads one form whose field ``file_field`` is a file."""

    def __init__(self, file_field: str, sink: Sink) -> None:
        self._file_field = file_field
        self._sink = sink
        self._form = Form()
        self._parts: list[_Part] = []
        """Begun and not yet taken; all but the last have ended."""
        self._header_name = b""
        self._header_value = b""

    async def read(self, content_type: str, chunks: AsyncIterator[bytes]) -> Form:
        """Return the form when all of it was read.

        Raises:
            InvalidRequest: it is none, or has no file, several files or other fields than expected.
        """
        parser = MultipartParser(_boundary(content_type), self._callbacks())  # type: ignore[arg-type]
        try:
            async for chunk in chunks:
                parser.write(chunk)
                await self._take()
            parser.finalize()
        except FormParserError as error:
            raise InvalidRequest(f"The body is not valid multipart/form-data: {error}.") from error
        if not self._form.has_file:
            raise self._no_file()
        return self._form

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": lambda: self._parts.append(_Part()),
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
        }

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._parts[-1].headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        part = self._parts[-1]
        _, options = parse_options_header(part.headers.get(b"content-disposition"))
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            part.filename = options[b"filename"].decode("utf-8", "replace")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].data += data[start:end]

    def _on_part_end(self) -> None:
        self._parts[-1].is_ended = True

    async def _take(self) -> None:
        """Hand on what the parser has found so far."""
        for part in self._parts:
            if part.filename is not None:
                await self._take_file(part, part.filename)
            elif part.is_ended:
                self._take_field(part)
            elif len(part.data) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"'{part.name}' is longer than {MAX_FIELD_BYTES} bytes.", param=part.name)
        self._parts = [part for part in self._parts if not part.is_ended]

    async def _take_file(self, part: _Part, filename: str) -> None:
        if part.name != self._file_field:
            raise InvalidRequest(
                f"Unknown parameter: '{part.name}'.", param=part.name[:MAX_NAME_LENGTH], code="unknown_parameter"
            )
        if self._form.has_file:
            raise InvalidRequest(f"Only one '{self._file_field}' may be given.", param=self._file_field)
        data = bytes(part.data)
        part.data.clear()
        await self._sink(data)
        if part.is_ended:
            self._form.has_file, self._form.filename = True, _base_name(filename)

    def _take_field(self, part: _Part) -> None:
        if part.name == self._file_field:
            problem = wrong_type(part.name, "a file", "")
            raise InvalidRequest(problem.message, param=part.name, code=problem.code)
        if len(self._form.fields) >= MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")
        self._form.fields[part.name] = part.data.decode("utf-8", "replace")

    def _no_file(self) -> InvalidRequest:
        name = self._file_field
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def nested(fields: dict[str, str]) -> dict[str, object]:
    """Return fields as JSON would have them: ``expires_after[seconds]`` is ``seconds`` of ``expires_after``.

    Raises:
        InvalidRequest: a name is used both ways.
    """
    values: dict[str, object] = {}
    for name, text in fields.items():
        outer, bracket, inner = name.partition("[")
        if not bracket:
            values[name] = text
            continue
        group = values.setdefault(outer, {})
        if not isinstance(group, dict):
            raise InvalidRequest(f"'{outer}' is given twice.", param=outer)
        group[inner.removesuffix("]")] = int(text) if text.isdecimal() and len(text) < 16 else text
    return values


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest("The body of the request must be multipart/form-data with a boundary.")
    return options[b"boundary"]


def _base_name(filename: str) -> str:
    """Return the name without folders and control characters."""
    name = "".join(character for character in PurePosixPath(filename).name if character.isprintable())
    return name[-MAX_NAME_LENGTH:] or "file"
