"""What reconciliation writes down: once per break, pending while young, then a case."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from everycent.database import repair_case
from everycent.database.engine import Database
from everycent.database.reads import Reader, reading
from everycent.database.reconciliation import note_breaks
from everycent.database.reconciliation_reads import KnownBreak, known_breaks, statement_of
from everycent.domain.order import SettleCase
from everycent.domain.reconciliation import (
    Break,
    NoteBreaks,
    Noted,
    ReadStatement,
    StatementLine,
    compare,
)
from everycent.settings import ServiceName, Settings
from tests.conftest import NOON, TODAY

Pools = dict[ServiceName, Database]
DAY = 86_400


@pytest.fixture
async def reader(settings: Settings) -> AsyncIterator[Reader]:
    async with reading(settings) as reader:
        yield reader


def found(tenant: str, order: str = "o-1", **more: Any) -> Break:
    """A capture that we have no row of, at noon."""
    values = {
        "number": 1, "movement": "capture", "reference": f"{tenant}/{order}/pay/first",
        "provider_id": "pi_1", "amount_minor": 5, "currency": "EUR", "at": NOON,
    }  # fmt: skip
    [each] = compare(tenant, [StatementLine.model_validate({**values, **more})], None).breaks
    return each


def noting(tenant: str, run: str, *breaks: Break, **more: Any) -> NoteBreaks:
    values: dict[str, Any] = {
        "key": f"{tenant}/~statement/{run}/0", "at": NOON, "opened_on": TODAY, "run": run,
        "by": "ann", "found": breaks, "grace_seconds": DAY, "most_looks": 3,
    }  # fmt: skip
    return NoteBreaks.model_validate({**values, **more})


async def note(databases: Pools, request: NoteBreaks, *, tell: tuple[str, ...] = ()) -> Noted:
    async with databases["order"].transaction() as tx:
        [noted] = await note_breaks(tx, [request], tell=tell)
    assert isinstance(noted, Noted)
    return noted


async def only(reader: Reader, tenant: str) -> KnownBreak:
    [known] = (await known_breaks(reader, tenant)).values()
    return known


@pytest.mark.requirement("AC17.3")
async def test_a_break_is_pending_then_a_case_by_time_or_by_runs(
    databases: Pools, tenant: str, reader: Reader
) -> None:
    """Red when: a young one is a case at once, or an old one, or one seen often, never is."""
    young = found(tenant)
    assert (await note(databases, noting(tenant, "a", young))).pending == (young.key,)
    assert (await only(reader, tenant)).case is None
    second = await note(databases, noting(tenant, "b", young))
    assert (second.opened, second.pending) == ((), (young.key,))
    assert (await note(databases, noting(tenant, "c", young))).opened == (young.key,)
    assert (await only(reader, tenant)).case == "OPEN"
    old = found(tenant, "o-2", at=NOON - timedelta(days=2))
    assert (await note(databases, noting(tenant, "c", old))).opened == (old.key,)


@pytest.mark.requirement("AC17.4")
async def test_a_part_that_comes_again_changes_nothing(
    databases: Pools, tenant: str, reader: Reader
) -> None:
    """The same run counts one look and one failure, also when its parts race each other.

    Red when: a repeat counts a look, opens a second case, or counts a failure.
    """
    whole = ReadStatement(digest="d", name="s.csv", lines=1, begins_at=NOON, ends_at=NOON)
    old = found(tenant, at=NOON - timedelta(days=2))
    request = noting(tenant, "a", old, found(tenant, "o-2"), whole=whole)
    answers = await asyncio.gather(*(note(databases, request) for _ in range(8)))
    assert all(answer == answers[0] for answer in answers)
    known = await known_breaks(reader, tenant)
    assert {each.looks for each in known.values()} == {1}
    [case] = await reader.cases(tenant)
    assert (case.case_key, case.attempts, case.step) == (old.key, 1, "reconcile")
    again = await note(databases, noting(tenant, "a", whole=whole, at=NOON + timedelta(days=9)))
    assert again == Noted()
    read = await statement_of(reader, tenant, "d")
    assert read is not None
    assert read.read_at == NOON


async def test_what_agrees_again_closes_its_case_and_may_open_anew(
    databases: Pools, tenant: str, reader: Reader
) -> None:
    """Red when: a case outlives its break, or a break that comes back has no case."""
    old = found(tenant, at=NOON - timedelta(days=2))
    await note(databases, noting(tenant, "a", old))
    closed = await note(databases, noting(tenant, "b", gone=(old.key, "no/such/break")))
    assert closed.closed == (old.key,)
    assert await known_breaks(reader, tenant) == {}
    case = await reader.case(old.key)
    assert case is not None
    assert (case.state, case.resolved_by, case.by_hand) == ("RESOLVED", "everycent", False)
    assert (await note(databases, noting(tenant, "b", gone=(old.key,)))).closed == ()
    later = NOON + timedelta(hours=1)
    await note(databases, noting(tenant, "c", old, at=later))
    assert (await only(reader, tenant)).case == "OPEN"


async def test_what_a_person_settled_stays_settled(
    databases: Pools, tenant: str, reader: Reader
) -> None:
    """Red when: the next statement opens the case of a break that a person took care of."""
    old = found(tenant, at=NOON - timedelta(days=2))
    await note(databases, noting(tenant, "a", old))
    settle = SettleCase(
        tenant=tenant, order_id="o-1", at=NOON, case_key=old.key, by="ann", reason="paid in cash",
        by_hand=True,
    )  # fmt: skip
    async with databases["order"].transaction() as tx:
        await repair_case.settle_case(tx, [settle])
    await note(databases, noting(tenant, "b", old, at=NOON + timedelta(hours=1)))
    assert (await only(reader, tenant)).case == "RESOLVED"


@pytest.mark.requirement("T18")
async def test_a_case_that_opens_is_told_once_each_time(databases: Pools, tenant: str) -> None:
    """In the transaction that opens it; another failure of an open case is not told.

    Red when: nothing is told, a further failure is told, or a case that opens anew is not.
    """
    old = found(tenant, at=NOON - timedelta(days=2))
    for number, run in enumerate(("a", "b", "c")):
        at = NOON + timedelta(minutes=number)
        await note(databases, noting(tenant, run, old, at=at), tell=("desk",))
    assert await told(databases, tenant) == ["case.parked"]
    await note(databases, noting(tenant, "d", gone=(old.key,)), tell=("desk",))
    at = NOON + timedelta(minutes=9)
    await note(databases, noting(tenant, "e", old, at=at), tell=("desk",))
    assert await told(databases, tenant) == ["case.parked", "case.parked"]


async def told(databases: Pools, tenant: str) -> list[str]:
    async with databases["order"].transaction() as tx:
        found = await tx.execute(
            text("SELECT type FROM outbox WHERE aggregate = :xid AND sink = 'notify:desk'"),
            {"xid": f"{tenant}/o-1"},
        )
        return list(found.scalars())
