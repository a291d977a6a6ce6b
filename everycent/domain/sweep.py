"""The sweeper's decisions: what is left alone between Temporal and the databases, and what helps.

Pure: facts in, findings out. A finding is judged by the order's own row: an unfinished order gets a
new run, which decides in the row before it undoes; the hold of a closed order is confirmed or
cancelled as its decision says; what neither helps becomes a case.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from everycent.domain.message import Message, Told, order_of
from everycent.domain.order import Decision, OrderStatus, PlaceOrder, WaitsFor

ROWLESS = "run without an order row"
STUCK = "run whose tasks fail"
ACCEPTED = "accepted"  # The run of an order without one yet; its first run shares the row.
NEVER_BEGUN = "accepted order that no run has begun"
ORPHAN = "hold without an order"  # Its id is withdrawn before it is given back.
PAGE = 1000  # Rows looked at per question: half a megabyte at most, Temporal carries two.
HoldService = Literal["inventory", "payment", "account", "points"]


class Sweep(Message):
    """What one pass is to do.

    `limit` is how many repairs it may make, and `money_limit_minor` how much its undos may give
    back in each currency, before it stops and leaves the rest to be approved (I22).
    """

    tenant: str | None = None
    dry_run: bool = False
    together: bool = False  # Repairs go to the workers that host everything.
    grace_seconds: int = Field(default=120, ge=0)  # An order that moved since then is left alone.
    hold_grace_seconds: int = Field(default=3600, ge=0)  # The same for a hold without an order.
    stuck_seconds: int = Field(default=900, ge=0)  # So long after its time a live order is told.
    limit: int = Field(default=50, ge=0)
    money_limit_minor: int = Field(default=1_000_000, ge=0)
    unknown_limit: int = Field(default=10, ge=1)  # So many orders of which Temporal knows none.
    max_failures: int = Field(default=5, ge=1)  # So many repairs of one thing, then a person's.
    page_rows: int = Field(default=PAGE, ge=1, le=PAGE)


class OrderFacts(Message):
    """What the order's row says of an order."""

    decision: Decision
    status: OrderStatus
    attempt: str | None
    waits_for: WaitsFor
    driver: str
    moved_at: AwareDatetime
    window_ends_at: AwareDatetime
    total_minor: int | None = None  # Of an id that was withdrawn nothing is known.
    currency: str | None = None
    withdrawn: bool = False  # It is no order but the tombstone of an id.
    begun: bool = True  # A run has opened it; else it was accepted, and Temporal may not know it.
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
    amount_minor: int = 0  # What a Cancel gives back; points are a currency of their own.
    currency: str = ""

    @property
    def xid(self) -> str:
        """The order that the key names."""
        return order_of(self.key)


class TaskFailure(Message):
    """Why a run's workflow task fails, and is tried again and again."""

    since: AwareDatetime
    why: Told
    nondeterministic: bool = False  # Its history is not what the code makes: no try will succeed.


class RunState(Message):
    """What Temporal says of a workflow id; `status` is `unknown` if it does not know it."""

    workflow_id: str
    status: str = "unknown"
    ended_how: Told = ""
    started_at: AwareDatetime | None = None
    run_id: str = ""
    task_failure: TaskFailure | None = None  # None while its task succeeds.

    @property
    def lives(self) -> bool:
        """Whether it runs now; one that is paused goes on when somebody says so."""
        return self.status in ("running", "paused")

    def fails_since(self, before: datetime) -> bool:
        """Tell whether its task has failed since then or longer; a paused run is a person's."""
        failure = self.task_failure
        return self.status == "running" and failure is not None and failure.since <= before

    @property
    def can_never_go_on(self) -> bool:
        """Whether it fails for what it has written down, which no deploy and no wait repairs."""
        return self.task_failure is not None and self.task_failure.nondeterministic


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
    run: RunState | None = None  # Which is ended first, for its task fails for ever.
    back_minor: int = 0  # What the act gives back to the customer, or may.
    currency: str = ""

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
    if is_closed(order) or _is_fresh(order, sweep, at):
        return None
    live = sorted((run for run in runs.values() if run.lives), key=lambda r: _fails(r, sweep, at))
    if live and not _fails(live[0], sweep, at):
        kind = _is_stuck(order, sweep, at)
        return _order_finding(standing, kind, live[0], Act.NONE) if kind else None
    if live:
        finding = _judge_stuck(live[0], standing, sweep)
    else:
        run = runs.get(order.driver) or RunState(workflow_id=order.driver)
        act = _once_more(Act.TAKE_UP, standing.case(f"{standing.xid}/sweeper"), sweep.max_failures)
        kind = "order without a live run" if order.begun else NEVER_BEGUN
        finding = _order_finding(standing, kind, run, act)
    return _giving_back(finding, order.total_minor, order.currency) if _ends(order, at) else finding


