"""Old fence rows go when they moved nothing and no message about them can come any more."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from everycent.database import inventory, retention, withdrawal
from everycent.database.engine import Database
from everycent.database.retention import clean
from everycent.domain.inventory import (
    CommitStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    StockLine,
)
from everycent.domain.withdrawal import WithdrawOrder
from everycent.errors import InvalidRequest
from everycent.settings import RetentionSettings, ServiceName, Settings
from starters.cli.app import app
from tests.conftest import NOON

# A time of its own: the databases are shared with tests whose orders are of other days.
OLD, YOUNG = date(1990, 1, 1), date(1990, 6, 2)
KEPT = timedelta(days=150)


@pytest.fixture
def kept(settings: Settings) -> Settings:
    return settings.model_copy(update={"retention": RetentionSettings(days=KEPT.days)})


@pytest.fixture
def stock(databases: dict[ServiceName, Database]) -> Database:
    return databases["inventory"]


async def reservations(database: Database, tenant: str, opened_on: date) -> None:
    """Make a row in each state, whose orders were opened on that day."""

    def of(name: str) -> dict[str, object]:
        return {"key": f"{tenant}/{name}-{opened_on}/reserve", "at": NOON, "opened_on": opened_on}

    lamp, none = (StockLine(sku="LAMP", units=1),), (StockLine(sku="NONE", units=1),)
    goods = {"key": f"{tenant}/goods-{opened_on}/in", "at": NOON, "opened_on": opened_on}
    async with database.transaction() as tx:
        await inventory.receive_stock(
            tx, [ReceiveStock.model_validate({**goods, "sku": "LAMP", "units": 9})]
        )
        names = ("tried", "sold", "freed")
        tries = [ReserveStock.model_validate({**of(n), "lines": lamp}) for n in names]
        refused = ReserveStock.model_validate({**of("refused"), "lines": none})
        await inventory.reserve_stock(tx, [*tries, refused])
    async with database.transaction() as tx:
        await inventory.commit_stock(tx, [CommitStock.model_validate(of("sold"))])
    async with database.transaction() as tx:
        ends = [ReleaseStock.model_validate({**of(n), "reason": "x"}) for n in ("freed", "never")]
        await inventory.release_stock(tx, ends)


async def left(database: Database, tenant: str, table: str = "reservation") -> list[str]:
    async with database.transaction() as tx:
        rows = await tx.execute(
            text(f"SELECT key FROM {table} WHERE starts_with(key, :tenant) ORDER BY key"),
            {"tenant": tenant},
        )
    return [row.key.split("/")[1] for row in rows]


@asynccontextmanager
async def open_order(orders: Database, tenant: str, opened_on: date) -> AsyncIterator[None]:
    """Have an unfinished order of that day for a while; `orders` as the owner."""
    async with orders.transaction() as tx:
        await tx.execute(
            text(
                "INSERT INTO shop_order (tenant, order_id, customer, currency, total_minor,"
                " request, request_hash, hash_version, driver, run, opened_at, opened_on,"
                " window_ends_at, moved_at) VALUES (:tenant, 'o', 'c', 'USD', 0, '{}', 'h', 1,"
                " 'd', 'r', :at, :day, :at, :at)"
            ),
            {"tenant": tenant, "day": opened_on, "at": NOON},
        )
    try:
        yield
    finally:
        async with orders.transaction() as tx:
            await tx.execute(
                text("DELETE FROM shop_order WHERE tenant = :tenant"), {"tenant": tenant}
            )


@pytest.mark.requirement("AC13.8")
async def test_only_settled_rows_that_moved_nothing_go_and_only_when_they_are_old(
    kept: Settings, stock: Database, tenant: str
) -> None:
    """Of each state an old and a young row: what holds or has sold stays, whatever its age.

    Red when: `retention._over` leaves out the state or the day, or the lines stay behind.
    """
    await reservations(stock, tenant, OLD)
    await reservations(stock, tenant, YOUNG)
    today = YOUNG + KEPT  # The young rows are just as old as rows may become.
    told = await clean(kept, today=today, dry_run=True)
    assert {c.table: c.rows for c in told}["reservation"] == 3
    assert len(await left(stock, tenant)) == 10
    done = await clean(kept, today=today)
    assert done == told
    old = [f"{name}-{OLD}" for name in ("sold", "tried")]
    young = [f"{name}-{YOUNG}" for name in ("freed", "never", "refused", "sold", "tried")]
    assert await left(stock, tenant) == sorted([*old, *young])
    lines = [f"{name}-{YOUNG}" for name in ("freed", "sold", "tried")]
    assert await left(stock, tenant, "reservation_line") == sorted([*old, *lines])
    assert {c.rows for c in await clean(kept, today=today)} == {0}


@pytest.mark.requirement("AC13.8")
async def test_a_row_that_somebody_works_on_is_left_for_the_next_time(
    kept: Settings, stock: Database, tenant: str
) -> None:
    """The cleaning waits for nobody, so nobody can wait for it in a circle.

    Red when: SKIP LOCKED is left out: the cleaning runs into its lock time-out.
    """
    await reservations(stock, tenant, OLD)
    held = f"{tenant}/freed-{OLD}/reserve"
    async with stock.transaction() as tx:
        await tx.execute(text("SELECT FROM reservation WHERE key = :k FOR UPDATE"), {"k": held})
        await clean(kept, today=YOUNG + KEPT)
    assert f"freed-{OLD}" in await left(stock, tenant)
    await clean(kept, today=YOUNG + KEPT)
    assert f"freed-{OLD}" not in await left(stock, tenant)


@pytest.mark.requirement("AC13.8")
async def test_nothing_goes_that_an_unfinished_order_could_still_ask_for(
    kept: Settings, stock: Database, owners: dict[ServiceName, Database], tenant: str
) -> None:
    """An order that waits for repair longer than anybody thought keeps every row since its day.

    Red when: `clean` does not ask for the oldest unfinished order.
    """
    await reservations(stock, tenant, OLD)
    async with open_order(owners["order"], tenant, OLD):
        assert {c.before for c in await clean(kept, today=YOUNG + KEPT)} == {OLD}
        assert len(await left(stock, tenant)) == 5
    await clean(kept, today=YOUNG + KEPT)
    assert len(await left(stock, tenant)) == 2


async def test_a_payment_goes_with_its_calls_unless_it_took_money(
    kept: Settings, owners: dict[ServiceName, Database], tenant: str
) -> None:
    async with owners["payment"].transaction() as tx:
        for name, captured in (("voided", 0), ("late", 100)):
            key = f"{tenant}/{name}/pay/first"
            await tx.execute(
                text(
                    "INSERT INTO payment (key, opened_on, state, request_hash, hash_version,"
                    " amount_minor, currency, method, status, captured_minor)"
                    " VALUES (:key, :day, 'CANCELLED', 'h', 1, 100, 'EUR', 'card', :status, :c)"
                ),
                {
                    "key": key,
                    "day": OLD,
                    "c": captured,
                    "status": "CAPTURED" if captured else "VOIDED",
                },
            )
            await tx.execute(
                text(
                    "INSERT INTO provider_call (key, provider_key, request_hash, sent_at,"
                    " may_arrive_until, open_sends) VALUES (:key, :key, 'h', :at, :at, 1)"
                ),
                {"key": f"{key}/create", "at": NOON},
            )
    await clean(kept, today=YOUNG + KEPT)
    assert await left(owners["payment"], tenant, "payment") == ["late"]
    assert await left(owners["payment"], tenant, "provider_call") == ["late"]


async def test_a_transfer_that_has_legs_is_in_the_books_and_stays(
    kept: Settings, owners: dict[ServiceName, Database], tenant: str
) -> None:
    async with owners["ledger"].transaction() as tx:
        for name in ("voided", "never-held"):
            await tx.execute(
                text(
                    "INSERT INTO transfer (key, opened_on, state) VALUES (:key, :day, 'CANCELLED')"
                ),
                {"key": f"{tenant}/{name}/ledger", "day": OLD},
            )
        await tx.execute(
            text(
                "INSERT INTO transfer_leg (key, leg, account, currency, amount_minor)"
                " VALUES (:key, 0, 'a', 'EUR', 1), (:key, 1, 'b', 'EUR', -1)"
            ),
            {"key": f"{tenant}/voided/ledger"},
        )
    await clean(kept, today=YOUNG + KEPT)
    assert await left(owners["ledger"], tenant, "transfer") == ["voided"]


@pytest.mark.requirement("AC13.8", "I8")
async def test_a_withdrawn_id_is_free_again_when_it_is_old_and_an_order_stays(
    kept: Settings, databases: dict[ServiceName, Database], tenant: str
) -> None:
    """Red when: an id is burnt for ever, or a real order that was aborted goes with it."""
    days = {"old": OLD, "young": YOUNG}
    wishes = [
        WithdrawOrder(
            tenant=tenant, order_id=name, by="s", at=datetime.combine(day, time(), tzinfo=UTC)
        )
        for name, day in days.items()
    ]
    async with databases["order"].transaction() as tx:
        await withdrawal.withdraw_order(tx, wishes)
        await tx.execute(
            text(
                "INSERT INTO shop_order (tenant, order_id, customer, currency, total_minor,"
                " request, request_hash, hash_version, driver, run, opened_at, opened_on,"
                " window_ends_at, moved_at, decision, status, result) VALUES (:tenant, 'sold', 'c',"
                " 'USD', 0, '{}', 'h', 1, 'd', 'r', :at, :day, :at, :at, 'ABORTED', 'REJECTED',"
                " '{}')"
            ),
            {"tenant": tenant, "day": OLD, "at": NOON},
        )
    await clean(kept, today=YOUNG + KEPT)
    async with databases["order"].transaction() as tx:
        found = await tx.scalars(
            text("SELECT order_id FROM shop_order WHERE tenant = :t ORDER BY 1"), {"t": tenant}
        )
        assert list(found) == ["sold", "young"]


async def test_large_heaps_go_in_batches(
    kept: Settings, stock: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    await reservations(stock, tenant, OLD)
    await clean(kept, today=YOUNG + KEPT)
    assert len(await left(stock, tenant)) == 2


async def test_a_large_table_is_given_the_time_to_be_read_through(settings: Settings) -> None:
    """A worker's statement ends after seconds; a year of a busy shop is not read in those."""
    database = retention._owner(settings.owner["inventory"])
    async with database.transaction() as tx:
        assert await tx.scalar(text("SHOW statement_timeout")) == "1h"
    await database.close()


async def test_without_a_retention_nothing_is_removed(settings: Settings) -> None:
    with pytest.raises(InvalidRequest, match="EVERYCENT_RETENTION__DAYS"):
        await clean(settings, today=YOUNG)
    named = settings.model_copy(update={"retention": RetentionSettings(days=200), "owner": {}})
    with pytest.raises(InvalidRequest, match="EVERYCENT_OWNER__ORDER"):
        await clean(named, today=YOUNG)


@pytest.mark.requirement("T23")
@pytest.mark.parametrize(("days", "code"), [("5000", 0), ("30", 2)])
def test_the_command_cleans_only_with_a_retention_that_is_long_enough(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, days: str, code: int
) -> None:
    """Whoever sets fewer days than a message can be late is told, and keeps every row.

    Red when: the command does not call `check_registration`.
    """
    for service, dsn in settings.owner.items():
        monkeypatch.setenv(f"EVERYCENT_OWNER__{service.upper()}", dsn)
    monkeypatch.setenv("EVERYCENT_RETENTION__DAYS", days)
    done = CliRunner().invoke(app, ["clean", "--dry-run", "--json"])
    assert done.exit_code == code
    assert ("reservation" in done.stdout) is (code == 0)
