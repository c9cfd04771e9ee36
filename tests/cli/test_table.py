from services.cli.table import table


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_with_text() -> None:
    assert table(("A", "LONG"), [("wide", ""), ("x", "y")]) == "A     LONG\nwide\nx     y"


def test_without_rows_the_header_stands_alone() -> None:
    assert table(("A", "B"), []) == "A  B"
