"""Purchases from a file: read exactly, sold once, whatever is killed meanwhile."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from everycent.errors import InvalidRequest
from starters.importer import COLUMNS, read_purchases

HEADER = ",".join(COLUMNS)
PURCHASES = Path(__file__).with_name("purchases_300.csv")
CHECK = Path(__file__).parents[1] / "faults" / "import_check.py"


class CommandLine(Protocol):
    """See conftest.py."""

    async def __call__(
        self, *words: str, given: str | None = None, shop: bool = True
    ) -> Result: ...

    async def json(self, *words: str, shop: bool = True) -> Any: ...


def _read(*rows: str) -> Any:
    content = "\r\n".join((HEADER, *rows, "")).encode()
    return read_purchases(content, tenant="t", sku="CD", currency="USD")


@pytest.mark.requirement("T28", "AC10.2")
@given(cents=st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=20))
def test_the_orders_of_a_file_sum_to_its_amounts_to_the_cent(cents: list[int]) -> None:
    """Red when: an amount goes through a float."""
    amounts = [Decimal(value).scaleb(-2) for value in cents]
    read = _read(*(f"o-{n},c,1997-01-01,1,{amount:f}" for n, amount in enumerate(amounts)))
    assert [row.order.total_minor for row in read.rows] == cents
    assert all((row.order.payment is None) == (row.order.total_minor == 0) for row in read.rows)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("o-1,c,1997-01-01,1", "4 columns instead of 5"),
        ("o-1,c,1997-01-01,1,2,3", "6 columns instead of 5"),
        ("o-1,c,1997-01-01,0,1.00", "units"),
        ("o-1,c,1997-01-01,-1,1.00", "no whole number"),
        ("o-1,c,1997-01-01,1.5,1.00", "no whole number"),
        ("o-1,c,1997-01-01,1,1.005", "at most two decimals"),
        ("o-1,c,1997-01-01,1,-1.00", "at most two decimals"),
        ("o-1,c,1997-01-01,1,1e3", "at most two decimals"),
        ("o-1,c,1997-01-01,1,NaN", "at most two decimals"),
        ("o-1,c,1997-13-01,1,1.00", "no date"),
        ("o/1,c,1997-01-01,1,1.00", "order_id"),
        ("o-1,,1997-01-01,1,1.00", "customer"),
        ("good,c,1997-01-01,1,1.00", "stands in line 2 already"),
    ],
)
def test_a_malformed_row_is_told_with_its_line_and_stops_no_other(row: str, reason: str) -> None:
    read = _read("good,c,1997-01-01,1,1.00", row, "last,c,1997-01-01,2,0.00")
    [problem] = read.problems
    assert problem.line == 3
    assert reason in problem.reason
    assert [each.order.order_id for each in read.rows] == ["good", "last"]
    assert read.units == 3


def test_another_kind_of_file_is_refused_as_a_whole() -> None:
    with pytest.raises(InvalidRequest, match="first line"):
        read_purchases(b"a,b\r\n1,2\r\n", tenant="t", sku="CD", currency="USD")
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_purchases(b"\xff\xfe", tenant="t", sku="CD", currency="USD")


async def test_an_import_tells_confirmed_refused_and_malformed_and_repeats_nothing(
    everycent: CommandLine, tmp_path: Path
) -> None:
    """Red when: `--receive` books under a key of the moment, or a bad row ends the import."""
    file = tmp_path / "purchases.csv"
    rows = ("a,c,1997-01-01,2,29.33", "b,c,1997-01-01,x,1.00", "c,c,1997-01-01,1,0.00")
    file.write_text("\r\n".join((HEADER, *rows, "")))
    for _ in range(2):
        done = await everycent("order", "import", str(file), "--receive", "--json")
        assert done.exit_code == 2
        assert "line 3: quantity 'x'" in done.stderr
        summary = json.loads(done.stdout)
        assert (summary["confirmed"], summary["malformed"], summary["refused"]) == (2, 1, 0)
        assert (summary["units"], summary["minor_units"]) == (3, 2_933)
    [stock] = await everycent.json("stock", "show", "CD")
    assert (stock["received"], stock["sold"], stock["free"]) == (3, 3, 0)
    file.write_text(f"{HEADER}\r\nd,c,1997-01-01,1,1.00\r\n")
    refused = await everycent("order", "import", str(file))
    assert refused.exit_code == 3
    assert "out of stock" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.requirement("T10")
def test_three_hundred_real_purchases_survive_kills_of_the_importer_and_of_a_worker() -> None:
    """The totals are exact to the cent and the unit, and every invariant holds.

    Red when: an order's steps have keys of a run, or `--receive` of a second start books again.
    """
    done = subprocess.run(
        [sys.executable, str(CHECK), "--csv", str(PURCHASES), "--kills", "2", "--seed", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "kill -9 the importer" in done.stdout
    assert "kill -9 worker-" in done.stdout
