"""A declared participant in every order of two sessions: its fence is where ours is tried."""

import uuid
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from everycent.database.counted import Counted
from everycent.database.participant import fence_tables
from everycent.domain.counted import TakeUnits
from everycent.domain.participant import CancelBranch, ConfirmBranch
from everycent.proof.interleavings_kinds import START, UNITS, Kind, resource, step_of
from everycent.proof.interleavings_rows import _doing, _reading
from everycent.proof.interleavings_run import COMMITS, Part, play
from everycent.stack.postgres import PostgresServer

pytestmark = pytest.mark.timeout(300)  # For a busy machine: nothing here waits for a time.

STEPS = Counted("step")  # The name that the kit's keys have in their third part.


def request(operation: str, place: str, number: int) -> Any:
    step = step_of(place, number)
    if operation == "try":
        return TakeUnits(**step, item=resource(number), units=UNITS)
    return ConfirmBranch(**step) if operation == "confirm" else CancelBranch(**step, reason="no")


DECLARED = Kind(
    name="declared participant",
    service=None,
    table="fence",
    operations={"try": STEPS.tries, "confirm": STEPS.confirms, "cancel": STEPS.cancels},
    request=request,
    prepare=_doing(
        f"INSERT INTO step_counter (tenant, item, allowed, free) SELECT place, name, {START},"
        f" {START} FROM unnest(CAST(:places AS text[])) AS place, unnest(ARRAY['x', 'y']) AS name"
    ),
    parts=_reading(
        "SELECT tenant AS place, sum(free) AS free, sum(held) AS held, sum(used) AS done"
        " FROM step_counter WHERE tenant = ANY(CAST(:places AS text[])) GROUP BY tenant"
    ),
)


@pytest.mark.requirement("AC13.5", "AC12.4", "T12", "AC14.1")
@pytest.mark.parametrize("batch", [1, 2])
async def test_every_order_of_two_sessions_is_safe(unsynced: PostgresServer, batch: int) -> None:
    """Try, Confirm, Cancel and their doubles, from nothing and after a Try; keys that overlap.

    Red when: a Cancel of the platform gives nothing back, or moves what the row does not hold.
    """
    name = f"declared_{uuid.uuid4().hex[:12]}"
    unsynced.execute(f"CREATE DATABASE {name}")
    dsn = unsynced.dsn(name)
    engine = create_async_engine(make_url(dsn).set(drivername="postgresql+asyncpg"))
    async with engine.begin() as tx:
        for statement in (*fence_tables(), *STEPS.tables()):
            await tx.execute(text(statement))
    await engine.dispose()

    result = await play(DECLARED, dsn, Part(2, batch, COMMITS), lanes=2)

    assert result.findings == []
    assert result.ok
