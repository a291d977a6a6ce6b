"""The sweeper's look: a two-way scan between Temporal and the databases, which changes nothing.

It asks through `Eyes`, so that the same look serves the workflow (by activities) and the dry run
beside any shop (by read-only roles). What looks lost is looked at again before it counts.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

from temporalio.exceptions import FailureError, is_cancelled_exception

from everycent.domain.message import order_of
from everycent.domain.sweep import (
    Finding,
    Hold,
    HoldService,
    RunState,
    Standing,
    Sweep,
    SweepReport,
    judge_hold,
    judge_order,
    judge_run,
    judge_unsold,
    why_stop,
)
from everycent.domain.sweep_questions import (
    HOLD_SERVICES,
    HoldPage,
    HoldsOf,
    KeyPage,
    KeyStates,
    Rows,
    Running,
    RunningPage,
    StandingsOf,
    Unfinished,
    UnfinishedPage,
    WorkflowIds,
)

T = TypeVar("T")
_FEW = 200
_ORDERS = "unfinished orders"


class Eyes(Protocol):
    """Who can answer the sweeper's questions."""

    async def unfinished(self, asked: Unfinished) -> UnfinishedPage:
        """Name unfinished orders that have stood still."""
        ...

    async def standings(self, asked: StandingsOf) -> list[Standing]:
        """Tell how orders stand."""
        ...

    async def confirmed_orders(self, asked: Rows) -> KeyPage:
        """Name the confirmed orders."""
        ...

    async def strangers(self, asked: StandingsOf) -> StandingsOf:
        """Name the orders that may keep no money."""
        ...

    async def holds(self, service: HoldService, asked: Rows) -> HoldPage:
        """Name what is open, or keeps money."""
        ...

    async def holds_of(self, service: HoldService, asked: HoldsOf) -> HoldPage:
        """Look at holds once more."""
        ...

    async def unsold(self, asked: StandingsOf) -> KeyStates:
        """Name the reservations that are not sold."""
        ...

    async def runs(self, asked: WorkflowIds) -> list[RunState]:
        """Tell how workflows stand, each by its id."""
        ...

    async def running(self, asked: Running) -> RunningPage:
        """Name orders' runs that have lived for a while."""
        ...


async def look(eyes: Eyes, sweep: Sweep, at: datetime, flows: Sequence[str]) -> SweepReport:
    """Find what has no owner, and say what to do about it; `stopped` if that is too much.

    `flows` names the workflows that may own a hold: `<flow>/<tenant>/<order>`.
    """
    return await _Look(eyes, sweep, at, flows).report()


