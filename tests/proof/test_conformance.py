"""The conformance checks, on our own activities and participants and on some that are broken."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from activities.account import AccountActivities
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.points import PointsActivities
from everycent.database.engine import Database
from everycent.domain.account import Deposit
from everycent.domain.inventory import ReceiveStock
from everycent.domain.ledger import Leg, PostTransfer
from everycent.domain.points import GrantPoints
from everycent.errors import InvalidRequest
from everycent.proof.conformance import BrokenPromise, Call, assert_idempotent, one_by_one
from everycent.proof.conformance_participant import Steps, assert_participant
from everycent.proof.interleavings_kinds import NOON, TODAY, Kind
from everycent.proof.interleavings_rows import (
    AGING,
    BALANCE,
    POINTS,
    SEAT_TABLES,
    SEATS,
    STOCK,
    TRANSFER,
)
from everycent.settings import PoolSettings
from everycent.stack.postgres import PostgresServer
from tests.proof import broken_steps


@pytest.fixture(scope="session")
async def seats(unsynced: PostgresServer) -> AsyncIterator[AsyncEngine]:
    """A database of somebody else's, with the fence in it."""
    unsynced.execute("CREATE DATABASE seats")
    url = make_url(unsynced.dsn("seats")).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_size=8)
    async with engine.begin() as tx:
        for statement in SEAT_TABLES:
            await tx.execute(text(statement))
    yield engine
    await engine.dispose()


@pytest.fixture(scope="session")
async def ours(dsns: dict[str, str]) -> AsyncIterator[dict[str, Database]]:
    """A worker's pool per service."""
    pools = {
        str(kind.service): Database(dsns[kind.name], PoolSettings(size=8))
        for kind in (STOCK, BALANCE, POINTS, TRANSFER)
    }
    yield pools
    for pool in pools.values():
        await pool.close()


class Rows:
    """A participant made of a kind of our rows, at a place of its own."""

    def __init__(self, kind: Kind, engine: AsyncEngine, place: str) -> None:
        self.engine = engine
        self.try_: Call = one_by_one(engine.begin, kind.operations["try"])
        self.confirm: Call = one_by_one(engine.begin, kind.operations["confirm"])
        self.cancel: Call = one_by_one(engine.begin, kind.operations["cancel"])
        self._kind = kind
        self._place = place

    def requests(self, number: int) -> Steps:
        # Odd numbers take from x: the same resource for each key.
        made = (self._kind.request(o, self._place, 2 * number + 1) for o in self._kind.operations)
        return Steps(*made)

    async def state(self) -> Mapping[str, int]:
        assert self._kind.parts is not None
        async with self.engine.connect() as tx:
            return vars((await self._kind.parts(tx, [self._place]))[self._place])


async def _rows(kind: Kind, engine: AsyncEngine, tenant: str) -> Rows:
    async with engine.begin() as tx:
        await kind.prepare(tx, [tenant])
    return Rows(kind, engine, tenant)


@pytest.mark.requirement("AC4.2", "AC13.3", "T12")
@pytest.mark.parametrize("kind", [STOCK, BALANCE, POINTS, TRANSFER], ids=lambda kind: kind.name)
async def test_our_participants_keep_every_promise(
    ours: dict[str, Database], tenant: str, kind: Kind
) -> None:
    """Red when: a Cancel of the kind leaves no tombstone, or a repeat computes a new answer."""
    assert kind.service is not None
    participant = await _rows(kind, ours[kind.service].engine, tenant)
    await assert_participant(participant, ignore={"entry.balance_after_minor"})


@pytest.mark.requirement("AC4.2")
@pytest.mark.parametrize("kind", [SEATS, AGING], ids=lambda kind: kind.name)
async def test_a_participant_on_the_generic_fence_keeps_every_promise(
    seats: AsyncEngine, tenant: str, kind: Kind
) -> None:
    """Red when: the generic fence answers a late Try, or a Confirm without a Try."""
    await assert_participant(await _rows(kind, seats, tenant))


