"""The comparison of the ways: that each sells the order, and that what is told was measured."""

import uuid
from pathlib import Path

import asyncpg
import pytest

from benchmarks import protocols, single_database
from benchmarks.protocol_order import SKU, TENANT, UNITS, customer_of, wanted
from benchmarks.protocol_page import half_done, measured, percentile, write_into
from benchmarks.protocol_report import ProtocolReport, WayFigures
from benchmarks.protocol_watch import DONE, LOCKED, NOTHING, ONE, Reader, Seen
from benchmarks.two_phase_order import BRANCHES, Works
from everycent.database.engine import Database
from everycent.database.inventory import receive_stock, reserve_stock
from everycent.domain.inventory import ReceiveStock
from everycent.domain.mode import Mode
from everycent.domain.order_steps import hold_stock
from everycent.settings import PoolSettings, ServiceName, Settings
from everycent.stack.embedded import EmbeddedStack
from everycent.stack.postgres import PostgresServer
from starters.choosing import MEASURED
from tests.conftest import NOON, TODAY
from workflows.catalog import MODES
from workflows.checkout import Checkout

ROOT = Path(__file__).parents[2]
HALF = ("closed", "sold", "held", "-", "-")


@pytest.mark.requirement("AC19.3", "AC3.5")
async def test_every_way_sells_the_order_and_is_measured(tmp_path: Path) -> None:
    """On a stack of its own, an order or two of each; the audit goes over them at the end.

    Red when: a mode of the catalog is not measured, a way sells something else, a workflow has no
    history or a message is not counted, or the page lacks a way.
    """
    with EmbeddedStack(tmp_path / "data") as stack:
        report = await protocols.measure(stack, protocols.QUICK)
    by_name = {way.name: way for way in report.ways}
    modes = {mode.value for mode in (*MODES[Checkout], Mode.CHOREOGRAPHED)}
    assert set(by_name) == {ONE, "two-phase commit", *modes}
    for way in report.ways:
        assert way.lines_of_code
        assert len(way.per_second) == len(way.cpu_ms) == protocols.QUICK.rounds
        assert min(way.per_second) > 0
        assert min(way.answered_ms + way.done_ms + way.alone_ms) > 0
        assert way.watched == len(way.locked_ms)
        driven = way.name in modes - {Mode.CHOREOGRAPHED.value}
        assert (way.events > 0, way.actions > 1) == (driven, driven), way.name
    assert by_name[ONE].states == []  # One transaction: nothing is ever in between.
    assert [by_name[name].messages for name in (ONE, "two-phase commit", "saga", "tcc")] == [0] * 4
    assert by_name[Mode.CHOREOGRAPHED.value].messages >= 9  # docs/flows/choreographed.md: arrows.
    platform, factor = len(modes), protocols.QUICK.quick_factor
    each = protocols.QUICK.warm + protocols.QUICK.crowd + 3  # One alone, watched and counted.
    assert report.audited_orders == each * (platform + factor)

    document = tmp_path / "choosing.md"
    document.write_text("# Rules\n")
    write_into(document, report)
    told = document.read_text()
    assert told.startswith(f"# Rules\n\n{MEASURED}")
    assert all(f"\n| {name} |" in told for name in by_name)
    write_into(document, report)
    assert document.read_text() == told


def test_the_figures_on_the_page_are_those_of_the_command() -> None:
    """Red when: a figure in docs/choosing.md is changed by hand, or another run's are kept."""
    report = ProtocolReport.model_validate_json((ROOT / "benchmarks/protocols.json").read_text())
    assert not report.quick
    _, marker, below = (ROOT / "docs/choosing.md").read_text().partition(MEASURED)
    assert marker
    assert below == measured(report)


async def test_the_reader_sees_what_each_service_has_done(
    settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    """Red when: a state of a service has another name, or is not asked for by the order's keys."""
    order = wanted(f"{uuid.uuid4().hex[:6]}-1")
    works, xid = Works(order, NOON), f"{TENANT}/{order.order_id}"
    arrived = ReceiveStock(key=f"{xid}/arrived", at=NOON, opened_on=TODAY, sku=SKU, units=9)
    async with owners["inventory"].transaction() as tx:
        await receive_stock(tx, [arrived])
        await reserve_stock(tx, [hold_stock(works.told, NOON)])
    looking: dict[str, asyncpg.Connection] = {
        name: await asyncpg.connect(settings.owner[name]) for name in BRANCHES
    }
    reader = Reader(looking, {})
    assert await reader.one_by_one(xid) == ("-", "held", "-", "-", "-")
    async with owners["inventory"].transaction() as tx:
        await works.inventory(tx)
        assert await looking["inventory"].fetchval(LOCKED) is True
    assert await looking["inventory"].fetchval(LOCKED) is False
    async with owners["ledger"].transaction() as tx:
        await works.ledger(tx)
    async with owners["points"].transaction() as tx:
        await works.points(tx)
    assert await reader.one_by_one(xid) == ("-", "sold", "-", "booked", "earned")
    for connection in looking.values():
        await connection.close()


async def test_one_database_is_never_seen_in_between(postgres: PostgresServer) -> None:
    """Red when: what is not committed is seen, a lock is not, or a refused order sells a part."""
    name = f"one_{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {name}")
    one = await asyncpg.connect(postgres.dsn(name))
    database = Database(postgres.dsn(name), PoolSettings(size=1))
    order = wanted(f"{uuid.uuid4().hex[:6]}-1")
    xid = f"{TENANT}/{order.order_id}"
    async with database.transaction() as tx:
        await single_database.fill(tx, TENANT, sku=SKU, customers=[customer_of(1)])
    reader = Reader({ONE: one}, {})
    await reader.remember(xid)
    async with database.transaction() as tx:
        await single_database.sell(tx, order, at=NOON)
        assert await reader.at_once(xid) == NOTHING  # It is not committed.
        assert await one.fetchval(LOCKED) is True
    assert await reader.at_once(xid) == DONE
    assert await one.fetchval(LOCKED) is False
    with pytest.raises(AssertionError):
        async with database.transaction() as tx:
            await single_database.sell(tx, wanted("poor-2"), at=NOON)  # Of a customer with nothing.
    assert await one.fetchval("SELECT sold FROM stock") == UNITS
    await database.close()
    await one.close()


def test_states_are_told_as_they_were_seen() -> None:
    """Red when: before and after count as between, or times and orders are mixed up."""
    held = ("open", "held", "-", "-", "-")
    way = WayFigures(name="x")
    way.add_seen(
        [
            Seen(states=[(NOTHING, 1), (held, 0.004), (HALF, 0.001), (held, 0.002), (DONE, 1)],
                 seconds=2.0, looks=4, locked=1),
            Seen(states=[(NOTHING, 1), (held, 0.010), (DONE, 0)], seconds=1.0, looks=0),
        ]
    )  # fmt: skip
    told = [(s.look, s.orders, s.median_ms) for s in way.states]
    assert told == [(held, 2, 8.0), (HALF, 1, 1.0)]
    assert half_done(way) == 1
    assert way.locked_ms == [500.0, 0.0]
    assert way.held_ms == [6.0, 10.0]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """Red when: p99 of a hundred values is not the last but one."""
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 95, 99)] == [50.0, 95.0, 99.0]
    assert percentile([7.0], 99) == 7.0