def judge_hold(
    hold: Hold, standing: Standing, runs: Iterable[RunState], sweep: Sweep, at: datetime
) -> Finding | None:
    """Judge a hold, or money that was taken, by the order that it belongs to."""
    order = standing.order
    if order is None:
        return _judge_orphan(hold, standing, runs, sweep, at)
    if not is_closed(order):
        return None  # Its order's driver takes care of it, and the sweeper of the driver.
    if _is_fresh(order, sweep, at):
        return None
    if hold.state != "TRIED":
        return _judge_taken(hold, standing, order)
    act = _end_of(hold, order)
    told = f"{hold.kind} TRIED, order {order.status}"
    tries = sweep.max_failures
    return _hold_finding(hold, standing, "open hold of a closed order", told, act, tries)


def judge_run(run: RunState, standing: Standing, sweep: Sweep, at: datetime) -> Finding | None:
    """Judge a run that has lived for a while by whether its order is written down, or is closed.

    It may still be opening it; after `stuck_seconds` the row must have been lost, which no act of
    ours repairs: the run would go on by what it remembers.
    """
    if not run.lives:
        return None
    if standing.order is not None:
        left_over = is_closed(standing.order) and _fails(run, sweep, at)
        return _judge_stuck(run, standing, sweep) if left_over else None
    xid, before = standing.xid, f"{run.workflow_id} runs, no order row"
    began = run.started_at or at
    finding = Finding(kind=ROWLESS, xid=xid, key=xid, before=before, act=Act.NONE)
    if began + timedelta(seconds=sweep.stuck_seconds) > at:
        return finding
    act = _once_more(Act.CASE, standing.case(finding.case_key), 1)
    return finding.model_copy(update={"act": act})


def judge_unsold(key: str, state: str, standing: Standing) -> Finding:
    """Judge the reservation of a confirmed order that is not sold, and cannot be sold any more."""
    hold = Hold(service="inventory", kind="reservation", key=key, state=state, opened_on="")
    told = f"reservation {state}, order {standing.order.status if standing.order else 'gone'}"
    return _hold_finding(hold, standing, "paid, not deducted", told, Act.CASE)


def is_closed(order: OrderFacts) -> bool:
    """Tell whether nothing is left to do about it."""
    return order.decision in (Decision.COMMITTED, Decision.ABORTED)


def _fails(run: RunState, sweep: Sweep, at: datetime) -> bool:
    return run.fails_since(at - timedelta(seconds=sweep.grace_seconds))


def _judge_stuck(run: RunState, standing: Standing, sweep: Sweep) -> Finding:
    """Judge a run whose task fails: a new one helps only if its history is what is wrong.

    Any other failure is the worker's, and the run goes on when the worker is mended.
    """
    act = Act.NONE
    if run.can_never_go_on:
        act = _once_more(Act.TAKE_UP, standing.case(f"{standing.xid}/sweeper"), sweep.max_failures)
    finding = _order_finding(standing, STUCK, run, act)
    return finding.model_copy(update={"run": run}) if act is Act.TAKE_UP else finding


def _ends(order: OrderFacts, at: datetime) -> bool:
    """Tell whether a run that takes the order up now undoes it."""
    if order.decision is Decision.OPEN:
        return order.window_ends_at <= at
    return order.decision is Decision.ABORTING


def _giving_back(finding: Finding, minor: int | None, currency: str | None) -> Finding:
    """Note what the act may give back to the customer, unless it is none that undoes."""
    if finding.act not in (Act.TAKE_UP, Act.CANCEL) or not minor or not currency:
        return finding
    return finding.model_copy(update={"back_minor": minor, "currency": currency})


def _is_fresh(order: OrderFacts, sweep: Sweep, at: datetime) -> bool:
    """Tell whether its run may still be at work; no run is at work on a withdrawn id."""
    moved_since = order.moved_at + timedelta(seconds=sweep.grace_seconds) > at
    return moved_since and not order.withdrawn


def _is_stuck(order: OrderFacts, sweep: Sweep, at: datetime) -> str:
    """Say how an order with a live run is stuck, if it is; a parked one has its case already."""
    if order.waits_for is WaitsFor.REPAIR:
        return ""
    late = timedelta(seconds=sweep.stuck_seconds)
    if order.decision is Decision.OPEN and order.window_ends_at + late < at:
        return "open order past its window"
    if order.waits_for is WaitsFor.PAYMENT or order.moved_at + late >= at:
        return ""  # It moves, or its customer has time left.
    decided = order.decision is not Decision.OPEN
    return f"{'decided' if decided else 'open'} order that does not move"


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
    failure = run.task_failure
    told = run.ended_how
    if failure is not None and kind == STUCK:
        told = f"its task fails since {failure.since:%Y-%m-%d %H:%M:%S}: {failure.why}"
    how = f"{run.status}{f', {told}' if told else ''}"
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
        return _hold_finding(hold, standing, ROWLESS, told, Act.CASE)
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
    finding = finding.model_copy(update={"act": act})
    return _giving_back(finding, hold.amount_minor, hold.currency)
