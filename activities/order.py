"""The order service's activities; what they guarantee is said in `everycent.database.order`."""

from collections.abc import Sequence
from functools import partial

from temporalio import activity

from activities.boundary import errors_for_temporal
from activities.coalescer import Coalescer
from everycent.database import (
    decision,
    order,
    reconciliation,
    repair_case,
    routing,
    withdrawal,
)
from everycent.database.engine import Database
from everycent.domain.decision import (
    BeginDecision,
    CloseDecision,
    DecisionRequest,
    DecisionStands,
    MoveDecision,
)
from everycent.domain.order import (
    AddAttempt,
    AttemptAnswer,
    CaseSettled,
    CloseOrder,
    Decide,
    Marked,
    MarkOrder,
    OpenAnswer,
    OpenOrder,
    OrderResult,
    Parked,
    ParkStep,
    SettleCase,
    Verdict,
)
from everycent.domain.reconciliation import NoteBreaks, Noted
from everycent.domain.routing import RollBackRoute, RouteAnswer, SetRoute
from everycent.domain.withdrawal import WithdrawAnswer, WithdrawOrder


class OrderActivities:
    """The order's row: opened, decided, closed; its payment attempts and repair cases.

    `tell` names the other systems that hear of a case that opens, and how a mixed order ended.
    """

    def __init__(self, database: Database, *, tell: Sequence[str] = ()) -> None:
        self._open: Coalescer[OpenOrder, OpenAnswer] = Coalescer(database, order.open_order)
        self._decide = Coalescer(database, order.decide)
        self._close = Coalescer(database, partial(order.close_order, tell=tell))
        self._mark = Coalescer(database, order.mark_order)
        self._add_attempt: Coalescer[AddAttempt, AttemptAnswer] = Coalescer(
            database, order.add_attempt
        )
        self._park = Coalescer(database, partial(repair_case.park_step, tell=tell))
        self._settle = Coalescer(database, repair_case.settle_case)
        self._withdraw: Coalescer[WithdrawOrder, WithdrawAnswer] = Coalescer(
            database, withdrawal.withdraw_order
        )
        self._route: Coalescer[SetRoute | RollBackRoute, RouteAnswer] = Coalescer(
            database, routing.change_routes
        )
        self._note_breaks: Coalescer[NoteBreaks, Noted] = Coalescer(
            database, partial(reconciliation.note_breaks, tell=tell)
        )
        self._decision: Coalescer[DecisionRequest, DecisionStands] = Coalescer(
            database, decision.settle_decisions
        )

    @activity.defn(name="order.open_order")
    async def open_order(self, request: OpenOrder) -> OpenAnswer:
        """Write the order down, or answer how far it has come."""
        with errors_for_temporal():
            return await self._open.join(request)

    @activity.defn(name="order.decide")
    async def decide(self, request: Decide) -> Verdict:
        """Move the one decision, or answer the one that stands."""
        with errors_for_temporal():
            return await self._decide.join(request)

    @activity.defn(name="order.close_order")
    async def close_order(self, request: CloseOrder) -> OrderResult:
        """Store how the order ended, or answer how it had ended before."""
        with errors_for_temporal():
            return await self._close.join(request)

    @activity.defn(name="order.mark_order")
    async def mark_order(self, request: MarkOrder) -> Marked:
        """Say what the unfinished order waits for."""
        with errors_for_temporal():
            return await self._mark.join(request)

    @activity.defn(name="order.add_attempt")
    async def add_attempt(self, request: AddAttempt) -> AttemptAnswer:
        """Write a payment attempt down before it is made."""
        with errors_for_temporal():
            return await self._add_attempt.join(request)

    @activity.defn(name="order.park_step")
    async def park_step(self, request: ParkStep) -> Parked:
        """Open the repair case of a step, or count one more failure."""
        with errors_for_temporal():
            return await self._park.join(request)

    @activity.defn(name="order.settle_case")
    async def settle_case(self, request: SettleCase) -> CaseSettled:
        """Close a repair case with who and why."""
        with errors_for_temporal():
            return await self._settle.join(request)

    @activity.defn(name="order.note_breaks")
    async def note_breaks(self, request: NoteBreaks) -> Noted:
        """Write down where a statement and our books part; what is due becomes a case."""
        with errors_for_temporal():
            return await self._note_breaks.join(request)

    @activity.defn(name="order.withdraw_order")
    async def withdraw_order(self, request: WithdrawOrder) -> WithdrawAnswer:
        """Withdraw the id of an order that is not written down, or answer that it is."""
        with errors_for_temporal():
            return await self._withdraw.join(request)

    @activity.defn(name="order.set_route")
    async def set_route(self, request: SetRoute) -> RouteAnswer:
        """Switch the mode of coming orders, or answer what the switch had led to."""
        with errors_for_temporal():
            return await self._route.join(request)

    @activity.defn(name="order.roll_back_route")
    async def roll_back_route(self, request: RollBackRoute) -> RouteAnswer:
        """Take the last switch back, or answer what taking it back had led to."""
        with errors_for_temporal():
            return await self._route.join(request)

    @activity.defn(name="order.begin_decision")
    async def begin_decision(self, request: BeginDecision) -> DecisionStands:
        """Write a transaction without an order down, or answer how far it has come."""
        with errors_for_temporal():
            return await self._decision.join(request)

    @activity.defn(name="order.move_decision")
    async def move_decision(self, request: MoveDecision) -> DecisionStands:
        """Move the one decision of such a transaction, or answer the one that stands."""
        with errors_for_temporal():
            return await self._decision.join(request)

    @activity.defn(name="order.close_decision")
    async def close_decision(self, request: CloseDecision) -> DecisionStands:
        """Say that every branch of such a transaction has followed its decision."""
        with errors_for_temporal():
            return await self._decision.join(request)
