"""What is counted of an order: fsyncs and messages in PostgreSQL, writes in Temporal."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import asyncpg
import httpx
import psutil

from benchmarks.protocol_order import TENANT
from everycent.settings import SERVICES
from everycent.stack.embedded import EmbeddedStack

# An idle session tells its counters ten seconds after its last transaction, not before.
SETTLE_SECONDS = 11.0
_FSYNCS = "SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal'"
_MESSAGES = "SELECT count(*) FROM outbox WHERE aggregate = ANY($1)"
_REQUESTS = re.compile(r'^persistence_requests\{.*operation="(\w+)".*\} (\S+)$', re.MULTILINE)
_READS = ("Get", "List", "Read", "Watch", "Assert")


class Reading(NamedTuple):
    """The counters of a moment."""

    at: float
    fsyncs: float  # Of PostgreSQL's log: one for a commit, or for several that come together.
    writes: float  # What Temporal asks its store to write: with SQLite an fsync each.

    def since(self, earlier: "Reading") -> "Reading":
        """Return the difference."""
        return Reading(*(now - then for now, then in zip(self, earlier, strict=True)))


NOTHING = Reading(1.0, 0.0, 0.0)


@dataclass
class Meters:
    """Reads the counters of an embedded stack, and takes off what it counts with nothing to do."""

    connection: asyncpg.Connection
    stack: EmbeddedStack
    http: httpx.AsyncClient
    address: str
    idle: Reading = NOTHING
    settle_seconds: float = SETTLE_SECONDS

    @classmethod
    async def of(
        cls, stack: EmbeddedStack, connection: asyncpg.Connection, http: httpx.AsyncClient
    ) -> Self:
        """Find where the Temporal server tells its meters: a port that it has picked itself."""
        pid = stack.processes["temporal"].pid
        ports = [
            found.laddr.port
            for found in psutil.Process(pid).net_connections()
            if found.status == psutil.CONN_LISTEN
        ]
        for port in ports:
            address = f"http://127.0.0.1:{port}/metrics"
            try:
                if "persistence_requests" in (await http.get(address)).text:
                    return cls(connection, stack, http, address)
            except httpx.HTTPError:  # Another port of the server's, which speaks gRPC.
                continue
        raise AssertionError("the Temporal server tells no meters")

    async def settled(self) -> Reading:
        """Read once every session has told what it counted."""
        await asyncio.sleep(self.settle_seconds)
        told = (await self.http.get(self.address)).text
        writes = sum(
            float(count) for name, count in _REQUESTS.findall(told) if not name.startswith(_READS)
        )
        return Reading(time.monotonic(), await self.connection.fetchval(_FSYNCS), writes)

    async def watch_idle(self) -> Reading:
        """Learn what is counted with nothing to do, and return the reading to begin with."""
        before = await self.settled()
        after = await self.settled()
        self.idle = after.since(before)
        return after

    def per_order(self, between: Reading, orders: int) -> tuple[float, float]:
        """Return fsyncs and writes of one order."""
        idle = between.at / self.idle.at
        return (
            max(between.fsyncs - idle * self.idle.fsyncs, 0) / orders,
            max(between.writes - idle * self.idle.writes, 0) / orders,
        )

    async def messages(self, orders: Sequence[str]) -> float:
        """Count the messages of an order, over all services."""
        xids, found = [f"{TENANT}/{order}" for order in orders], 0
        for service in SERVICES:
            connection = await asyncpg.connect(self.stack.settings.owner[service])
            found += await connection.fetchval(_MESSAGES, xids)
            await connection.close()
        return found / len(orders)
