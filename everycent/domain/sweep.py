"""The sweeper's decisions: what is left alone between Temporal and the databases, and what helps.

Pure: facts in, findings out. A finding is judged by the order's own row: an unfinished order gets a
new run, which decides in the row before it undoes; the hold of a closed order is confirmed or
cancelled as its decision says; what neither helps becomes a case.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from everycent.domain.message import Message, Told, order_of
from everycent.domain.order import Decision, OrderStatus, PlaceOrder, WaitsFor

ORPHAN = "hold without an order"  # Its id is withdrawn before it is given back.
MOST_DONE, MOST_TOLD = 300, 200  # Findings in a report: with and without an act about them.
HoldService = Literal["inventory", "payment", "account", "points"]


class Sweep(Message):
    """What one pass is to do. `limit` is how many repairs it may make before it stops (I22)."""

    tenant: str | None = None
    dry_run: bool = False
    together: bool = False  # Repairs go to the workers that host everything.
    grace_seconds: int = Field(default=120, ge=0)  # An order that moved since then is left alone.
    hold_grace_seconds: int = Field(default=3600, ge=0)  # The same for a hold without an order.
    stuck_seconds: int = Field(default=900, ge=0)  # So long after its time a live order is told.
    limit: int = Field(default=50, ge=0)
    unknown_limit: int = Field(default=10, ge=1)  # So many orders of which Temporal knows none.
    max_failures: int = Field(default=5, ge=1)  # So many repairs of one thing, then a person's.


class OrderFacts(Message):
    """What the order's row says of an order."""

    decision: Decision
    status: OrderStatus
    attempt: str | None
    waits_for: WaitsFor
    driver: str
    moved_at: AwareDatetime
    window_ends_at: AwareDatetime
    request: PlaceOrder | None = None  # Of an unfinished order, if it was asked for.


class SweeperCase(Message):
    """What earlier passes have written down about the order."""

    case_key: str
    attempts: int
    is_open: bool
    by_hand: bool


class Standing(Message):
    """An order, if there is one, and the cases about it that the sweeper has opened."""

    xid: str
    order: OrderFacts | None = None
    cases: tuple[SweeperCase, ...] = ()

    def case(self, key: str) -> SweeperCase | None:
        """Return the sweeper's case of that key."""
        return next((case for case in self.cases if case.case_key == key), None)


class Hold(Message):
    """A row of a service that waits for its order's end, or has taken money."""

    service: HoldService
    kind: str  # reservation, payment, balance_hold, points_hold
    key: str
    state: str
    opened_on: str  # An ISO date: which every request about the key carries.
    tried_at: AwareDatetime | None = None
    kept_minor: int = 0  # Captured and not refunded.

    @property
    def xid(self) -> str:
        """The order that the key names."""
        return order_of(self.key)


class RunState(Message):
    """What Temporal says of a workflow id; `status` is `unknown` if it does not know it."""

    workflow_id: str
    status: str = "unknown"
    ended_how: Told = ""

    @property
    def lives(self) -> bool:
        """Whether it runs now; one that is paused goes on when somebody says so."""
        return self.status in ("running", "paused")


class Act(StrEnum):
    """What a pass does about a finding."""

    TAKE_UP = "take up"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    CASE = "case"
    NONE = "none"  # It is told: its owner lives, or a person has it.


class Finding(Message):
    """Something without an owner: what it is, as it was found, what is done, what came of it."""

    kind: str
    xid: str
    key: str  # The hold's key, or the order's.
    before: Told
    act: Act
    after: Told = ""
    repaired: bool = False
    hold: Hold | None = None

    @property
    def case_key(self) -> str:
        """The case that keeps the record of it."""
        return f"{self.key}/sweeper"


