"""A Try that is flooded: nobody waits for ever, what frees stock goes on, no connection is lost."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from temporalio.client import ActivityHandle, Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.testing import WorkflowEnvironment

from activities.boundary import errors_for_temporal
from activities.inventory import InventoryActivities
from everycent.database.engine import Database
from everycent.domain.inventory import (
    CommitStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    StockLine,
)
from everycent.errors import PoolTimeout
from everycent.settings import PoolSettings, ServiceName, Settings
from everycent.stack import ports
from starters.client import DATA_CONVERTER
from tests.conftest import NOON, TODAY
from workers.composition import activity_worker, lanes_of
from workers.meters import CONNECTION_HELD, HELD_BUCKETS
from workers.queues import finishes, tries
from workflows.options import DATABASE_MUST

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(180)
SIZE = 3
FLOOD = 10 * SIZE
"""Ten times as many calls as the lane has connections."""


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Lanes of three connections, and time-outs that a test can wait for."""
    pool = PoolSettings(size=SIZE, wait_seconds=0.2, lock_timeout_seconds=1)
    return settings.model_copy(update={"pool": pool})


@contextlib.asynccontextmanager
async def inventory_worker(client: Client, settings: Settings) -> AsyncIterator[None]:
    """Run the inventory's two lanes as its worker process does."""
    async with lanes_of("inventory", settings) as lanes, contextlib.AsyncExitStack() as stack:
        for lane in lanes:
            await stack.enter_async_context(activity_worker(client, lane))
        yield


def reserve(tenant: str, number: int, sku: str) -> ReserveStock:
    key = f"{tenant}/o-{number}/reserve"
    return ReserveStock(key=key, at=NOON, opened_on=TODAY, lines=(StockLine(sku=sku, units=1),))


async def receive(owner: Database, tenant: str, skus: Sequence[str]) -> None:
    activities = InventoryActivities(owner)
    for sku in skus:
        key = f"{tenant}/~stock~{sku}/receive"
        await activities.receive_stock(
            ReceiveStock(key=key, at=NOON, opened_on=TODAY, sku=sku, units=1000)
        )


async def waiting(owner: Database, queue: str) -> int:
    """Return how many sessions of a lane wait for somebody's lock."""
    async with owner.engine.connect() as connection:
        found = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = :queue"
                " AND cardinality(pg_blocking_pids(pid)) > 0"
            ),
            {"queue": queue},
        )
    return found or 0


async def busy(owner: Database) -> int:
    """Return how many of the lanes' sessions are in a transaction."""
    async with owner.engine.connect() as connection:
        found = await connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle'"
                " AND application_name IN (:tries, :finishes)"
            ),
            {"tries": tries("inventory"), "finishes": finishes("inventory")},
        )
    return found or 0


@pytest.mark.requirement("AC15.3", "AC15.2")
async def test_a_flooded_try_holds_up_no_confirm_and_no_cancel(
    temporal: WorkflowEnvironment,
    small: Settings,
    owners: dict[ServiceName, Database],
    tenant: str,
) -> None:
    """Ten times as many Tries as connections, all for a row that somebody has locked.

    Red when: Confirm and Cancel share the queue or the pool of Try, a Try waits without end, or a
    connection is not given back.
    """
    owner = owners["inventory"]
    await receive(owner, tenant, ["HOT", "COOL"])
    activities = InventoryActivities(owner)
    for number in (1, 2):
        await activities.reserve_stock(reserve(tenant, number, "COOL"))
    client = temporal.client

    async def step(call: object, request: object, queue: str) -> ActivityHandle[object]:
        return await client.start_activity(  # type: ignore[call-overload, no-any-return]
            call, request, id=f"{queue}/{request.key}", task_queue=queue,  # type: ignore[attr-defined]
            **DATABASE_MUST,
        )  # fmt: skip

    async with inventory_worker(client, small):
        async with owner.transaction() as lock:
            await lock.execute(
                text("SELECT 1 FROM stock WHERE tenant = :t AND sku = 'HOT' FOR UPDATE"),
                {"t": tenant},
            )
            flood = [
                await step(
                    InventoryActivities.reserve_stock, reserve(tenant, n, "HOT"), tries("inventory")
                )
                for n in range(100, 100 + FLOOD)
            ]
            while await waiting(owner, tries("inventory")) < SIZE:
                pass
            one = CommitStock(key=f"{tenant}/o-1/reserve", at=NOON, opened_on=TODAY)
            two = ReleaseStock(key=f"{tenant}/o-2/reserve", at=NOON, opened_on=TODAY, reason="x")
            ends = [
                await step(InventoryActivities.commit_stock, one, finishes("inventory")),
                await step(InventoryActivities.release_stock, two, finishes("inventory")),
            ]
            async with asyncio.timeout(DATABASE_MUST["start_to_close_timeout"].total_seconds()):
                await asyncio.gather(*(end.result() for end in ends))
            for end in ends:
                assert (await end.describe()).attempt == 1
        await asyncio.gather(*(each.result() for each in flood))
        assert await busy(owner) == 0
    async with owner.engine.connect() as connection:
        held = await connection.scalar(
            text("SELECT held FROM stock WHERE tenant = :t AND sku = 'HOT'"), {"t": tenant}
        )
    assert held == FLOOD


