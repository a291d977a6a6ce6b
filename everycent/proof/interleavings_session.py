"""Real PostgreSQL sessions that stop at switch points and go on when they are told to.

Nothing of the product is changed for it: the driver's own event before each statement lets the
session wait. A session that waits for a lock is recognised by `pg_blocking_pids`, never by time.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import await_only

from everycent.database.engine import Database
from everycent.errors import EverycentError
from everycent.proof.interleavings_tree import Standing
from everycent.settings import PoolSettings

Operation = Callable[[AsyncConnection, Sequence[Any]], Awaitable[Sequence[Any]]]


class Point(StrEnum):
    """Where a session stops: before its claim, its lock, its effect and its end."""

    CLAIM = "claim"
    LOCK = "lock"
    EFFECT = "effect"
    END = "end"


class Ending(StrEnum):
    """How a session ends after its last statement."""

    COMMIT = "commit"
    ABORT = "abort"
    LOST = "lost"  # Its connection breaks before the COMMIT can be sent.


class Cut(StrEnum):
    """Where sessions are stopped: at the points, or before every single statement."""

    POINTS = "points"
    STATEMENTS = "statements"


# Longer than any schedule: a session that the scheduler keeps waiting is not late.
PATIENCE = PoolSettings(
    wait_seconds=600,
    lock_timeout_seconds=600,
    statement_timeout_seconds=600,
    transaction_timeout_seconds=600,
    idle_in_transaction_seconds=600,
)
# When to ask PostgreSQL who waits; what it answers decides. A busy one is asked less often.
_LOOK_AFTER_SECONDS, _LATEST_LOOK_SECONDS = 0.002, 0.05

_current: ContextVar["Session | None"] = ContextVar("interleaved_session", default=None)


class _Aborted(Exception):  # Not an error: the ending a session was given.
    """The session gives up instead of committing."""


@dataclass
class Session:
    """One transaction of the schedule: an operation on a batch, its ending, and what came of it."""

    operation: Operation
    requests: Sequence[Any]
    keys: Sequence[str]
    points: tuple[Point, ...]
    ending: Ending
    table: str
    cut: Cut = Cut.POINTS
    step: Callable[[], int] = int  # Which step of the schedule is under way.
    at: Point | None = None
    moving: bool = True
    done: bool = False
    left: int = field(init=False)
    begun: bool = False
    pid: int = 0
    answers: Sequence[Any] | None = None
    error: BaseException | None = None
    asked_at: list[int] = field(default_factory=list)  # The step of each lock statement it sent.
    ended_at: int = -1  # The step in which it ended.
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.left = len(self.points)

    @property
    def committed(self) -> bool:
        """Whether its writes stand."""
        return self.done and self.error is None and self.ending is Ending.COMMIT

    def send_on(self) -> None:
        """Let it go past the point where it stands."""
        self.begun = self.moving = True
        self.left -= 1
        self._go.set()

    def standing(self) -> Standing:
        """Tell how it stands, with the steps it skips because there is nothing to do."""
        if self.done:
            return Standing(self.left, "done", self.left)
        if self.moving:
            return Standing(self.left, "waits")
        idle = 0
        if self.cut is Cut.POINTS and self.at is not None:
            idle = self.left - (len(self.points) - self.points.index(self.at))
        return Standing(self.left, "ready", idle, self.begun)

    def skip_idle(self) -> None:
        """Count the steps with nothing to do as taken."""
        self.left -= self.standing().idle

    async def run(self, database: Database, changed: asyncio.Event) -> None:
        """Run the operation in a transaction of its own, stopping at every point."""
        self._changed = changed
        _current.set(self)
        try:
            with contextlib.suppress(_Aborted):
                async with database.transaction() as tx:
                    await self._work(tx)
        except (EverycentError, SQLAlchemyError, AssertionError) as error:
            self.error = error  # For the judge: a lost session ends with Unknown, others with none.
        finally:
            self.done, self.moving = True, False
            changed.set()

    async def before(self, statement: str) -> None:
        """Stop before a statement that begins another part of the work."""
        kind = kind_of(statement, self.table)
        if self.cut is Cut.STATEMENTS or (kind is not self.at and self.at is not Point.EFFECT):
            await self._stop(kind)
        if kind is Point.LOCK:
            self.asked_at.append(self.step())

    async def _work(self, tx: AsyncConnection) -> None:
        driver = (await tx.get_raw_connection()).driver_connection
        assert driver is not None
        self.pid = driver.get_server_pid()
        self.answers = await self.operation(tx, self.requests)
        await self._stop(Point.END)
        if self.ending is Ending.ABORT:
            raise _Aborted
        if self.ending is Ending.LOST:
            driver.terminate()

    async def _stop(self, at: Point) -> None:
        self.at, self.moving = at, False
        self._changed.set()
        await self._go.wait()
        self._go.clear()


def kind_of(statement: str, table: str) -> Point:
    """Tell a claim or a lock of the fence's table from everything else."""
    if re.match(rf"INSERT INTO {table}\b", statement):
        return Point.CLAIM
    if re.search(rf"FROM {table}\b.*FOR (NO KEY )?UPDATE|FROM {table}_(claim|tombstone)\(",
                 statement, re.DOTALL):  # fmt: skip
        return Point.LOCK
    return Point.EFFECT


