"""The sweeper: find what has no owner between Temporal and the databases, and see it owned again.

An unfinished order gets a new run under the same keys, which finds what was done, decides in the
order's row and then goes on or undoes. A hold of a closed order is confirmed or cancelled, as its
row says. Whatever is done is written down first, as a case, and closed with what came of it; what
cannot be repaired stays open for a person.
"""

from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import FailureError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.order import OrderActivities
    from activities.payment import PaymentActivities
    from activities.sweep import HoldSweepActivities, OrderSweepActivities, RunSweepActivities
    from everycent.domain.order import ParkStep, SettleCase
    from everycent.domain.outcome import Refusal
    from everycent.domain.payment import PaidAnyway, RefundPayment
    from everycent.domain.sweep import (
        ORPHAN,
        STUCK,
        Act,
        Finding,
        Hold,
        HoldService,
        RunState,
        Standing,
        SweepReport,
        judge_hold,
    )
    from everycent.domain.sweep_pass import Pass, Progress, too_much
    from everycent.domain.sweep_questions import (
        HOLD_SERVICES,
        EndRun,
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
    from everycent.domain.withdrawal import Withdrawn, WithdrawOrder
    from workers.queues import SWEEPER, TOGETHER, WORKFLOWS, finishes, sweeps
    from workflows.attributes import of_order
    from workflows.catalog import FLOW_NAMES
    from workflows.checkout import Checkout
    from workflows.place import TOGETHER_MEMO
    from workflows.sweep_ends import CALL, ENDS, LOOK
    from workflows.sweep_look import Look
    from workflows.telling import summary

A = TypeVar("A")
Q = TypeVar("Q")
SWEPT_BY = "everycent sweeper"
_WHY = "found by the sweeper: "


@workflow.defn(name="sweep_orders")
class SweepOrders:
    """One pass of the sweeper."""

    @workflow.init
    def __init__(self, sweep: Pass) -> None:
        self._sweep = sweep
        self._together = sweep.together
        self._progress = sweep.progress or Progress.begin(sweep, workflow.now())

    @workflow.run
    async def run(self, sweep: Pass) -> SweepReport:
        """Look, and repair unless it is too much or a dry run; answer what was found and done."""
        looking = Look(_WorkerEyes(), sweep, FLOW_NAMES)
        await self._to_the_end(looking)
        first = self._progress
        if not (sweep.dry_run or first.repairing or first.report.stopped):
            if first.tally.acts:
                self._progress = first.again()
                await self._to_the_end(looking)
            else:
                for finding in first.report.findings:
                    _tell(finding)
        return self._told(self._progress.report)

    async def _to_the_end(self, looking: Look) -> None:
        """Look at page after page and see to what a page has shown; in a new run if need be."""
        while self._progress.todo or not looking.is_over(self._progress):
            if self._progress.todo:
                self._progress = await self._after_the_first(self._progress)
            else:
                self._progress = await looking.at_next_page(self._progress)
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(
                    self._sweep.model_copy(update={"progress": self._progress})
                )

    async def _after_the_first(self, progress: Progress) -> Progress:
        """See to the first of what is to do, unless that is more than a pass may do."""
        finding, *rest = progress.todo
        tally = progress.tally.plus([finding])
        if why := too_much(tally, self._sweep):
            return progress.stopped(why)
        done = await self._see_to(finding)
        left = {"tally": tally, "todo": tuple(rest)}
        return progress.adding(done).model_copy(update=left)

    def _told(self, report: SweepReport) -> SweepReport:
        for part in report.silent:
            workflow.logger.error("the sweeper could not look at the %s", part)
            _count("everycent_sweeper_silent", "Parts that a pass could not look at.")
        if report.stopped:
            workflow.logger.error("the sweeper has stopped itself: %s", report.stopped)
            _count("everycent_sweeper_stopped", "Passes that stopped themselves.")
        return report

    async def _see_to(self, finding: Finding) -> Finding:
        """Do what helps, and write down what was found before and what came of it after."""
        _tell(finding)
        if finding.act is Act.NONE:
            return finding
        try:
            parked = await self._park(finding)
        except FailureError as error:
            return _after(finding, f"not repaired, no case could be opened: {_cause(error)}")
        if parked.settled_by_hand:
            return _after(finding, "left alone: a person has settled it")
        if finding.act is Act.CASE:
            return _after(finding, f"case {finding.case_key} is open")
        try:
            after = await self._repair(finding)
            await self._settle(finding, after)
        except (FailureError, _Unrepaired) as error:
            case = finding.case_key
            return _after(finding, f"not repaired, case {case} is open: {_cause(error)}")
        return _after(finding, after).model_copy(update={"repaired": True})

    async def _repair(self, finding: Finding) -> str:
        if finding.act is Act.TAKE_UP:
            ended = await self._end_run(finding.run) if finding.run else ""
            return ended + await self._take_up(finding.xid)
        assert finding.hold is not None, f"{finding.key} is no hold"
        now = await self._as_it_is_now(finding.hold)
        if now is None or now.act is not finding.act:
            return "nothing: it has moved meanwhile"
        # The repair of another hold may have withdrawn the id: then it is no order's any more.
        if now.kind == ORPHAN and not await self._withdraw(finding.xid):
            return "nothing: its order was opened meanwhile"
        return await self._end_hold(finding.hold, now)

    async def _withdraw(self, xid: str) -> bool:
        """Decide in the place of the order's row; False if the order has one by now.

        An order of which something was confirmed had been decided: its row is lost, its id is not
        free, and what it still holds is to be confirmed by the order that is placed again.
        """
        if confirmed := await self._confirmed(xid):
            raise _Unrepaired(
                f"the order's row is lost, and {confirmed} is CONFIRMED: place it again"
            )
        tenant, _, order_id = xid.partition("/")
        answer = await workflow.execute_activity_method(
            OrderActivities.withdraw_order,
            WithdrawOrder(
                tenant=tenant,
                order_id=order_id,
                at=workflow.now(),
                by=workflow.info().workflow_id,
            ),
            task_queue=self._queue("order"),
            summary=f"withdraw {xid}",
            **LOOK,
        )
        return isinstance(answer, Withdrawn)

    async def _confirmed(self, xid: str) -> str:
        """Ask every service, and return a key of the order that is confirmed, if there is one."""
        for service in HOLD_SERVICES:
            asked = StandingsOf(xids=(xid,))
            page = await _ask(HoldSweepActivities.confirmed_of, asked, sweeps(service))
            if page.keys:
                return page.keys[0]
        return ""

    async def _as_it_is_now(self, hold: Hold) -> Finding | None:
        """Look at a hold right before the act, and judge it by the same rules as the look did."""
        eyes = _WorkerEyes()
        holds = await eyes.holds_of(hold.service, HoldsOf(keys=(hold.key,)))
        [standing] = await eyes.standings(StandingsOf(xids=(hold.xid,)))
        # The runs come last: an order that was placed behind the other looks is seen by its run.
        owners = tuple(f"{flow}/{hold.xid}" for flow in FLOW_NAMES)
        runs = await eyes.runs(WorkflowIds(workflow_ids=owners))
        caseless = standing.model_copy(update={"cases": ()})  # Ours was opened a moment ago.
        judged = (
            judge_hold(now, caseless, runs, self._sweep, workflow.now()) for now in holds.holds
        )
        return next(judged, None)

    async def _end_run(self, run: RunState) -> str:
        """End a run that can never go on: its order's row and its keys say all that it did."""
        grace = timedelta(seconds=self._sweep.grace_seconds)
        asked = EndRun(
            workflow_id=run.workflow_id,
            run_id=run.run_id,
            failing_since=self._progress.at - grace,
            reason=f"{SWEPT_BY}: {STUCK}, and a new run goes on with the order",
        )
        return f"{await _ask(RunSweepActivities.end_run, asked, SWEEPER)}; "

    async def _take_up(self, xid: str) -> str:
        """Start a run of the order, as it was asked for, unless it has ended or runs by now."""
        asked = StandingsOf(xids=(xid,), with_request=True)
        [standing] = await _WorkerEyes().standings(asked)
        request = standing.order.request if standing.order else None
        if request is None:
            return "nothing: it has ended meanwhile"
        try:
            run = await workflow.start_child_workflow(
                Checkout.run,
                request,
                id=request.workflow_id(),
                task_queue=TOGETHER if self._together else WORKFLOWS,
                memo=TOGETHER_MEMO if self._together else None,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                parent_close_policy=ParentClosePolicy.ABANDON,
                search_attributes=of_order(request),
                static_summary=summary(request),
            )
        except WorkflowAlreadyStartedError:
            return "nothing: a run of it lives by now"
        return f"run {run.first_execution_run_id} was started"

    async def _end_hold(self, hold: Hold, finding: Finding) -> str:
        """Confirm or cancel a hold as its order's decision says; its row is the fence."""
        step = ENDS[(hold.kind, finding.act)]
        base = {"key": hold.key, "at": workflow.now(), "opened_on": hold.opened_on}
        answer = await step(base, _WHY + finding.kind, self._queue(hold.service))
        if isinstance(answer, PaidAnyway):
            return await self._refund_late(hold, answer.amount_minor)
        if isinstance(answer, Refusal):
            raise _Unrepaired(f"{type(answer).__name__}: {answer.model_dump_json()}")
        return f"{hold.kind} was {'confirmed' if finding.act is Act.CONFIRM else 'cancelled'}"

    async def _refund_late(self, hold: Hold, amount_minor: int) -> str:
        """Give back what came before the void did, under the key by which a run would do it."""
        request_id = hold.key.removeprefix(f"{hold.xid}/pay/")
        answer = await workflow.execute_activity_method(
            PaymentActivities.refund,
            RefundPayment(
                key=f"{hold.xid}/late-refund/{request_id}",
                payment_key=hold.key,
                amount_minor=amount_minor,
                currency=hold.currency,
                at=workflow.now(),
                opened_on=date.fromisoformat(hold.opened_on),
            ),
            task_queue=self._queue("payment"),
            summary=f"refund {hold.key}",
            **CALL,
        )
        if isinstance(answer, Refusal):
            raise _Unrepaired(f"{type(answer).__name__}: {answer.model_dump_json()}")
        return f"payment had been paid: {amount_minor} minor units were refunded"

    def _queue(self, service: str) -> str:
        return TOGETHER if self._together else finishes(service)

    async def _park(self, finding: Finding) -> Any:
        tenant, _, order_id = finding.xid.partition("/")
        can = ("retry", "resolve") if finding.act is Act.TAKE_UP else ("resolve",)
        return await workflow.execute_activity_method(
            OrderActivities.park_step,
            ParkStep(
                tenant=tenant,
                order_id=order_id,
                at=workflow.now(),
                case_key=finding.case_key,
                step=f"sweeper: {finding.kind}",
                error_class="Orphan",
                error=finding.before,
                owner=workflow.info().workflow_id,
                proposals=can,
            ),
            task_queue=self._queue("order"),
            summary=f"note: {finding.kind}",
            **LOOK,
        )

    async def _settle(self, finding: Finding, after: str) -> None:
        tenant, _, order_id = finding.xid.partition("/")
        await workflow.execute_activity_method(
            OrderActivities.settle_case,
            SettleCase(
                tenant=tenant,
                order_id=order_id,
                at=workflow.now(),
                case_key=finding.case_key,
                by=SWEPT_BY,
                reason=f"{after} by {workflow.info().workflow_id}; before: {finding.before}",
                by_hand=False,
            ),
            task_queue=self._queue("order"),
            summary=f"note: {after}",
            **LOOK,
        )


class _Unrepaired(Exception):
    """The service answered, and its answer is no repair."""


def _cause(error: Exception) -> object:
    return getattr(error, "cause", None) or error


def _after(finding: Finding, after: str) -> Finding:
    return finding.model_copy(update={"after": after})


def _tell(finding: Finding) -> None:
    _count(
        "everycent_sweeper_findings",
        "What the sweeper has found, and what it did about it.",
        kind=finding.kind,
        act=finding.act.value,
    )
    workflow.logger.warning("%s %s: %s", finding.act, finding.key, finding.before)


def _count(name: str, what: str, **labels: str) -> None:
    workflow.metric_meter().create_counter(name, what).add(1, labels)


class _WorkerEyes:
    """Asks by activities: each service in its lane for the sweeper, Temporal in the sweeper's."""

    async def unfinished(self, asked: Unfinished) -> UnfinishedPage:
        return await _ask(OrderSweepActivities.unfinished, asked, sweeps("order"))

    async def standings(self, asked: StandingsOf) -> list[Standing]:
        return await _ask(OrderSweepActivities.standings, asked, sweeps("order"))

    async def confirmed_orders(self, asked: Rows) -> KeyPage:
        return await _ask(OrderSweepActivities.confirmed_orders, asked, sweeps("order"))

    async def strangers(self, asked: StandingsOf) -> StandingsOf:
        return await _ask(OrderSweepActivities.strangers, asked, sweeps("order"))

    async def holds(self, service: HoldService, asked: Rows) -> HoldPage:
        return await _ask(HoldSweepActivities.holds, asked, sweeps(service))

    async def holds_of(self, service: HoldService, asked: HoldsOf) -> HoldPage:
        return await _ask(HoldSweepActivities.holds_of, asked, sweeps(service))

    async def unsold(self, asked: StandingsOf) -> KeyStates:
        return await _ask(HoldSweepActivities.unsold, asked, sweeps("inventory"))

    async def runs(self, asked: WorkflowIds) -> list[RunState]:
        return await _ask(RunSweepActivities.runs, asked, SWEEPER)

    async def running(self, asked: Running) -> RunningPage:
        return await _ask(RunSweepActivities.running, asked, SWEEPER)


async def _ask(method: Callable[[Any, Q], Awaitable[A]], asked: Q, queue: str) -> A:
    return await workflow.execute_activity_method(method, asked, task_queue=queue, **LOOK)
