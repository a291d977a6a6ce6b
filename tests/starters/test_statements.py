"""Statements of other shapes: columns by name, decimal amounts, words for what moved."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from everycent.errors import InvalidRequest
from starters.statements import Columns, read_lines, read_mapping

MAPPING = """
[statement]
delimiter = ";"
reference = "merchant reference"
provider_id = "charge"
movement = "type"
amount = "gross"
currency = "cur"
at = "booked"
status = "state"
[statement.movements]
sale = "capture"
"money back" = "refund"
[statement.done]
values = ["ok"]
"""
HEAD = "type;merchant reference;charge;gross;cur;booked;state\n"


@pytest.fixture
def columns(tmp_path: Path) -> Columns:
    file = tmp_path / "columns.toml"
    file.write_text(MAPPING)
    return read_mapping(file).statement


def test_a_file_of_another_shape_is_read_by_its_mapping(tmp_path: Path, columns: Columns) -> None:
    file = tmp_path / "theirs.csv"
    file.write_text(
        "\ufeff" + HEAD + "sale;s/o/pay/first;ch_1;29.33;eur;2026-01-02T12:00:00;ok\n"
        "money back;s/o/refund/a;re_1;-500;jpy;2026-01-02T12:00:00+01:00;failed\n"
    )
    first, second = read_lines(file, columns)
    assert (first.movement, first.amount_minor, first.currency, first.done) == (
        "capture", 2_933, "EUR", True,
    )  # fmt: skip
    assert first.at == datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert (second.movement, second.amount_minor, second.currency, second.done) == (
        "refund", 500, "JPY", False,
    )  # fmt: skip
    assert second.at == datetime(2026, 1, 2, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("sale;s/o/p;ch;29.333;EUR;2026-01-02;ok", "no whole number of EUR minor units"),
        ("sale;s/o/p;ch;much;EUR;2026-01-02;ok", "'much' is no amount"),
        ("sale;s/o/p;ch;nan;EUR;2026-01-02;ok", "no whole number"),
        ("sale;s/o/p;ch;1e999999999;EUR;2026-01-02;ok", "is no amount"),
        ("sale;s/o/p;ch;1e99;EUR;2026-01-02;ok", "no whole number"),
        ("gift;s/o/p;ch;1;EUR;2026-01-02;ok", "'gift' is no movement; known are: sale"),
        ("sale;s/o/p;ch;1;EUR;yesterday;ok", "'yesterday' is no ISO 8601 time"),
        ("sale;s/o/p;ch;1;EURO;2026-01-02;ok", "currency: "),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, columns: Columns, row: str, says: str) -> None:
    """Red when: a line that cannot be read is passed over."""
    file = tmp_path / "theirs.csv"
    file.write_text(HEAD + row + "\n")
    with pytest.raises(InvalidRequest, match="line 1 behind the head") as refused:
        list(read_lines(file, columns))
    assert says in str(refused.value)


def test_a_missing_column_and_a_wrong_mapping_are_named(tmp_path: Path, columns: Columns) -> None:
    file = tmp_path / "theirs.csv"
    file.write_text("type;charge\n")
    with pytest.raises(InvalidRequest, match="has no column merchant reference, gross, cur"):
        list(read_lines(file, columns))
    mapping = tmp_path / "wrong.toml"
    for text, says in (
        ("[statement]\nrefrence = 'x'", "Extra inputs"),
        ("[statement]\namount = 'a'\namount_minor = 'b'", "not for both"),
        ("[statement", "is no TOML"),
    ):
        mapping.write_text(text)
        with pytest.raises(InvalidRequest, match=says):
            read_mapping(mapping)
