"""Two-phase commit over several of our databases; `examples/points_for_balance.py` uses it.

An example, and no mode of the catalog: who dies between its phases leaves rows locked that
everybody waits for, a third party does not PREPARE for us, and a reader still sees one database
before the other (docs/two-phase-commit.md). What it needs to be safe is all here:

- The decision is one row in the order database, made by whoever comes first. Nothing is committed
  before it says COMMIT. Abort is presumed: what is prepared and has no decision when its time is
  over is decided ABORT, so that a coordinator that only was slow finds it and gives in.
- A repeated Prepare looks for its gid first, and for the decision before that.
- Recovery reads `pg_prepared_xacts` of every database and ends what it finds as the row says.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from everycent import clock
from everycent.database.engine import sqlstate_of

Decision = Literal["COMMIT", "ABORT"]
Work = Callable[[AsyncConnection], Awaitable[None]]
PREFIX = "everycent-2pc"
GRACE = timedelta(seconds=30)  # What is prepared longer than this has lost its coordinator.
_DUPLICATE_GID, _NO_SUCH_GID = "42710", "42704"
LOG = """CREATE TABLE IF NOT EXISTS two_phase_decision (
    gid text COLLATE "C" NOT NULL,
    decision text NOT NULL,
    decided_at timestamptz NOT NULL,
    CONSTRAINT two_phase_decision_pkey PRIMARY KEY (gid),
    CONSTRAINT two_phase_decision_is_known CHECK (decision IN ('COMMIT', 'ABORT'))
)"""


@dataclass(frozen=True)
class Prepared:
    """A transaction that waits in a database for its second phase, and since when."""

    branch: str
    gid: str
    since: datetime


@dataclass(frozen=True)
class Recovered:
    """How recovery ended a transaction; `late` if it had waited longer than allowed: an alarm."""

    prepared: Prepared
    decision: Decision
    late: bool


@dataclass
class TwoPhase:
    """Coordinates over the databases of `branches`; the decisions lie behind `log`.

    `reached` is called at each point between two durable steps: a test dies there.
    """

    log: AsyncEngine
    branches: Mapping[str, AsyncEngine]
    reached: Callable[[str], None] = lambda _point: None
    locked_seconds: list[float] = field(default_factory=list)

    async def run(self, gid: str, works: Mapping[str, Work]) -> Decision:
        """Do all of the works, or none; under a gid that is decided, only end what is left of it.

        `gid` is the business key. Raises what a work raised, after everything was rolled back.
        """
        decided = await self._decision_of(gid)
        if decided is None:
            locked_at = time.perf_counter()
            decided = await self._prepare_and_decide(gid, works)
            self.reached("decided")
            await self._finish_all(gid, list(works), decided)
            self.locked_seconds.append(time.perf_counter() - locked_at)
        else:
            await self._finish_all(gid, list(works), decided)
        return decided

    async def recover(self, *, now: datetime, grace: timedelta = GRACE) -> list[Recovered]:
        """End what has a decision, and what has waited longer than `grace` without one."""
        ended = []
        for prepared in await self.in_doubt():
            late = now - prepared.since >= grace
            decision = await self._decision_of(prepared.gid)
            if decision is None and not late:
                continue  # Its coordinator may still be at work.
            if decision is None:
                decision = await self._decide(prepared.gid, "ABORT")
            await self._finish(prepared.gid, prepared.branch, decision)
            ended.append(Recovered(prepared, decision, late))
        return ended

    async def in_doubt(self) -> list[Prepared]:
        """Return what is prepared in any of the databases, by us and not by others."""
        found = []
        for branch, engine in self.branches.items():
            async with engine.connect() as connection:
                rows = await connection.execute(
                    text(
                        "SELECT gid, prepared FROM pg_prepared_xacts"
                        " WHERE database = current_database() AND starts_with(gid, :prefix)"
                        " ORDER BY prepared"
                    ),
                    {"prefix": f"{PREFIX}:{branch}:"},
                )
                found += [
                    Prepared(branch, row.gid.removeprefix(f"{PREFIX}:{branch}:"), row.prepared)
                    for row in rows
                ]
        return found

    async def _prepare_and_decide(self, gid: str, works: Mapping[str, Work]) -> Decision:
        try:
            for branch, work in works.items():
                await self._prepare(gid, branch, work)
                self.reached(f"prepared {branch}")
        except BaseException:
            # A decision, even about nothing. If another coordinator of this gid has committed, his
            # stands, and who calls again is told so.
            await self._finish_all(gid, list(works), await self._decide(gid, "ABORT"))
            raise
        return await self._decide(gid, "COMMIT")

    async def _prepare(self, gid: str, branch: str, work: Work) -> None:
        """Do the work and PREPARE it, unless an earlier call has."""
        name = _quoted(branch, gid)
        async with self._by_hand(branch) as connection:
            known = await connection.scalar(
                text(
                    "SELECT count(*) FROM pg_prepared_xacts"
                    " WHERE database = current_database() AND gid = :gid"
                ),
                {"gid": f"{PREFIX}:{branch}:{gid}"},
            )
            if known:
                return
            await connection.execute(text("BEGIN"))
            try:
                await work(connection)
                await connection.execute(text(f"PREPARE TRANSACTION {name}"))
            except DBAPIError as error:
                await connection.execute(text("ROLLBACK"))
                if sqlstate_of(error) != _DUPLICATE_GID:  # Another coordinator of this gid did it.
                    raise
            except BaseException:
                await connection.execute(text("ROLLBACK"))
                raise

    async def _decision_of(self, gid: str) -> Decision | None:
        async with self.log.connect() as connection:
            found: Decision | None = await connection.scalar(
                text("SELECT decision FROM two_phase_decision WHERE gid = :gid"), {"gid": gid}
            )
        return found

    async def _decide(self, gid: str, wanted: Decision) -> Decision:
        """Write the decision, or adopt the one that is there."""
        async with self.log.begin() as connection:
            await connection.execute(
                text(
                    "INSERT INTO two_phase_decision (gid, decision, decided_at)"
                    " VALUES (:gid, :decision, :at) ON CONFLICT (gid) DO NOTHING"
                ),
                {"gid": gid, "decision": wanted, "at": clock.now()},
            )
        decided = await self._decision_of(gid)
        assert decided is not None, "a decision does not go away"
        return decided

    async def _finish_all(self, gid: str, branches: Sequence[str], decision: Decision) -> None:
        for branch in branches:
            await self._finish(gid, branch, decision)
            self.reached(f"finished {branch}")

    async def _finish(self, gid: str, branch: str, decision: Decision) -> None:
        verb = "COMMIT" if decision == "COMMIT" else "ROLLBACK"
        async with self._by_hand(branch) as connection:
            try:
                await connection.execute(text(f"{verb} PREPARED {_quoted(branch, gid)}"))
            except DBAPIError as error:
                if sqlstate_of(error) != _NO_SUCH_GID:  # Somebody has ended it before us.
                    raise

    def _by_hand(self, branch: str) -> AbstractAsyncContextManager[AsyncConnection]:
        """Lend a connection whose transactions are begun and ended by our own statements."""
        return self.branches[branch].execution_options(isolation_level="AUTOCOMMIT").connect()


def _quoted(branch: str, gid: str) -> str:
    """Return the name of the transaction as SQL: it takes no parameter; at most 200 bytes."""
    name = f"{PREFIX}:{branch}:{gid}"
    assert len(name.encode()) < 200, "PostgreSQL takes no longer name"
    return "'" + name.replace("'", "''") + "'"
