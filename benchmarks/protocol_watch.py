"""An outside reader: what one sees of an order while it is sold, and how long its stock is locked.

`python -m benchmarks.protocol_watch` is a process of its own that asks the databases all the time,
so that it is not asleep when whoever sells is at work. `Watcher` starts it and speaks with it in
lines of JSON.
"""

import asyncio
import contextlib
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

import asyncpg
from pydantic import BaseModel

from benchmarks.protocol_order import SKU, TENANT

ROOT = Path(__file__).parents[1]
PAUSE_SECONDS = 0.0005
ONE = "one database"
Look = tuple[str, ...]
NOTHING: Look = ("-", "-", "-", "-", "-")
DONE: Look = ("closed", "sold", "paid", "booked", "earned")
# What a service's row about the order says; $1 is <tenant>/<order>.
QUESTIONS = {
    "order": "SELECT CASE decision WHEN 'OPEN' THEN 'open' WHEN 'COMMITTING' THEN 'decided'"
    " ELSE 'closed' END FROM shop_order"
    " WHERE tenant = split_part($1, '/', 1) AND order_id = split_part($1, '/', 2)",
    "inventory": "SELECT CASE state WHEN 'TRIED' THEN 'held' ELSE 'sold' END FROM reservation"
    " WHERE key = $1 || '/reserve'",
    "account": "SELECT CASE state WHEN 'TRIED' THEN 'held' ELSE 'paid' END FROM balance_hold"
    " WHERE key = $1 || '/pay/first'",
    "ledger": "SELECT 'booked' FROM transfer WHERE key = $1 || '/ledger'",
    "points": "SELECT 'earned' FROM points_booking WHERE key = $1 || '/earn'",
}
# The same of one database, where a row says nothing about an order: what has moved since it began.
AT_ONCE = (
    "SELECT (SELECT count(*) FROM shop_order WHERE tenant = split_part($1, '/', 1)"
    " AND order_id = split_part($1, '/', 2)),"
    " (SELECT sum(sold) FROM stock), (SELECT sum(available) FROM account),"
    " (SELECT count(*) FROM entry WHERE tenant = split_part($1, '/', 1)"
    " AND order_id = split_part($1, '/', 2)), (SELECT sum(available) FROM points)"
)
# Whether a transaction that is not over, prepared or not, has written or locked the stock's row.
LOCKED = (
    "SELECT xmax <> '0' AND pg_xact_status(xmax::text::xid8) = 'in progress' FROM stock"
    f" WHERE tenant = '{TENANT}' AND sku = '{SKU}'"
)


class Seen(BaseModel):
    """What was seen of one order: each state, in their order, with the seconds that it stood."""

    states: list[tuple[Look, float]] = []
    seconds: float = 0.0
    looks: int = 0  # At the lock.
    locked: int = 0  # Of them those that found one.

    @property
    def between(self) -> list[tuple[Look, float]]:
        """The states that are neither before nor after."""
        return [(look, seconds) for look, seconds in self.states if look not in (NOTHING, DONE)]

    @property
    def locked_ms(self) -> float:
        """How long the row was locked, as far as the share of looks tells."""
        return 1000 * self.seconds * self.locked / max(self.looks, 1)

    @property
    def held_ms(self) -> float:
        """How long the units were neither free nor sold: nobody else could have them."""
        return 1000 * sum(seconds for look, seconds in self.states if look[1] == "held")


class Watcher:
    """The reader's process, as the benchmark speaks with it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, dsns: Mapping[str, str]) -> AsyncIterator[Self]:
        """Start it: a database for each service's name, and one that is the whole shop."""
        command = (sys.executable, "-m", "benchmarks.protocol_watch")
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
        watcher = cls(process)
        try:
            await watcher._ask(dict(dsns))
            yield watcher
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def begin(self, order_id: str, *, at_once: bool) -> None:
        """Look at this order from now on."""
        await self._ask({"order": f"{TENANT}/{order_id}", "at_once": at_once})

    async def end(self) -> Seen:
        """Look once more, and tell."""
        return Seen.model_validate(await self._ask({}))

    async def _ask(self, what: dict[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(what).encode() + b"\n")
        return json.loads(await stdout.readline())


class Reader:
    """The reader's side of it."""

    def __init__(self, connections: Mapping[str, Any], locks: Mapping[str, Any]) -> None:
        self._connections = connections
        self._locks = locks
        self._over = False
        self._before: Any = None

    def stop(self) -> None:
        """Let the watching end with one more look."""
        self._over = True

    async def begin(self, order: str, *, at_once: bool) -> "asyncio.Task[Seen]":
        """Watch an order until `stop`."""
        self._over = False
        if at_once:
            await self.remember(order)
        return asyncio.create_task(self._watch(order, at_once=at_once))

    async def remember(self, order: str) -> None:
        """Note how the one database stands before the order."""
        self._before = await self._connections[ONE].fetchrow(AT_ONCE, order)

    async def _watch(self, order: str, *, at_once: bool) -> Seen:
        seen, began = Seen(), time.perf_counter()
        watching = asyncio.create_task(self._locked(seen, ONE if at_once else "inventory"))
        last: Look | None = None
        since = began
        while True:
            over = self._over  # Before the look: the last one sees how it ended.
            look = await (self.at_once(order) if at_once else self.one_by_one(order))
            now = time.perf_counter()
            if last is not None and (look != last or over):
                seen.states.append((last, now - since))
                since = now
            last = look
            if over:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        seen.states.append((last, 0.0))
        seen.seconds = time.perf_counter() - began
        await watching
        return seen

    async def _locked(self, seen: Seen, where: str) -> None:
        while not self._over:
            seen.locked += bool(await self._locks[where].fetchval(LOCKED))
            seen.looks += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def one_by_one(self, order: str) -> Look:
        """Ask every service: at the same time, which is as near to an instant as one comes."""
        asked = (self._connections[name].fetchval(q, order) for name, q in QUESTIONS.items())
        return tuple(answer or "-" for answer in await asyncio.gather(*asked))

    async def at_once(self, order: str) -> Look:
        """Ask the one database, in one statement: a state that it was in at some instant."""
        now = await self._connections[ONE].fetchrow(AT_ONCE, order)
        return tuple(
            done if now[place] != self._before[place] else "-" for place, done in enumerate(DONE)
        )


async def _serve() -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    dsns = json.loads(await lines.readline())
    connections = {name: await asyncpg.connect(dsn) for name, dsn in dsns.items()}
    locks = {name: await asyncpg.connect(dsns[name]) for name in ("inventory", ONE)}
    reader = Reader(connections, locks)
    _say("{}")
    while line := await lines.readline():
        asked = json.loads(line)
        watch = await reader.begin(asked["order"], at_once=asked["at_once"])
        _say("{}")
        await lines.readline()
        reader.stop()
        _say((await watch).model_dump_json())
    for connection in (*connections.values(), *locks.values()):
        await connection.close()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve())
