"""Workers together open no more connections than the database has: told and counted at start."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from everycent.database import capacity
from everycent.database.capacity import ITSELF, Limits, Told, overdrawn, within_limits
from everycent.database.engine import Database
from everycent.database.wake import Wake
from everycent.errors import InvalidRequest
from everycent.settings import SERVICES, PoolSettings, ServiceName, Settings
from starters.client import address_of
from workers import composition
from workers.composition import (
    WORKERS,
    consumers_of,
    relays,
    workers_of,
)
from workers.connections import connections_of, connections_of_relay

ROOM = 40


def told(name: str, connections: int, where: str = "shop") -> Told:
    return Told(datname=where, rolname=f"{where}_worker", name=name, connections=connections)


@pytest.mark.requirement("AC15.4")
def test_each_limit_is_compared_with_the_sum_that_it_is_about() -> None:
    """Red when: a sum leaves a worker out, takes one of another database in, or a limit is off."""
    mine, twin, other = told("one", 20), told("two", 20), told("three", 20, "stock")
    roomy = Limits(server=60, database=40, role=40, datname="shop", rolname="shop_worker")
    assert overdrawn(roomy, [mine, twin, other]) == ""
    for scope, tight in (
        ("the database shop has 39", {"database": 39}),
        ("the role shop_worker has 39", {"role": 39}),
        ("the server has 59", {"server": 59}),
    ):
        problem = overdrawn(Limits(**{**vars(roomy), **tight}), [mine, twin, other])
        assert scope in problem
        assert "one in shop; " in problem
        assert ("three in stock" in problem) == ("server" in tight)
    unlimited = Limits(**{**vars(roomy), "database": None, "role": None})
    assert overdrawn(unlimited, [mine, twin, other]) == ""


@pytest.fixture
async def narrow(
    settings: Settings, owners: dict[ServiceName, Database]
) -> AsyncIterator[Settings]:
    """The points service whose worker's role may have forty connections, and no more."""
    async with owners["points"].transaction() as tx:
        await tx.execute(text(f"ALTER ROLE everycent_points CONNECTION LIMIT {ROOM}"))
    yield settings.model_copy(update={"pool": PoolSettings(size=16)})
    async with owners["points"].transaction() as tx:
        await tx.execute(text("ALTER ROLE everycent_points CONNECTION LIMIT -1"))


@pytest.mark.requirement("AC15.4")
async def test_a_worker_starts_while_there_is_room_and_the_next_is_refused_with_the_figures(
    narrow: Settings,
) -> None:
    """Red when: a worker that runs is not counted, one that has left is, or nobody is refused."""
    wanted = connections_of("points", narrow)
    [connections] = wanted.values()
    assert connections + ITSELF <= ROOM < 2 * (connections + ITSELF)
    for _ in range(2):  # Who has left makes room.
        async with within_limits("worker points", wanted):
            with pytest.raises(InvalidRequest) as refused:
                async with within_limits("worker points", wanted):
                    pytest.fail("there is no room for two")
        await _left(narrow)
    both = 2 * (connections + ITSELF)
    assert f"workers may open {both} connections and the role everycent_points has {ROOM}: " in str(
        refused.value
    )
    assert str(refused.value).count(f"worker points: up to {connections + ITSELF} in ") == 2
    assert "lower EVERYCENT_POOL__SIZE" in str(refused.value)


