"""The sweeper's look: a two-way scan between Temporal and the databases, which changes nothing.

It asks through `Eyes`, so that the same look serves the workflow (by activities) and the dry run
beside any shop (by read-only roles). What looks lost is looked at again before it counts.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
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
    is_closed,
    judge_hold,
    judge_order,
    judge_run,
    judge_unsold,
)
from everycent.domain.sweep_pass import Progress, too_much, why_stop
from everycent.domain.sweep_questions import (
    CURSOR,
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
    looking, progress = Look(eyes, sweep, flows), Progress.begin(sweep, at)
    while not looking.is_over(progress):
        progress = await looking.at_next_page(progress)
    return progress.report


@dataclass
class _Page:
    """What one page has shown, and where the next one begins."""

    findings: list[Finding] = field(default_factory=list)
    next: str | None = None
    orders: int = 0
    holds: int = 0
    newest: list[RunState] = field(default_factory=list)  # The runs of unfinished orders.


class Look:
    """Looks at one page after the other; what it carries from page to page is the progress."""

    def __init__(self, eyes: Eyes, sweep: Sweep, flows: Sequence[str]) -> None:
        self._eyes = eyes
        self._sweep = sweep
        self._flows = flows
        self._parts: tuple[tuple[str, Callable[[datetime, str], Awaitable[_Page]]], ...] = (
            (_ORDERS, self._lost_orders),
            *((f"holds of {each}", partial(self._open_holds, each)) for each in HOLD_SERVICES),
            ("stock of confirmed orders", self._unsold),
            ("runs without an order row", self._lost_rows),
        )

    def is_over(self, progress: Progress) -> bool:
        """Tell whether everything was looked at, or nothing more may be."""
        return progress.part >= len(self._parts) or bool(progress.report.stopped)

    async def at_next_page(self, progress: Progress) -> Progress:
        """Look at the next page; one part that stays silent keeps nobody from the others."""
        name, part = self._parts[progress.part]
        try:
            page = await part(progress.at, progress.after)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            return self._without(progress, f"{name}: {error.cause or error}")
        report = progress.report
        further = progress.told(
            orders_looked_at=report.orders_looked_at + page.orders,
            holds_looked_at=report.holds_looked_at + page.holds,
        )
        if page.next is None:
            further = further.model_copy(update={"part": progress.part + 1, "after": ""})
        else:
            further = further.model_copy(update={"after": page.next})
        if progress.repairing:  # Each counts when it is seen to.
            return further.model_copy(update={"todo": tuple(page.findings)})
        return self._counted(further, page)

    def _counted(self, progress: Progress, page: _Page) -> Progress:
        tally = progress.tally.plus(page.findings, page.newest)
        further = progress.adding(*page.findings).model_copy(update={"tally": tally})
        # A wrong namespace is known by all unfinished orders, not by a page of them.
        whole = progress.part > 0
        why = why_stop(tally, self._sweep) if whole else too_much(tally, self._sweep)
        return further.stopped(why) if why else further

    def _without(self, progress: Progress, silent: str) -> Progress:
        told = progress.told(silent=(*progress.report.silent, silent))
        if progress.part == 0:  # By the unfinished orders alone a wrong namespace is known.
            return told.stopped(f"nothing can be judged without the {silent}")
        return told.model_copy(update={"part": progress.part + 1, "after": ""})

    async def _lost_orders(self, at: datetime, after: str) -> _Page:
        """Find unfinished orders that stand still and that no run drives."""
        asked = Unfinished(
            tenant=self._sweep.tenant,
            before=self._still_since(at),
            after=CURSOR.validate_json(after) if after else None,
            limit=min(_FEW, self._sweep.page_rows),
        )
        page = await self._eyes.unfinished(asked)
        shown = await self._judge_orders(page.standings, at)
        shown.orders = len(page.standings)
        shown.next = None if page.next is None else CURSOR.dump_json(page.next).decode()
        return shown

    async def _judge_orders(self, standings: Sequence[Standing], at: datetime) -> _Page:
        drivers = {s.xid: {s.order.driver, *self._ids_of(s.xid)} for s in standings if s.order}
        runs = await self._runs({each for ids in drivers.values() for each in ids})
        mine = {xid: {i: runs[i] for i in ids} for xid, ids in drivers.items()}

        def judged(standing: Standing) -> Finding | None:
            return judge_order(standing, mine[standing.xid], self._sweep, at)

        lost = [s.xid for s in standings if judged(s) is not None]
        again = await self._standings(lost)  # It may have ended while we looked.
        return _Page(
            findings=[found for s in again if s.order and (found := judged(s))],
            newest=[runs[s.order.driver] for s in standings if s.order and s.order.begun],
        )

    async def _open_holds(self, service: HoldService, at: datetime, after: str) -> _Page:
        """Find holds of closed orders and of none, and money that nobody may keep."""
        page = await self._eyes.holds(service, self._rows(after))
        kept = await self._kept_by_strangers(service, page.kept)
        findings = await self._judge_holds(service, (*page.holds, *kept), at)
        return _Page(findings, page.next, holds=page.looked_at)

    async def _judge_holds(
        self, service: HoldService, holds: Sequence[Hold], at: datetime
    ) -> list[Finding]:
        standings = {s.xid: s for s in await self._standings(sorted({hold.xid for hold in holds}))}
        orphans = sorted(xid for xid, standing in standings.items() if standing.order is None)
        runs = await self._runs({i for xid in orphans for i in self._ids_of(xid)})

        def judged(hold: Hold) -> Finding | None:
            owners = [runs[i] for i in self._ids_of(hold.xid) if i in runs]
            return judge_hold(hold, standings[hold.xid], owners, self._sweep, at)

        found = sorted(hold.key for hold in holds if judged(hold))
        again = await self._holds_of(service, found)  # It may have ended meanwhile.
        return [finding for hold in again if (finding := judged(hold))]

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

    async def _unsold(self, _at: datetime, after: str) -> _Page:
        """Find confirmed orders whose stock is not sold: paid, and not deducted."""
        page = await self._eyes.confirmed_orders(self._rows(after))
        if not page.keys:
            return _Page(next=page.next)
        states = (await self._eyes.unsold(StandingsOf(xids=page.keys))).states
        # One that is still TRIED was, or will be, found as an open hold.
        lost = {key: state for key, state in states if state != "TRIED"}
        standings = await self._standings(sorted(key.removesuffix("/reserve") for key in lost))
        keyed = ((f"{standing.xid}/reserve", standing) for standing in standings)
        return _Page([judge_unsold(key, lost[key], each) for key, each in keyed], page.next)

    async def _lost_rows(self, at: datetime, after: str) -> _Page:
        """Find runs that have lived for a while without an order that is written down and open."""
        page = await self._eyes.running(
            Running(
                tenant=self._sweep.tenant,
                before=self._still_since(at),
                after=after,
                limit=self._sweep.page_rows,
            )
        )
        xids = {i.partition("/")[2]: i for i in page.workflow_ids}
        known = await self._standings(sorted(xids))
        without = [s for s in known if s.order is None or is_closed(s.order)]
        runs = await self._runs({xids[s.xid] for s in without})
        judged = (judge_run(runs[xids[s.xid]], s, self._sweep, at) for s in without)
        return _Page([finding for finding in judged if finding], page.next)

    def _rows(self, after: str) -> Rows:
        return Rows(tenant=self._sweep.tenant, after=after, limit=self._sweep.page_rows)

    def _still_since(self, at: datetime) -> datetime:
        return at - timedelta(seconds=self._sweep.grace_seconds)

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