@pytest.mark.requirement("AC4.2")
async def test_our_activities_are_idempotent(ours: dict[str, Database], tenant: str) -> None:
    """One of each service that is complete in itself; also in Temporal's own environment.

    Red when: a booking is done again under its key, or answers what the resource has by then.
    """
    step: dict[str, Any] = {"key": f"{tenant}/o/step", "at": NOON, "opened_on": TODAY}
    legs = (
        Leg(account="cash", amount_minor=5, currency="EUR"),
        Leg(account="sales", amount_minor=-5, currency="EUR"),
    )
    trials: list[tuple[str, Any, Any]] = [
        ("inventory", InventoryActivities(ours["inventory"]).receive_stock,
         ReceiveStock(**step, sku="LAMP", units=3)),
        ("account", AccountActivities(ours["account"]).deposit,
         Deposit(**step, account="ann", currency="EUR", amount_minor=400)),
        ("points", PointsActivities(ours["points"]).grant_points,
         GrantPoints(**step, customer="ann", points=7)),
        ("ledger", LedgerActivities(ours["ledger"]).post_transfer,
         PostTransfer(**step, entries=legs)),
    ]  # fmt: skip
    for service, activity, request in trials:
        # The first key finds no row of the resource and makes it: that is not what is on trial.
        await activity(request.model_copy(update={"key": f"{tenant}/first/step"}))
        await assert_idempotent(
            activity,
            request,
            engine=ours[service].engine,
            ignore={"entry.balance_after_minor"},
        )


# --- It can fail ---


@pytest.mark.requirement("AC4.2")
@pytest.mark.parametrize(("make", "promise"), broken_steps.STEPS.values(), ids=broken_steps.STEPS)
async def test_an_activity_that_breaks_a_promise_is_told_which(
    seats: AsyncEngine, tenant: str, make: Any, promise: str
) -> None:
    """Each of them breaks one promise, and keeps those that are tried before it.

    Red when: assert_idempotent no longer tries that promise, or names another one.
    """
    async with seats.begin() as tx:
        await SEATS.prepare(tx, [tenant])
    request = SEATS.request("try", tenant, 1)

    await assert_idempotent(one_by_one(seats.begin, SEATS.operations["try"]), request, engine=seats)
    with pytest.raises(BrokenPromise, match=promise):
        await assert_idempotent(make(seats), request, engine=seats)


@pytest.mark.requirement("AC4.2", "AC13.3")
@pytest.mark.parametrize(
    ("name", "make", "promise"), broken_steps.PARTICIPANTS.values(), ids=broken_steps.PARTICIPANTS
)
async def test_a_participant_that_breaks_a_promise_is_told_which(
    seats: AsyncEngine, tenant: str, name: str, make: Any, promise: str
) -> None:
    """Red when: assert_participant no longer tries that promise, or names another one."""
    participant = await _rows(SEATS, seats, tenant)
    setattr(participant, name, make(seats))
    with pytest.raises(BrokenPromise, match=promise):
        await assert_participant(participant)


async def test_an_engine_that_the_activity_does_not_commit_through_is_refused(
    seats: AsyncEngine, tenant: str
) -> None:
    """Else a death at its COMMIT would never be tried, and nobody would know."""
    async with seats.begin() as tx:
        await SEATS.prepare(tx, [tenant])
    stranger = create_async_engine(seats.url)
    hold = one_by_one(seats.begin, SEATS.operations["try"])
    with pytest.raises(InvalidRequest, match="does not commit through this engine"):
        await assert_idempotent(hold, SEATS.request("try", tenant, 1), engine=stranger)
    await stranger.dispose()


async def test_a_request_of_a_shape_of_ones_own_needs_another_by_hand(seats: AsyncEngine) -> None:
    """A plain text is a request too; only `other` can say what another one is."""

    async def nothing(_: str) -> str:
        return "done"

    with pytest.raises(InvalidRequest, match="other"):
        await assert_idempotent(nothing, lambda n: f"request {n}", engine=seats)


@pytest.mark.requirement("AC4.2")
async def test_the_page_shows_how_a_user_tries_her_own_participant(
    unsynced: PostgresServer, tmp_path: Path
) -> None:
    """The very code of docs/proof.md, as a program of its own, on a database of its own.

    Red when: a name that the page imports leaves `everycent.kit`, or its seats break a promise.
    """
    page = (Path(__file__).parents[2] / "docs" / "proof.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    unsynced.execute("CREATE DATABASE cinema")
    script = tmp_path / "seats.py"
    script.write_text(block)
    dsn = make_url(unsynced.dsn("cinema")).set(drivername="postgresql+asyncpg")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "DSN": dsn.render_as_string(hide_password=False)},
    )  # fmt: skip
    told, wrong = await process.communicate()
    assert told.decode() == "every promise is kept\n", wrong.decode()