class _Look:
    def __init__(self, eyes: Eyes, sweep: Sweep, at: datetime, flows: Sequence[str]) -> None:
        self._eyes = eyes
        self._sweep = sweep
        self._at = at
        self._flows = flows
        self._still_since = at - timedelta(seconds=sweep.grace_seconds)
        self._findings: dict[str, Finding] = {}
        self._orders = 0
        self._holds = 0
        self._silent: list[str] = []
        self._newest: list[RunState] = []  # Of the unfinished orders.

    async def report(self) -> SweepReport:
        parts: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            (_ORDERS, self._lost_orders),
            *((f"holds of {each}", partial(self._open_holds, each)) for each in HOLD_SERVICES),
            ("stock of confirmed orders", self._unsold),
            ("runs without an order row", self._lost_rows),
        )
        for name, part in parts:
            await self._try(name, part)
            if self._silent[:1] and name == _ORDERS:  # By them alone a wrong namespace is known.
                return self._told(f"nothing can be judged without the {self._silent[0]}")
            if why := why_stop(self._told(), self._newest, self._sweep):
                return self._told(why)
        return self._told()

    async def _try(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        """Look at one part; one that stays silent keeps nobody from what the others told."""
        try:
            await part()
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            self._silent.append(f"{name}: {error.cause or error}")

    def _told(self, why: str = "") -> SweepReport:
        return SweepReport(
            at=self._at,
            dry_run=self._sweep.dry_run,
            orders_looked_at=self._orders,
            holds_looked_at=self._holds,
            findings=tuple(self._findings.values()),
            silent=tuple(self._silent),
            stopped=why,
        )

    def _note(self, finding: Finding | None) -> None:
        if finding is not None:  # A hold may look wrong in two ways; the first one counts.
            self._findings.setdefault(finding.key, finding)

    @property
    def _is_too_much(self) -> bool:
        return len(self._told().acts) > self._sweep.limit

    async def _lost_orders(self) -> None:
        """Find unfinished orders that stand still and that no run drives."""
        asked = Unfinished(tenant=self._sweep.tenant, before=self._still_since)
        while not self._is_too_much:
            page = await self._eyes.unfinished(asked)
            self._orders += len(page.standings)
            await self._judge_orders(page.standings)
            if page.next is None:
                return
            asked = asked.model_copy(update={"after": page.next})

    async def _judge_orders(self, standings: Sequence[Standing]) -> None:
        drivers = {s.xid: {s.order.driver, *self._ids_of(s.xid)} for s in standings if s.order}
        runs = await self._runs({each for ids in drivers.values() for each in ids})
        self._newest += [runs[s.order.driver] for s in standings if s.order]
        mine = {xid: {i: runs[i] for i in ids} for xid, ids in drivers.items()}

        def judged(standing: Standing) -> Finding | None:
            return judge_order(standing, mine[standing.xid], self._sweep, self._at)

        lost = [s.xid for s in standings if judged(s) is not None]
        for standing in await self._standings(lost):  # It may have ended while we looked.
            self._note(judged(standing) if standing.order else None)

    async def _open_holds(self, service: HoldService) -> None:
        """Find holds of closed orders and of none, and money that nobody may keep."""
        asked = Rows(tenant=self._sweep.tenant)
        while not self._is_too_much:
            page = await self._eyes.holds(service, asked)
            self._holds += page.looked_at
            kept = await self._kept_by_strangers(service, page.kept)
            await self._judge_holds(service, (*page.holds, *kept))
            if page.next is None:
                return
            asked = asked.model_copy(update={"after": page.next})

    async def _judge_holds(self, service: HoldService, holds: Sequence[Hold]) -> None:
        standings = {s.xid: s for s in await self._standings(sorted({hold.xid for hold in holds}))}
        orphans = sorted(xid for xid, standing in standings.items() if standing.order is None)
        runs = await self._runs({i for xid in orphans for i in self._ids_of(xid)})
        found = {
            hold.key: finding
            for hold in holds
            if (finding := self._judge_hold(hold, standings[hold.xid], runs))
        }
        for hold in await self._holds_of(service, sorted(found)):  # It may have ended meanwhile.
            self._note(self._judge_hold(hold, standings[hold.xid], runs))

    async def _kept_by_strangers(self, service: HoldService, kept: Sequence[str]) -> list[Hold]:
        """Look at the money that was taken, of those orders that may keep none."""
        if not kept:
            return []
        xids = tuple(sorted({order_of(key) for key in kept}))
        strangers = set((await self._eyes.strangers(StandingsOf(xids=xids))).xids)
        return await self._holds_of(service, [key for key in kept if order_of(key) in strangers])

    async def _holds_of(self, service: HoldService, keys: Sequence[str]) -> list[Hold]:
        return [
            hold
            for some in _some(keys)
            for hold in (await self._eyes.holds_of(service, HoldsOf(keys=tuple(some)))).holds
        ]

    def _judge_hold(
        self, hold: Hold, standing: Standing, runs: dict[str, RunState]
    ) -> Finding | None:
        owners = [runs[i] for i in self._ids_of(hold.xid) if i in runs]
        return judge_hold(hold, standing, owners, self._sweep, self._at)

    async def _unsold(self) -> None:
        """Find confirmed orders whose stock is not sold: paid, and not deducted."""
        asked = Rows(tenant=self._sweep.tenant)
        while not self._is_too_much:
            page = await self._eyes.confirmed_orders(asked)
            if page.keys:
                states = (await self._eyes.unsold(StandingsOf(xids=page.keys))).states
                # One that is still TRIED was, or will be, found as an open hold.
                lost = {key: state for key, state in states if state != "TRIED"}
                xids = sorted(key.removesuffix("/reserve") for key in lost)
                for standing in await self._standings(xids):
                    key = f"{standing.xid}/reserve"
                    self._note(judge_unsold(key, lost[key], standing))
            if page.next is None:
                return
            asked = asked.model_copy(update={"after": page.next})

    async def _lost_rows(self) -> None:
        """Find runs that have lived for a while and whose order is not written down."""
        asked = Running(tenant=self._sweep.tenant, before=self._still_since)
        while not self._is_too_much:
            page = await self._eyes.running(asked)
            xids = {i.partition("/")[2]: i for i in page.workflow_ids}
            rowless = [s for s in await self._standings(sorted(xids)) if s.order is None]
            runs = await self._runs({xids[s.xid] for s in rowless})
            for standing in rowless:
                self._note(judge_run(runs[xids[standing.xid]], standing))
            if page.next is None:
                return
            asked = asked.model_copy(update={"after": page.next})

    def _ids_of(self, xid: str) -> list[str]:
        return [f"{flow}/{xid}" for flow in self._flows]

    async def _runs(self, workflow_ids: Iterable[str]) -> dict[str, RunState]:
        found: dict[str, RunState] = {}
        for ids in _some(sorted(workflow_ids)):
            for run in await self._eyes.runs(WorkflowIds(workflow_ids=tuple(ids))):
                found[run.workflow_id] = run
        return found

    async def _standings(self, xids: Sequence[str]) -> list[Standing]:
        return [
            standing
            for some in _some(xids)
            for standing in await self._eyes.standings(StandingsOf(xids=tuple(some)))
        ]


def _some(things: Sequence[T]) -> Iterable[Sequence[T]]:
    return (things[start : start + _FEW] for start in range(0, len(things), _FEW))