@pytest.mark.requirement("AC15.2")
async def test_ten_times_as_many_as_the_pool_has_get_an_answer_and_leak_nothing(
    settings: Settings, recwarn: pytest.WarningsRecorder
) -> None:
    """Red when: who finds no connection waits without end, gets another error, or keeps one."""
    pool = PoolSettings(size=SIZE, wait_seconds=0.2)
    database = Database(settings.database["points"], pool)
    release = asyncio.Event()

    async def step(until: asyncio.Event) -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await until.wait()

    crowd = [asyncio.create_task(step(release)) for _ in range(FLOOD)]
    async with asyncio.timeout(30):
        done, _ = await asyncio.wait(crowd[SIZE:])
    assert [type(task.exception()) for task in done] == [PoolTimeout] * (FLOOD - SIZE)
    with pytest.raises(Exception, match="no database connection") as told, errors_for_temporal():
        raise PoolTimeout("no database connection became free in time")
    assert not told.value.non_retryable  # type: ignore[attr-defined]
    assert told.value.type == "PoolTimeout"  # type: ignore[attr-defined]
    release.set()
    await asyncio.gather(*crowd[:SIZE])
    await asyncio.gather(*(step(release) for _ in range(FLOOD)))
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert not [each for each in recwarn if "non-checked-in connection" in str(each.message)]
    await database.close()


@pytest.mark.requirement("AC15.1")
async def test_each_step_says_how_long_it_had_a_connection(
    temporal: WorkflowEnvironment, small: Settings, owners: dict[ServiceName, Database], tenant: str
) -> None:
    """Served to Prometheus by activity, as the worker process does it.

    Red when: the time is not noted, or not under the activity that held the connection.
    """
    await receive(owners["inventory"], tenant, ["LAMP"])
    address = f"127.0.0.1:{ports.pick_free()}"
    metrics = PrometheusConfig(
        bind_address=address,
        durations_as_seconds=True,
        histogram_bucket_overrides={CONNECTION_HELD: HELD_BUCKETS},
    )
    client = await Client.connect(
        temporal.client.service_client.config.target_host,
        runtime=Runtime(telemetry=TelemetryConfig(metrics=metrics)),
        data_converter=DATA_CONVERTER,
    )
    async with inventory_worker(client, small):
        for number in range(5):
            request = reserve(tenant, number, "LAMP")
            await client.execute_activity_method(
                InventoryActivities.reserve_stock, request, id=f"held/{request.key}",
                task_queue=tries("inventory"), start_to_close_timeout=timedelta(seconds=60),
            )  # fmt: skip
        async with httpx.AsyncClient(trust_env=False) as http:
            told = (await http.get(f"http://{address}/metrics")).text
    [count] = [
        line.rpartition(" ")[2]
        for line in told.splitlines()
        if line.startswith(f"{CONNECTION_HELD}_count")
        and 'activity_type="inventory.reserve_stock"' in line
        and f'task_queue="{tries("inventory")}"' in line
    ]
    assert count == "5"
    assert f"{CONNECTION_HELD}_bucket{{" in told
    assert 'le="0.005"' in told


def test_a_worker_whose_meters_find_no_place_says_so(tmp_path: Path) -> None:
    """Red when: a worker starts and nobody can ever read its meters."""
    env = {**os.environ, "EVERYCENT_METRICS": "nowhere", "EVERYCENT_DATA_DIR": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-m", "everycent", "worker", "points"], env=env, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert told.returncode == 2
    assert "EVERYCENT_METRICS (nowhere)" in told.stderr
