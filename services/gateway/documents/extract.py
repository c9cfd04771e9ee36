"""Text of documents; runs in a process of its own, since documents come from strangers and parsers are slow."""

import io
import re
from collections.abc import Callable, Iterator, Mapping

_BLOCKS = [
    *("address", "article", "aside", "blockquote", "dd", "div", "dl", "dt", "figcaption", "footer", "form"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section"),
    *("table", "td", "th", "tr", "ul"),
]
_UNSEEN = ["script", "style", "template", "noscript", "head"]
_SPACES = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n\s*\n+")


class Unreadable(Exception):
    """The document is damaged, locked or has no text; the message says which."""


def plain_text(data: bytes) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        Unreadable: it is none.
    """
    marks = ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"))
    encodings = [encoding for mark, encoding in (*marks, (b"\xfe\xff", "utf-16")) if data.startswith(mark)]
    try:
        text = data.decode(encodings[0] if encodings else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable("it is not text in UTF-8 or UTF-16") from error
    if "\x00" in text:
        raise Unreadable("it is not text")
    return text


def html_text(data: bytes) -> str:
    """Return what a reader of a web page sees, one line for each block."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(data, "html.parser")
    title = page.title.get_text() if page.title is not None else ""
    for element in page.find_all(_UNSEEN):
        element.decompose()
    for element in page.find_all("br"):
        element.replace_with("\n")
    for element in page.find_all(_BLOCKS):
        element.insert_before("\n")
        element.append("\n")
    return _tidied(f"{title}\n{page.get_text()}")


def pdf_text(data: bytes) -> str:
    """Return the text of all pages, an empty line between two.

    Raises:
        Unreadable: it needs a password, or is damaged.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("it needs a password")
        return _tidied("\n\n".join(page.extract_text() for page in reader.pages))
    except PyPdfError as error:
        raise Unreadable(f"it is damaged: {error}") from error


def docx_text(data: bytes) -> str:
    """Return paragraphs and the rows of tables, one line each, in their order.

    Raises:
        Unreadable: it is no Word document.
    """
    import zipfile

    from docx import Document
    from docx.opc.exceptions import OpcError

    try:
        document = Document(io.BytesIO(data))
    except (OpcError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise Unreadable("it is not a Word document") from error
    return _tidied("\n".join(_lines(document)))


def _lines(document: "object") -> Iterator[str]:
    from docx.table import Table

    for part in document.iter_inner_content():  # type: ignore[attr-defined]
        if isinstance(part, Table):
            yield from (" | ".join(cell.text for cell in row.cells) for row in part.rows)
        else:
            yield part.text


def _tidied(text: str) -> str:
    """Return the text without needless white space, and without what is no character."""
    text = text.encode("utf-8", "replace").decode().replace("\x00", "")
    lines = "\n".join(_SPACES.sub(" ", line).strip() for line in text.splitlines())
    return _EMPTY_LINES.sub("\n\n", lines).strip()


EXTRACTORS: Mapping[str, Callable[[bytes], str]] = {"html": html_text, "pdf": pdf_text, "docx": docx_text}
"""By format; plain text needs no process of its own."""