class SweepReport(Message):
    """What one pass saw and did; `stopped` says why it did nothing, if it stopped itself.

    `silent` names what could not be looked at to its end, and why: the next pass asks again.
    """

    at: AwareDatetime
    dry_run: bool
    orders_looked_at: int = 0
    holds_looked_at: int = 0
    findings: tuple[Finding, ...] = ()
    unlisted: int = 0  # Findings that the report leaves out.
    silent: tuple[Told, ...] = ()
    stopped: Told = ""

    @property
    def acts(self) -> tuple[Finding, ...]:
        """The findings that the pass does something about, or would."""
        return tuple(finding for finding in self.findings if finding.act is not Act.NONE)

    @property
    def left(self) -> tuple[Finding, ...]:
        """The findings that a person has to look at; of a dry run, those that no pass repairs."""
        no_repair = (Act.NONE, Act.CASE)
        return tuple(
            finding
            for finding in self.findings
            if (finding.act in no_repair if self.dry_run else not finding.repaired)
        )


def judge_order(
    standing: Standing, runs: Mapping[str, RunState], sweep: Sweep, at: datetime
) -> Finding | None:
    """Judge an unfinished order by the runs that could drive it; None if all is well."""
    order = standing.order
    assert order is not None, f"{standing.xid} is judged without its row"
    if order.decision in (Decision.COMMITTED, Decision.ABORTED) or _is_fresh(order, sweep, at):
        return None
    live = next((run for run in runs.values() if run.lives), None)
    if live is not None:
        kind = _is_stuck(order, sweep, at)
        return _order_finding(standing, kind, live, Act.NONE) if kind else None
    run = runs.get(order.driver) or RunState(workflow_id=order.driver)
    case = standing.case(f"{standing.xid}/sweeper")
    act = _once_more(Act.TAKE_UP, case, sweep.max_failures)
    return _order_finding(standing, "order without a live run", run, act)


def judge_hold(
    hold: Hold, standing: Standing, runs: Iterable[RunState], sweep: Sweep, at: datetime
) -> Finding | None:
    """Judge a hold, or money that was taken, by the order that it belongs to."""
    order = standing.order
    if order is None:
        return _judge_orphan(hold, standing, runs, sweep, at)
    if order.decision not in (Decision.COMMITTED, Decision.ABORTED):
        return None  # Its order's driver takes care of it, and the sweeper of the driver.
    if _is_fresh(order, sweep, at):
        return None
    if hold.state != "TRIED":
        return _judge_taken(hold, standing, order)
    act = _end_of(hold, order)
    told = f"{hold.kind} TRIED, order {order.status}"
    tries = sweep.max_failures
    return _hold_finding(hold, standing, "open hold of a closed order", told, act, tries)


def judge_run(run: RunState, standing: Standing) -> Finding | None:
    """Judge a run that has lived for a while by whether its order is written down."""
    if standing.order is not None or not run.lives:
        return None
    xid, before = standing.xid, f"{run.workflow_id} runs, no order row"
    return Finding(kind="run without an order row", xid=xid, key=xid, before=before, act=Act.NONE)


def judge_unsold(key: str, state: str, standing: Standing) -> Finding:
    """Judge the reservation of a confirmed order that is not sold, and cannot be sold any more."""
    hold = Hold(service="inventory", kind="reservation", key=key, state=state, opened_on="")
    told = f"reservation {state}, order {standing.order.status if standing.order else 'gone'}"
    return _hold_finding(hold, standing, "paid, not deducted", told, Act.CASE)


def why_stop(report: SweepReport, runs: Sequence[RunState], sweep: Sweep) -> str:
    """Return why a pass must repair nothing, or an empty text.

    Many repairs at once are no repair: this namespace, or this Temporal's store, is not the one
    that the orders were placed in. `runs` are the newest runs of the unfinished orders.
    """
    if len(report.acts) > sweep.limit:
        return f"there is more to repair than the limit of {sweep.limit}: {_WRONG}"
    unknown = [run for run in runs if run.status == "unknown"]
    if len(unknown) >= sweep.unknown_limit and len(unknown) == len(runs):
        return f"Temporal knows none of {len(unknown)} unfinished orders: {_WRONG}"
    return ""


def shortened(report: SweepReport) -> SweepReport:
    """Return a report that Temporal can carry: what is repaired is left out first, and counted."""
    done = sorted(report.acts, key=lambda finding: finding.repaired)[:MOST_DONE]
    told = [finding for finding in report.findings if finding.act is Act.NONE][:MOST_TOLD]
    kept = {finding.key for finding in (*done, *told)}
    findings = tuple(finding for finding in report.findings if finding.key in kept)
    left_out = len(report.findings) - len(findings)
    return report.model_copy(update={"findings": findings, "unlisted": report.unlisted + left_out})