@pytest.mark.requirement("AC15.4")
async def test_of_two_that_start_at_once_never_both_stay(narrow: Settings) -> None:
    """Red when: each counts before it tells."""
    wanted = connections_of("points", narrow)
    stay = asyncio.Event()

    async def start() -> bool:
        try:
            async with within_limits("worker points", wanted):
                await stay.wait()
        except InvalidRequest:
            return False
        return True

    pair = [asyncio.create_task(start()) for _ in range(2)]
    done, _ = await asyncio.wait(pair, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    stay.set()
    assert done, "both have stayed"
    assert (await asyncio.gather(*pair)).count(True) <= 1
    await _left(narrow)


@pytest.mark.requirement("AC15.4")
async def test_the_process_ends_with_the_reason(
    narrow: Settings, temporal: WorkflowEnvironment, tmp_path: Path
) -> None:
    """Red when: the command does not ask, or works on without room."""
    async with within_limits("worker points", connections_of("points", narrow)):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "everycent", "worker", "points", "--data-dir", str(tmp_path)],
            env={
                **os.environ,
                "EVERYCENT_DATABASE__POINTS": narrow.database["points"],
                "EVERYCENT_POOL__SIZE": str(narrow.pool.size),
                "TEMPORAL_ADDRESS": address_of(temporal.client),
            },
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert done.returncode == 2, done.stderr
    assert f"the role everycent_points has {ROOM}" in done.stderr
    await _left(narrow)


@pytest.mark.requirement("AC15.4")
async def test_it_is_told_again_when_the_connection_was_lost(
    narrow: Settings, owners: dict[ServiceName, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when: a server that restarts forgets who works."""
    monkeypatch.setattr(capacity, "LOOK_SECONDS", 0.02)
    async with within_limits("worker points", connections_of("points", narrow)):
        before = await _tellers(narrow)
        async with owners["points"].transaction() as tx:
            await tx.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": before[0]})
        async with asyncio.timeout(30):
            while await _tellers(narrow) in ([], before):
                await asyncio.sleep(0.02)
    await _left(narrow)


@pytest.mark.requirement("AC15.4")
@pytest.mark.parametrize("name", [*WORKERS, "relay"])
async def test_what_is_told_is_what_can_be_opened(
    name: str,
    settings: Settings,
    temporal: WorkflowEnvironment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every pool and every listener that a process builds is counted, and a lane has as many slots
    as its pool has connections.

    Red when: a pool is added or grows and `connections_of` does not know, or a lane has more slots.
    """
    opened: dict[str, int] = {}

    class Counted(Database):
        def __init__(self, dsn: str, pool: PoolSettings, **more: object) -> None:
            super().__init__(dsn, pool, **more)  # type: ignore[arg-type]
            opened[dsn] = opened.get(dsn, 0) + pool.size

    class Listening(Wake):
        def __init__(self, dsn: str, channel: str) -> None:
            super().__init__(dsn, channel)
            opened[dsn] = opened.get(dsn, 0) + 1

    monkeypatch.setattr(composition, "Database", Counted)
    monkeypatch.setattr(composition, "Wake", Listening)
    async with contextlib.AsyncExitStack() as stack:
        if name == "relay":
            await stack.enter_async_context(relays(settings))
            assert opened == connections_of_relay(settings)
            return
        worker = composition.worker_name(name)
        # One client knows its workers until they are collected, those of the tests before as well.
        address = temporal.client.service_client.config.target_host
        client = await Client.connect(address, data_converter=temporal.client.data_converter)
        await stack.enter_async_context(workers_of(worker, client, settings))
        await stack.enter_async_context(consumers_of(worker, settings))
        if worker in SERVICES:
            slots = await stack.enter_async_context(composition.lanes_of(worker, settings))
            # The lanes were built twice by now: once more than a process does.
            again = sum(lane.slots for lane in slots)
            opened[settings.database[worker]] -= again
        assert opened == connections_of(worker, settings)


async def _tellers(settings: Settings) -> list[int]:
    """Return the sessions that tell something about the points service."""
    database = Database(settings.database["points"], settings.pool)
    try:
        async with database.transaction() as tx:
            found = await tx.execute(
                text(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name LIKE 'everycent worker points: up to %'"
                )
            )
            return list(found.scalars())
    finally:
        await database.close()


async def _left(settings: Settings) -> None:
    """Wait until PostgreSQL has seen the last teller go."""
    async with asyncio.timeout(30):
        while await _tellers(settings):
            await asyncio.sleep(0.02)
