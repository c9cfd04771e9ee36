"""Documents of each format become text; what cannot be read is refused with a reason."""

import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO

import pytest

from services.gateway.documents.parsing import DocumentRefused, Parser, ParserLimits
from tests.gateway.documents.samples import SENTENCE, docx, html, pdf

LIMITS = ParserLimits(memory_bytes=2**30, timeout_s=120.0, max_text_bytes=2**20)


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for first in range(0, len(data), size):
        yield data[first : first + size]


async def text_of(name: str, data: bytes, limits: ParserLimits = LIMITS) -> str:
    return await Parser(limits).text(name, chunks(data))


async def refusal_of(name: str, data: bytes, limits: ParserLimits = LIMITS) -> DocumentRefused:
    with pytest.raises(DocumentRefused) as caught:
        await text_of(name, data, limits)
    return caught.value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", SENTENCE.encode()),
        ("a", b"\xef\xbb\xbf" + SENTENCE.encode()),
        ("a.py", SENTENCE.encode("utf-16")),
        ("a.md", SENTENCE.encode("utf-32")),
    ],
)
async def test_text_is_taken_as_it_is(name: str, data: bytes) -> None:
    assert await text_of(name, data) == SENTENCE


async def test_the_pages_of_a_pdf_are_read_whatever_its_name_is() -> None:
    assert await text_of("a.txt", pdf("First page.", "Second page.")) == "First page.\n\nSecond page."


async def test_paragraphs_and_tables_of_a_word_document_are_read_in_order() -> None:
    data = docx("Heading", SENTENCE, table=[["a", "b"], ["c", "d"]])

    assert await text_of("A.DOCX", data) == f"Heading\n{SENTENCE}\na | b\nc | d"


async def test_of_a_web_page_what_its_reader_sees_is_read() -> None:
    body = "<script>var x;</script><style>p {}</style><h1>Fox &amp; dog</h1><p>One <b>bold</b>\n word.<br>Two.</p>"

    assert await text_of("a", html(body)) == "A page\n\nFox & dog\n\nOne bold\nword.\nTwo."
    assert await text_of("a.html", b"<p>caf\xc3\xa9</p>") == "café"


@pytest.mark.parametrize(
    ("name", "data", "code", "message"),
    [
        ("a.bin", b"\xff\x00\xfe", "unsupported_file", "it is not text in UTF-8 or UTF-16"),
        ("a.txt", b"a\x00b", "unsupported_file", "it is not text"),
        ("a.pptx", b"PK", "unsupported_file", ".pptx cannot be searched"),
        ("a.pdf", b"%PDF-1.4 nothing", "invalid_file", "cannot be parsed"),
        ("a.docx", b"nothing", "invalid_file", "it is not a Word document"),
        ("a.txt", b" \n ", "invalid_file", "no text"),
        ("a.txt", b"", "invalid_file", "no text"),
        ("a.pdf", pdf(""), "invalid_file", "no text"),
    ],
)
async def test_what_cannot_be_read_is_refused(name: str, data: bytes, code: str, message: str) -> None:
    refusal = await refusal_of(name, data)

    assert (refusal.code, message in refusal.message) == (code, True), refusal.message


async def test_a_document_that_grows_too_large_ends_its_process_only() -> None:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"<a>" + b"x" * 100_000_000)
        archive.writestr("[Content_Types].xml", b"<Types/>")
        archive.writestr("_rels/.rels", _RELATIONS)
    refusal = await refusal_of("a.docx", file.getvalue(), replace(LIMITS, memory_bytes=250 * 2**20))

    assert refusal.code == "invalid_file"
    assert await text_of("a.pdf", pdf("Still here.")) == "Still here."


async def test_text_is_bounded() -> None:
    small = replace(LIMITS, max_text_bytes=100)
    for name, data in (("a.txt", b"x" * 101), ("a.html", html("y" * 101))):
        assert "more than 100 bytes of text" in (await refusal_of(name, data, small)).message


async def test_a_parser_that_takes_too_long_is_ended() -> None:
    refusal = await refusal_of("a.html", html("x"), replace(LIMITS, timeout_s=0.0))

    assert "could not be parsed within 0 s" in refusal.message


_RELATIONS = (
    b'<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    b'<Relationship Id="r" Target="word/document.xml" Type="http://schemas.openxmlformats.org/officeDocument/2006/'
    b'relationships/officeDocument"/></Relationships>'
)
