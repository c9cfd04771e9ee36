"""The pages name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("services", "proto", "bench", "deploy", "docs", "examples", "tests")
NAMED = re.compile(r"`([\w./-]+\.(?:py|cpp|lua|md|txt|yaml))`")


@pytest.fixture(scope="module")
def files() -> list[str]:
    return [f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path, files: list[str]) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))

    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []
