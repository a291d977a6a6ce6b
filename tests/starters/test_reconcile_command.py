"""`everycent reconcile` on a running shop: seeded statements, found whole, and closed again."""

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from typer.testing import Result

from everycent.domain.order import PlaceOrder
from everycent.settings import Settings
from starters.bookings import Bookings

MakeOrder = Callable[..., PlaceOrder]
NOW = ("--grace-hours", "0")


class CommandLine(Protocol):
    """See conftest.py."""

    tenant: str
    folder: Path

    async def __call__(
        self, *words: str, given: str | None = None, shop: bool = True
    ) -> Result: ...

    async def json(self, *words: str, shop: bool = True) -> Any: ...

    async def place(self, order: PlaceOrder, *words: str) -> Result: ...


class Statement:
    """The provider's own statement of this shop, to be changed before it is read."""

    def __init__(self, folder: Path, rows: list[dict[str, str]]) -> None:
        self._folder = folder
        self.rows = rows

    def file(self, name: str, rows: list[dict[str, str]]) -> str:
        file = self._folder / name
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return str(file)


@pytest.fixture
async def statement(
    everycent: CommandLine,
    an_order: MakeOrder,
    bookings: Bookings,
    tenant: str,
    live: Settings,
    tmp_path: Path,
) -> Statement:
    """Four paid orders, o-1 to o-4, and what the provider says of them."""
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")
    begun = datetime.now(UTC)
    for number in range(1, 5):
        done = await everycent.place(an_order(f"o-{number}"))
        assert done.exit_code == 0, done.output
    async with httpx.AsyncClient(
        base_url=live.provider.url,
        trust_env=False,
        headers={"Authorization": f"Bearer {live.provider.api_key}"},
    ) as http:
        rows: list[dict[str, str]] = []
        for day in sorted({begun.date(), datetime.now(UTC).date()}):
            answer = await http.get(f"/v1/statements/{day.isoformat()}")
            rows += csv.DictReader(io.StringIO(answer.text))
    mine = [row for row in rows if row["reference"].startswith(f"{tenant}/")]
    mine.sort(key=lambda row: row["reference"])
    assert len(mine) == 4
    return Statement(tmp_path, mine)


def _wrong(right: list[dict[str, str]]) -> list[dict[str, str]]:
    """Seed one difference of each kind: o-1 amount, o-2 twice, o-3 currency, o-4 is left out."""
    first, second, third, _ = (dict(row) for row in right)
    first["amount_minor"] = str(int(first["amount_minor"]) + 1)
    third["currency"] = "EUR"
    copy = {**second, "provider_id": "int_another"}
    unknown = {**second, "reference": "INV-77", "provider_id": "int_unknown"}
    return [first, second, copy, third, unknown]


@pytest.mark.requirement("AC17.1", "AC17.4")
async def test_each_seeded_difference_is_found_once_and_the_right_statement_closes_them(
    everycent: CommandLine, statement: Statement
) -> None:
    """Red when: a kind is not found, an order that agrees is accused, the same file opens a case
    twice, or a case outlives its difference.
    """
    right = await everycent.json("reconcile", statement.file("right.csv", statement.rows))
    assert (right["lines"], right["agreed"], right["breaks"]) == (4, 4, [])
    wrong = statement.file("wrong.csv", _wrong(statement.rows))
    looked = await everycent("reconcile", wrong, "--dry-run", "--json", *NOW)
    assert looked.exit_code == 5
    assert (await everycent.json("case", "list")) == []
    found = await everycent.json("reconcile", wrong, *NOW)
    kinds = {each["found"]["kind"]: each["found"]["order_id"] for each in found["breaks"]}
    assert kinds == {
        "amount": "o-1", "twice": "o-2", "currency": "o-3", "missing there": "o-4",
        "missing here": "~statement",
    }  # fmt: skip
    assert len(found["breaks"]) == 5
    cases = await everycent.json("case", "list")
    assert sorted(case["case_key"] for case in cases) == sorted(
        each["found"]["key"] for each in found["breaks"]
    )
    again = await everycent("reconcile", wrong, *NOW)
    assert again.exit_code == 5
    assert "only known breaks were looked at" in again.output
    repeated = await everycent.json("case", "list")
    assert [c["case_key"] for c in repeated] == [c["case_key"] for c in cases]
    corrected = [*statement.rows, {**statement.rows[0], "reference": "", "kind": "refund"}]
    closed = await everycent.json("reconcile", statement.file("corrected.csv", corrected), *NOW)
    gone = {e["found"]["kind"] for e in closed["breaks"] if e["state"] == "closed"}
    assert gone == {"amount", "currency", "missing there"}
    left = {case["error_class"] for case in await everycent.json("case", "list")}
    assert left == {"twice", "missing here"}  # These moved money: a person says what it was.


@pytest.mark.requirement("T17", "AC17.3")
async def test_breaks_are_retried_by_filter_and_settled_by_a_person(
    everycent: CommandLine, statement: Statement
) -> None:
    """Red when: a young break is a case, the filter takes others, or a person is not believed."""
    wrong = statement.file("wrong.csv", _wrong(statement.rows))
    young = await everycent("reconcile", wrong, "--json")
    assert young.exit_code == 0
    assert (await everycent.json("case", "list")) == []
    assert (await everycent("reconcile", "--json", *NOW)).exit_code == 5  # Their time is over.
    retried = await everycent("case", "retry", "--error", "amount: ", "--json")
    assert retried.exit_code == 4
    assert '"amount"' in retried.stdout
    assert '"currency"' not in retried.stdout
    cases = await everycent.json("case", "list")
    for case in cases:
        words = ("case", "resolve", case["case_key"], "--reason", "asked the provider")
        done = await everycent(*words, shop=False)
        assert done.exit_code == 0, done.output
    after = await everycent("reconcile", *NOW)
    assert after.exit_code == 0
    assert "5 settled" in after.output
    none = await everycent("case", "retry", shop=False)
    assert none.exit_code == 2


def test_a_shops_own_export_is_compared_with_nothing_up(tmp_path: Path) -> None:
    """Red when: `--against` asks a database, or a difference of the export is passed over."""
    from typer.testing import CliRunner

    from starters.cli.app import app

    at = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    head = "reference,provider_id,kind,amount_minor,currency,at"
    theirs, ours = tmp_path / "theirs.csv", tmp_path / "ours.csv"
    theirs.write_text(f"{head}\nA,p1,capture,100,EUR,{at}\nB,p2,capture,200,EUR,{at}\n")
    ours.write_text(f"{head}\nA,p1,capture,100,EUR,{at}\nC,p3,capture,300,EUR,{at}\n")
    words = ["reconcile", str(theirs), "--against", str(ours), "--data-dir", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 5
    assert "2 lines, 1 agree" in done.output
    assert "missing here" in done.output
    assert "missing there" in done.output
    assert "2 open, 0 pending" in done.output
    same = CliRunner().invoke(app, [*words[:1], str(ours), *words[2:]])
    assert same.exit_code == 0