class Watch:
    """A connection that asks PostgreSQL who waits for whom, for all stages of a process at once."""

    def __init__(self, connection: "asyncpg.Connection[Any]") -> None:
        self._connection = connection
        self._turn = asyncio.Lock()
        self._wanted: set[int] = set()
        self._next: asyncio.Task[dict[int, set[int]]] | None = None
        self.after_seconds = _LOOK_AFTER_SECONDS

    async def blockers(self, pids: set[int]) -> dict[int, set[int]]:
        """Return who blocks each, as PostgreSQL saw it after this call: no older look is used."""
        self._wanted |= pids
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        return await asyncio.shield(self._next)  # Others wait for it too.

    async def _look(self) -> dict[int, set[int]]:
        async with self._turn:
            pids, self._wanted, self._next = list(self._wanted), set(), None
            rows = await self._connection.fetch(
                "SELECT pid, pg_blocking_pids(pid) AS by FROM unnest($1::int[]) AS pid", pids
            )
        blockers = {row["pid"]: set(row["by"]) for row in rows}
        found = any(blockers.values())  # Otherwise all were at work, and the look was too early.
        after = self.after_seconds * (0.5 if found else 2)
        self.after_seconds = min(max(after, _LOOK_AFTER_SECONDS), _LATEST_LOOK_SECONDS)
        return blockers

    async def is_there(self, pid: int) -> bool:
        """Tell whether PostgreSQL still has that session."""
        async with self._turn:
            query = "SELECT count(*) FROM pg_stat_get_activity($1)"
            return bool(await self._connection.fetchval(query, pid))


@dataclass
class Stage:
    """Where one schedule at a time is played: a pool for its sessions, and who watches them.

    `step` counts the steps of the schedule that is being played.
    """

    database: Database
    watch: Watch
    sessions: list[Session] = field(default_factory=list)
    step: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(
        self, sessions: Sequence[Session], chooser: "Chooser"
    ) -> list[tuple[int, Point | None]]:
        """Run sessions to their ends in the order that `chooser` wants; return the order.

        The order is a list of who went on, and from which point.
        """
        self.sessions, self.step = list(sessions), 0
        for session in sessions:
            session.step = lambda: self.step
        tasks = [asyncio.create_task(s.run(self.database, self._changed)) for s in sessions]
        order: list[tuple[int, Point | None]] = []
        try:
            await self._settle()
            chooser.begin(self._seen())
            while (seen := self._seen_on()) and any(each.state == "ready" for each in seen):
                choice = chooser.choose(seen)
                session = self.sessions[choice]
                order.append((choice, session.at))
                self.step += 1
                session.send_on()
                await self._settle()
                chooser.went(choice, self._seen())
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return order

    def _seen(self) -> tuple[Standing, ...]:
        return tuple(session.standing() for session in self.sessions)

    def _seen_on(self) -> tuple[Standing, ...]:
        """Take the empty steps, then look."""
        for session in self.sessions:
            session.skip_idle()
        return self._seen()

    async def _settle(self) -> None:
        """Return when every session stands at a point, is done, or surely waits for another.

        A waiting one is sure when who blocks it stands still, or is sure itself from a look before
        this one: it cannot have let go in between.
        """
        sure: set[int] = set()
        while moving := [session for session in self.sessions if session.moving]:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.watch.after_seconds):
                    await self._changed.wait()
                continue
            pids = {session.pid for session in moving if session.pid}
            still = {s.pid for s in self.sessions if not s.moving and not s.done} | sure
            blockers = await self.watch.blockers(pids)
            sure |= {pid for pid in pids if still & blockers[pid]}
            if len(pids) == len(moving) and {s.pid for s in moving if s.moving} <= sure:
                break
        await self._note_ends()

    async def _note_ends(self) -> None:
        for session in self.sessions:
            if session.done and session.ended_at < 0:
                session.ended_at = self.step
                if session.ending is Ending.LOST:
                    await self._wait_until_gone(session.pid)

    async def _wait_until_gone(self, pid: int) -> None:
        """Wait until PostgreSQL has noticed that the connection is lost and rolled back."""
        while await self.watch.is_there(pid):
            pass
        await self._settle()


class Chooser(Protocol):
    """Who is sent on next; a `Tree` is one."""

    def begin(self, seen: tuple[Standing, ...]) -> None:
        """Note how all stand at the start."""

    def choose(self, seen: tuple[Standing, ...]) -> int:
        """Return the number of a session that is ready."""

    def went(self, choice: int, seen: tuple[Standing, ...]) -> None:
        """Note what came of it."""


@contextlib.asynccontextmanager
async def stages(dsn: str, number: int, *, sessions: int = 4) -> AsyncIterator[list[Stage]]:
    """Open so many stages on one database, each with room for `sessions`."""
    pool = PATIENCE.model_copy(update={"size": number * sessions + 1})
    database = Database(dsn, pool, name="everycent interleavings")
    event.listen(database.engine.sync_engine, "before_cursor_execute", _before_statement)
    connection = await asyncpg.connect(_plain(dsn))
    watch = Watch(connection)
    try:
        yield [Stage(database, watch) for _ in range(number)]
    finally:
        await connection.close()
        await database.close()


def _before_statement(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
    session = _current.get()
    if session is not None:
        await_only(session.before(statement))


def _plain(dsn: str) -> str:
    url = make_url(dsn).set(drivername="postgresql")
    return url.render_as_string(hide_password=False)
