"""What the keeper of a table's months makes, drops and keeps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from everycent.database import partitions
from everycent.database.engine import Database
from everycent.database.migrate import migrate
from everycent.database.partitions import (
    AGING,
    AgingTable,
    Month,
    drop_partitions,
    make_partitions,
    partitions_of,
)
from everycent.database.retention import Cleaned, clean
from everycent.errors import Bug, InvalidRequest, Transient
from everycent.settings import RetentionSettings, ServiceName, Settings
from tests.database.aging import (
    SEEN,
    TABLE,
    cancel,
    end,
    fill,
    hold,
    rows_of,
    table_of,
    try_,
)
from tests.database.test_retention import open_order

JANUARY, FEBRUARY, MARCH = (date(2026, month, 1) for month in (1, 2, 3))
DAY = date(2026, 3, 9)


@pytest.fixture
def owner(owners: dict[ServiceName, Database]) -> Database:
    return owners["account"]


@pytest.fixture
async def worker(
    owner: Database, databases: dict[ServiceName, Database]
) -> AsyncIterator[Database]:
    """The worker's pool, beside a table with four months and both ends."""
    async with table_of(owner, worker="everycent_account"):
        await make_partitions(owner.engine, TABLE, today=JANUARY)
        yield databases["account"]


# --- The keeper makes ---


async def test_an_insert_never_lacks_a_partition(
    owner: Database, databases: dict[ServiceName, Database]
) -> None:
    """Not before the keeper comes, nor when it comes years late: the month is only longer."""
    days = [date(1990, 1, 1), date(2026, 1, 5), date(2029, 12, 31)]
    async with table_of(owner):
        async with owner.transaction() as tx:
            await try_(tx, [hold(f"s/{day}/x", day) for day in days[:2]])
        made = await make_partitions(owner.engine, TABLE, today=date(2026, 1, 5))
        assert made == ["seen_hold_2026_02", "seen_hold_2026_03", "seen_hold_2026_04"]
        async with owner.transaction() as tx:
            await try_(tx, [hold(f"s/{day}/x", day) for day in days[2:]])
        assert await make_partitions(owner.engine, TABLE, today=date(2029, 12, 31), ahead=1) == [
            "seen_hold_2030_01"
        ]
        assert await rows_of(owner) == {
            "seen_hold_first": 2, "seen_hold_2026_02": 0, "seen_hold_2026_03": 0,
            "seen_hold_2026_04": 1, "seen_hold_2030_01": 0,
        }  # fmt: skip


async def test_months_that_are_there_are_not_made_again(owner: Database, worker: Database) -> None:
    """Nothing is locked for them either: it is asked with every `migrate` and every `clean`."""
    async with worker.transaction() as tx:
        await try_(tx, [hold("s/o/x", DAY)])
        assert await make_partitions(owner.engine, TABLE, today=JANUARY) == []
    assert await make_partitions(owner.engine, TABLE, today=FEBRUARY) == ["seen_hold_2026_05"]
    async with owner.transaction() as tx:
        parts = await partitions_of(tx, TABLE)
    ends = [(part.low, part.high) for part in parts]
    assert ends[0][0] is ends[-1][1] is None
    assert [high for _, high in ends[:-1]] == [low for low, _ in ends[1:]], "a gap"


async def test_a_table_without_an_open_end_is_told_what_it_lacks(owner: Database) -> None:
    async with table_of(owner):
        async with owner.transaction() as tx:
            await tx.execute(text("DROP TABLE seen_hold_first"))
        with pytest.raises(InvalidRequest, match="MAXVALUE"):
            await make_partitions(owner.engine, TABLE, today=JANUARY)


# --- The keeper drops ---


@pytest.mark.requirement("AC13.8", "I13")
async def test_a_month_goes_when_every_day_and_every_row_of_it_is_over(
    owner: Database, worker: Database
) -> None:
    """One day too young, one row still TRIED: the month stays whole. What went stays closed.

    Red when: `drop_partitions` compares the first day of a month, or does not look at the rows.
    """
    await fill(owner, [JANUARY, FEBRUARY, MARCH], 56)
    async with worker.transaction() as tx:
        await try_(tx, [hold("s/o/x", JANUARY)])
    almost = FEBRUARY - timedelta(days=1)
    assert await drop_partitions(owner.engine, TABLE, before=almost) == [
        Month("seen_hold_first", 0)
    ]
    why = "1 rows are not finished"
    assert await drop_partitions(owner.engine, TABLE, before=MARCH) == [
        Month("seen_hold_2026_01", 57, why), Month("seen_hold_2026_02", 56),
    ]  # fmt: skip
    async with worker.transaction() as tx:  # It is late, and it is asked for.
        assert await cancel(tx, [end("s/o/x", JANUARY)]) == {}
    assert await drop_partitions(owner.engine, TABLE, before=MARCH) == [
        Month("seen_hold_2026_01", 57)
    ]
    assert (await rows_of(owner))["seen_hold_2026_03"] == 56
    for day in (JANUARY, date(1990, 1, 1), date(2026, 2, 28)):
        with pytest.raises(Bug, match="no partition"):
            async with worker.transaction() as tx:
                await try_(tx, [hold("s/o/x", day)])