_WRONG = "is this the shop's namespace, and has its store not been set back?"


def _is_fresh(order: OrderFacts, sweep: Sweep, at: datetime) -> bool:
    return order.moved_at + timedelta(seconds=sweep.grace_seconds) > at


def _is_stuck(order: OrderFacts, sweep: Sweep, at: datetime) -> str:
    """Say how an order with a live run is stuck, if it is; a parked one has its case already."""
    if order.waits_for is WaitsFor.REPAIR:
        return ""
    if order.decision is Decision.OPEN:
        kind, since = "open order past its window", order.window_ends_at
    else:
        kind, since = "decided order that does not move", order.moved_at
    return kind if since + timedelta(seconds=sweep.stuck_seconds) < at else ""


def _once_more(act: Act, case: SweeperCase | None, tries: int) -> Act:
    """Return `act` while a repair may be tried once more, then leave it to a person.

    A case that is open is no reason to wait: the pass that failed has left it, until one succeeds.
    """
    if case is None or (act is not Act.CASE and case.attempts < tries and not case.by_hand):
        return act
    return Act.NONE if case.is_open or case.by_hand else Act.CASE


def _order_finding(standing: Standing, kind: str, run: RunState, act: Act) -> Finding:
    order = standing.order
    assert order is not None
    how = f"{run.status}{f', {run.ended_how}' if run.ended_how else ''}"
    before = f"{order.decision}, last moved {order.moved_at:%Y-%m-%d %H:%M:%S}; its run is {how}"
    return Finding(kind=kind, xid=standing.xid, key=standing.xid, before=before, act=act)


def _judge_orphan(
    hold: Hold, standing: Standing, runs: Iterable[RunState], sweep: Sweep, at: datetime
) -> Finding | None:
    tried_at = hold.tried_at
    if tried_at is not None and tried_at + timedelta(seconds=sweep.hold_grace_seconds) > at:
        return None
    live = next((run for run in runs if run.lives), None)
    if live is not None:  # It opens its order first: the row has been lost, and a run goes on.
        told = f"{hold.kind} {hold.state}, no order row, and {live.workflow_id} runs"
        return _hold_finding(hold, standing, "run without an order row", told, Act.CASE)
    if hold.state == "TRIED":
        told = f"{hold.kind} TRIED, no order row, no run"
        tries = sweep.max_failures
        return _hold_finding(hold, standing, ORPHAN, told, Act.CANCEL, tries)
    told = f"{hold.kind} {hold.state}, {hold.kept_minor} minor units kept, no order row"
    return _hold_finding(hold, standing, "capture without an order", told, Act.CASE)


def _judge_taken(hold: Hold, standing: Standing, order: OrderFacts) -> Finding | None:
    """Judge money that was taken and not given back: only a confirmed order may keep it."""
    if order.decision is Decision.COMMITTED or not hold.kept_minor:
        return None
    told = f"{hold.kind} {hold.state}, {hold.kept_minor} minor units kept, order {order.status}"
    return _hold_finding(hold, standing, "capture kept by an aborted order", told, Act.CASE)


def _end_of(hold: Hold, order: OrderFacts) -> Act:
    """Return how the order's decision ends a hold; after a refund a person has to look."""
    if order.decision is Decision.ABORTED:
        return Act.CANCEL
    if order.status is not OrderStatus.CONFIRMED:
        return Act.CASE
    if hold.kind in ("payment", "balance_hold"):
        chosen = hold.key == f"{hold.xid}/pay/{order.attempt}"
        return Act.CONFIRM if chosen else Act.CANCEL
    return Act.CONFIRM


def _hold_finding(
    hold: Hold, standing: Standing, kind: str, before: str, act: Act, tries: int = 1
) -> Finding:
    finding = Finding(kind=kind, xid=hold.xid, key=hold.key, before=before, act=act, hold=hold)
    act = _once_more(act, standing.case(finding.case_key), tries)
    return finding.model_copy(update={"act": act})
