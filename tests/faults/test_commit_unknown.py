"""A COMMIT whose fate is unknown: lost, done without a reply, stalled, late (I11, design rule 15).

A byte-level proxy stands before a real PostgreSQL. Whatever it does to the COMMIT, the same
operation is sent again, its claim waits for the old transaction, and the stock has moved once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from everycent.database.engine import Database
from everycent.database.inventory import commit_stock, receive_stock, release_stock, reserve_stock
from everycent.domain.inventory import (
    CommitStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    StockLine,
)
from everycent.errors import Transient, Unknown
from everycent.proof.sweep.proxy import CommitProxy, Doom, Fate
from everycent.settings import PoolSettings, ServiceName, Settings
from everycent.stack.postgres import PostgresServer
from tests.conftest import NOON, TODAY

Operation = Callable[..., Awaitable[list[Any]]]
LIMITS = PoolSettings(size=1, wait_seconds=5, lock_timeout_seconds=5, statement_timeout_seconds=8)
LATE_SECONDS = 1.0


@dataclass
class Doubt:
    """A service whose connections pass the proxy, and the same database looked at directly."""

    proxy: CommitProxy
    through: Database
    direct: Database
    tenant: str

    async def send(self, database: Database, operation: Operation, request: Any) -> Any:
        async with database.transaction() as tx:
            [answer] = await operation(tx, [request])
        return answer

    async def doom(self, fate: Fate, seconds: float = 0.0) -> Doom:
        """Set the fate of the next COMMIT of the one connection of the pool."""
        async with self.through.transaction() as tx:
            backend = (await tx.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        return self.proxy.doom(backend, fate, seconds)

    async def stock(self) -> tuple[int, int, int]:
        async with self.direct.transaction() as tx:
            row = await tx.execute(
                text("SELECT free, held, sold FROM stock WHERE tenant = :t"), {"t": self.tenant}
            )
            free, held, sold = row.one()
        return free, held, sold

    async def reservations(self) -> int:
        async with self.direct.transaction() as tx:
            rows = await tx.execute(
                text("SELECT count(*) FROM reservation WHERE key LIKE :k"),
                {"k": f"{self.tenant}/o/%"},
            )
        return int(rows.scalar_one())


@pytest.fixture
async def doubt(
    settings: Settings,
    postgres: PostgresServer,
    databases: dict[ServiceName, Database],
    tenant: str,
) -> AsyncIterator[Doubt]:
    async with CommitProxy(postgres.port) as proxy:
        dsn = make_url(settings.database["inventory"]).set(port=proxy.port)
        through = Database(dsn.render_as_string(hide_password=False), LIMITS)
        doubt = Doubt(proxy, through, databases["inventory"], tenant)
        receipt = ReceiveStock(
            key=f"{tenant}/~stock/LAMP/receive/1", at=NOON, opened_on=TODAY, sku="LAMP", units=5
        )
        await doubt.send(doubt.direct, receive_stock, receipt)
        yield doubt
        await through.close()


def _step(doubt: Doubt) -> dict[str, Any]:
    return {"key": f"{doubt.tenant}/o/reserve", "at": NOON, "opened_on": TODAY}


def _try(doubt: Doubt) -> ReserveStock:
    return ReserveStock(lines=(StockLine(sku="LAMP", units=2),), **_step(doubt))


OPERATIONS: dict[str, tuple[Operation, Callable[[Doubt], Any], tuple[int, int, int]]] = {
    "Try": (reserve_stock, _try, (3, 2, 0)),
    "Confirm": (commit_stock, lambda doubt: CommitStock(**_step(doubt)), (3, 0, 2)),
    "Cancel": (release_stock, lambda doubt: ReleaseStock(reason="r", **_step(doubt)), (5, 0, 0)),
}  # fmt: skip


@pytest.mark.requirement("I11", "AC2.2", "AC4.3")
@pytest.mark.parametrize("fate", ["lose commit", "lose reply", "commit late"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_commit_in_doubt_is_settled_by_sending_it_again(
    doubt: Doubt, name: str, fate: Fate
) -> None:
    """Red when: an error of COMMIT without the server's answer is told as Transient."""
    operation, request, expected = OPERATIONS[name]
    if name != "Try":
        await doubt.send(doubt.direct, reserve_stock, _try(doubt))
    doom = await doubt.doom(fate, LATE_SECONDS)
    with pytest.raises(Unknown):
        await doubt.send(doubt.through, operation, request(doubt))
    answers = [await doubt.send(doubt.direct, operation, request(doubt)) for _ in range(2)]
    assert await doubt.stock() == expected
    assert answers[0] == answers[1]
    await asyncio.wait_for(doom.struck.wait(), 10)
    assert await doubt.stock() == expected


@pytest.mark.requirement("I11")
async def test_a_plain_read_proves_only_a_yes(doubt: Doubt) -> None:
    """Right after the connection is lost a read finds nothing, and the row comes all the same.

    Red when: the proxy forwards the late COMMIT at once.
    """
    doom = await doubt.doom("commit late", 60)
    with pytest.raises(Unknown):
        await doubt.send(doubt.through, reserve_stock, _try(doubt))
    assert await doubt.reservations() == 0
    doom.go.set()
    await asyncio.wait_for(doom.struck.wait(), 10)
    assert await doubt.reservations() == 1


@pytest.mark.requirement("I11")
async def test_whoever_is_sent_again_while_a_commit_stalls_waits_for_it(doubt: Doubt) -> None:
    """The first attempt is given up; the second comes while the COMMIT of the first is under way.

    Red when: a claim takes every key for its own, whoever has inserted it.
    """
    doom = await doubt.doom("stall commit", 60)
    first = asyncio.create_task(doubt.send(doubt.through, reserve_stock, _try(doubt)))
    await asyncio.wait_for(doom.begun.wait(), 10)
    second = asyncio.create_task(doubt.send(doubt.direct, reserve_stock, _try(doubt)))
    await asyncio.wait([first, second], timeout=LATE_SECONDS)
    assert not first.done()
    assert not second.done()
    doom.go.set()
    assert await first == await second
    assert await doubt.stock() == (3, 2, 0)


@pytest.mark.requirement("I11")
async def test_a_commit_that_stalls_beyond_every_limit_keeps_nothing(
    settings: Settings, doubt: Doubt
) -> None:
    """The server ends the transaction by itself; then the work is done by the next attempt.

    Red when: a transaction of a session that says nothing more has no limit.
    """
    limits = LIMITS.model_copy(
        update={"transaction_timeout_seconds": 1.0, "idle_in_transaction_seconds": 1.0}
    )
    dsn = doubt.through.engine.url.render_as_string(hide_password=False)
    doubt.through = Database(dsn, limits)
    await doubt.doom("stall commit", 4.0)
    with pytest.raises((Transient, Unknown)):
        await doubt.send(doubt.through, reserve_stock, _try(doubt))
    assert await doubt.reservations() == 0
    await doubt.send(doubt.direct, reserve_stock, _try(doubt))
    assert await doubt.stock() == (3, 2, 0)
    with contextlib.suppress(Transient, Unknown):
        await doubt.through.close()