@pytest.mark.requirement("AC13.8")
@pytest.mark.parametrize("look", [1, 2])
async def test_a_row_that_comes_while_its_month_goes_is_refused_or_keeps_it(
    owner: Database, worker: Database, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """It comes right after one of the two looks: before the month is closed, or after.

    Red when: the month is not closed, or not looked at again once it is.
    """
    looks: list[str] = []
    said: list[BaseException | None] = []
    plain = partitions._look

    async def watched(*args: Any) -> Month:
        month = await plain(*args)
        looks.append(month.name)
        if len(looks) == look:
            said.append(await _error_of(worker, lambda tx: try_(tx, [hold("s/late/x", JANUARY)])))
        return month

    await drop_partitions(owner.engine, TABLE, before=JANUARY)
    monkeypatch.setattr(partitions, "_look", watched)
    [month] = await drop_partitions(owner.engine, TABLE, before=FEBRUARY)
    if look == 1:
        assert (said, month.kept) == ([None], "1 rows are not finished")
        async with worker.transaction() as tx:  # It is open again.
            assert await cancel(tx, [end("s/late/x", JANUARY)]) == {}
    else:
        assert isinstance(said[0], Bug)
        assert "seen_hold_2026_01_is_closed" in str(said[0])
        assert not month.kept


async def test_a_crash_while_a_month_goes_loses_nothing_and_the_next_time_goes_on(
    owner: Database, worker: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The month may be left closed, with a row that came in time: that opens it again."""
    plain, looks = partitions._look, [0]

    async def dies(*args: Any) -> Month:
        looks[0] += 1
        if looks[0] == 2:
            raise ConnectionResetError
        month = await plain(*args)
        async with worker.transaction() as tx:
            await try_(tx, [hold("s/late/x", JANUARY)])
        return month

    await drop_partitions(owner.engine, TABLE, before=JANUARY)
    with monkeypatch.context() as patched:
        patched.setattr(partitions, "_look", dies)
        with pytest.raises(ConnectionResetError):
            await drop_partitions(owner.engine, TABLE, before=FEBRUARY)
    assert isinstance(
        await _error_of(worker, lambda tx: cancel(tx, [end("s/late/x", JANUARY)])), Bug
    )
    for dropped in (False, True):
        [month] = await drop_partitions(owner.engine, TABLE, before=FEBRUARY)
        assert bool(month.kept) is not dropped
        if not dropped:
            async with worker.transaction() as tx:
                assert await cancel(tx, [end("s/late/x", JANUARY)]) == {}


async def _error_of(
    database: Database, work: Callable[[AsyncConnection], Any]
) -> BaseException | None:
    try:
        async with database.transaction() as tx:
            await work(tx)
    except Bug as error:
        return error
    return None


async def test_who_holds_the_table_is_not_waited_for(
    owner: Database, worker: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The month is kept for the next time, and others go on in between.

    Without its own lock time-out the drop would wait here for the session that waits for it.
    """
    monkeypatch.setattr(partitions, "TRIES", 2)
    await drop_partitions(owner.engine, TABLE, before=JANUARY)
    url = make_url(settings.owner["account"]).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url)  # It has no time-outs, like that of `migrate`.
    async with asyncio.timeout(30), worker.transaction() as tx:
        await try_(tx, [hold("s/o/x", DAY)])
        [month] = await drop_partitions(engine, TABLE, before=FEBRUARY)
        assert month.kept == "others hold it"
        with pytest.raises(Transient, match="others hold"):
            await make_partitions(engine, TABLE, today=MARCH)
        async with worker.transaction() as other:
            await try_(other, [hold("s/p/x", DAY)])
    [month] = await drop_partitions(engine, TABLE, before=FEBRUARY)
    assert month == Month("seen_hold_2026_01", 0)
    await engine.dispose()


async def test_two_keepers_at_once_drop_each_month_once(
    owner: Database, worker: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when: a month that another keeper drops behind our look is an error of PostgreSQL's."""
    await fill(owner, [JANUARY, FEBRUARY], 28)
    plain, other = partitions._look, list[Month]()

    async def overtaken(*args: Any) -> Month:
        month = await plain(*args)
        monkeypatch.setattr(partitions, "_look", plain)
        other.extend(await drop_partitions(owner.engine, TABLE, before=MARCH))
        return month

    monkeypatch.setattr(partitions, "_look", overtaken)
    assert await drop_partitions(owner.engine, TABLE, before=MARCH) == []
    assert [month.rows for month in other] == [0, 28, 28]
    assert next(iter(await rows_of(owner))) == "seen_hold_2026_03"


async def test_a_month_that_stays_closed_says_so_and_one_that_is_open_is_left_alone(
    owner: Database, worker: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when: the keeper does not ask whether it could open the month again."""
    await drop_partitions(owner.engine, TABLE, before=JANUARY)
    async with worker.transaction() as tx:
        await try_(tx, [hold("s/late/x", JANUARY)])
    altered: list[tuple[str, ...]] = []

    async def never(_engine: Any, *statements: str) -> bool:
        altered.append(statements)
        return False

    with monkeypatch.context() as patched:
        patched.setattr(partitions, "_alter", never)
        [month] = await drop_partitions(owner.engine, TABLE, before=FEBRUARY)
        assert (month.kept, altered) == ("1 rows are not finished", [])
        async with owner.transaction() as tx:
            await tx.execute(text(partitions._CLOSE.format(name=month.name)))
        [month] = await drop_partitions(owner.engine, TABLE, before=FEBRUARY)
        assert month.kept == "1 rows are not finished, and it stays closed: others hold it"


async def test_a_table_that_only_notes_what_it_saw_has_nothing_unfinished(owner: Database) -> None:
    """The keeper asks for a name and a column `opened_on`: an inbox has no states."""
    inbox = AgingTable("seen_mail", unfinished="false")
    async with owner.transaction() as tx:
        await tx.execute(
            text(
                "CREATE TABLE seen_mail (opened_on date NOT NULL, key text NOT NULL,"
                " CONSTRAINT seen_mail_pkey PRIMARY KEY (opened_on, key))"
                " PARTITION BY RANGE (opened_on)"
            )
        )
        await tx.execute(
            text(
                "CREATE TABLE seen_mail_first PARTITION OF seen_mail"
                " FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"
            )
        )
    try:
        await make_partitions(owner.engine, inbox, today=JANUARY)
        async with owner.transaction() as tx:
            await tx.execute(text("INSERT INTO seen_mail VALUES ('2026-01-05', 'k')"))
        dropped = await drop_partitions(owner.engine, inbox, before=FEBRUARY)
        assert [month.rows for month in dropped] == [0, 1]
    finally:
        async with owner.transaction() as tx:
            await tx.execute(text("DROP TABLE seen_mail"))


# --- The commands ---


@pytest.mark.requirement("AC13.8", "I13")
async def test_migrate_makes_the_months_and_clean_drops_those_that_no_order_needs(
    owner: Database,
    owners: dict[ServiceName, Database],
    settings: Settings,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An order of January that is not finished keeps its month, and so does the retention.

    Red when: `clean` does not ask for the oldest unfinished order, or drops a younger month.
    """
    monkeypatch.setitem(AGING, "account", (TABLE,))
    kept = settings.model_copy(update={"retention": RetentionSettings(days=150)})
    # Before any order of another test, which may be unfinished in this database.
    january, february, march = (date(2020, month, 1) for month in (1, 2, 3))
    today = march + timedelta(days=150)

    def told(cleaned: list[Cleaned]) -> dict[str, int]:
        return {c.table: c.rows for c in cleaned if c.table.startswith(SEEN.name)}

    async with table_of(owner, worker="everycent_account"):
        await make_partitions(owner.engine, TABLE, today=january)
        await fill(owner, [january, february, march], 28)
        await migrate(settings, ["account"])
        assert len(await rows_of(owner)) > 5, "migrate made no months"
        async with open_order(owners["order"], tenant, date(2020, 1, 20)):
            assert told(await clean(kept, today=today)) == {"seen_hold_first": 0}
        over = {"seen_hold_2020_01": 28, "seen_hold_2020_02": 28}
        assert told(await clean(kept, today=today, dry_run=True)) == over
        assert told(await clean(kept, today=today)) == over
        assert told(await clean(kept, today=today)) == {}
        assert next(iter(await rows_of(owner))) == "seen_hold_2020_03"
