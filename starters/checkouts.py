"""What one can do with an order: accept, place, cancel, pay, repair; twice, it happens once."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import (
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.order import OrderActivities
from everycent import clock
from everycent.database.reads import OrderView, Reader
from everycent.domain.message import request_hash
from everycent.domain.order import (
    AttemptAdded,
    AttemptAnswer,
    CancelAnswer,
    CancelOrder,
    Decision,
    OpenAnswer,
    OpenOrder,
    OrderDiffers,
    OrderResult,
    OrderStatus,
    PayOrder,
    Placement,
    PlaceOrder,
    RepairAnswer,
    RepairOrder,
    WaitsFor,
    differing_fields,
)
from everycent.domain.sweep import ACCEPTED
from everycent.domain.withdrawal import OrderWithdrawn
from everycent.errors import InvalidRequest, Transient
from starters.alone import run_alone
from starters.refusals import (
    NotRunningError,
    OrderDiffersError,
    OrderWithdrawnError,
    TooLateError,
)
from starters.routing import mode_of_new
from workers.queues import TOGETHER, WORKFLOWS, tries
from workflows import attributes
from workflows.checkout import Checkout
from workflows.place import TOGETHER_MEMO
from workflows.telling import summary

T = TypeVar("T")
Handle = WorkflowHandle[Checkout, OrderResult]
LOOK_SECONDS = 1.0
SILENCE_SECONDS = 10.0


async def _no_question() -> bool:
    return True


def attempt_id(payment: Mapping[str, str]) -> str:
    """Return an attempt's id for who names none: the same way to pay is the same attempt."""
    canonical = json.dumps(dict(payment), sort_keys=True)
    return f"pay-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


class Checkouts:
    """The orders of a Temporal namespace and of the order database behind it.

    `together` sends new runs to the workers that host everything; it is kept for a run's life.
    """

    def __init__(self, client: Client, reader: Reader, *, together: bool = False) -> None:
        self._client = client
        self._reader = reader
        self._queue = TOGETHER if together else WORKFLOWS
        self._memo = TOGETHER_MEMO if together else None

    async def place(self, order: PlaceOrder) -> Placement:
        """Start the order, or find it, and answer once it is decided or waits for its customer.

        Sameness is decided by the order's row: the workflow may be long gone from Temporal. Raises
        OrderDiffersError if the id belongs to an order with another body.
        """
        known = await self._find(order)
        if known is None:
            order = await self._routed(order)
            try:
                return await self._start(order)
            except (WorkflowAlreadyStartedError, NotRunningError):
                known = await self._find(order)  # Its run ended while we asked, or before its row.
            except TooLateError:
                # A run fails only before anything was begun, and Temporal goes on giving its
                # answer, perhaps of long ago: the order deserves a run of its own.
                if await self._find(order) is None:
                    return await self._take_up(order)
                raise
        if known is not None:
            if known.result is not None:
                return _placement(known)
            order = order.model_copy(update={"mode": known.mode})
        try:
            return await self._take_up(order)
        except NotRunningError:
            known = await self._find(order)
            if known is None or known.result is None:
                raise
            return _placement(known)

    async def sell(
        self,
        order: PlaceOrder,
        *,
        wait: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ) -> Placement:
        """Place an order and, unless it waits for its customer, wait until it is final.

        Without a worker nobody answers: `say` is told so after a while, and the waiting goes on.
        """
        placing = asyncio.ensure_future(self.place(order))
        done, _ = await asyncio.wait([placing], timeout=SILENCE_SECONDS)
        if not done:
            say("no answer yet; `everycent check` tells whether a worker is missing")
        placement = await placing
        if not wait or placement.result is not None or _wants_customer(placement):
            return placement
        return await self.follow(order.tenant, order.order_id)

    async def follow(
        self,
        tenant: str,
        order_id: str,
        is_answered: Callable[[], Awaitable[bool]] = _no_question,
    ) -> Placement:
        """Return the order once it is final, or as soon as it waits for a customer or an operator.

        `is_answered` tells whether a payment that was just named has had its answer; before that
        the order may still show that it waits for one. The order's row is read, and no run is asked
        (docs/reliability.md, "A run that can never go on").
        """
        waiting = asyncio.ensure_future(self.wait(tenant, order_id))
        pause = LOOK_SECONDS
        try:
            while not (await asyncio.wait([waiting], timeout=pause))[0]:
                pause = min(pause * 1.5, SILENCE_SECONDS)
                # A look that gets no answer tells nothing; the waiting goes on.
                with contextlib.suppress(RPCError, Transient, InvalidRequest):
                    if placement := await self._wants_somebody(tenant, order_id, is_answered):
                        return placement
            await waiting
        finally:
            waiting.cancel()
        return _placement(await self._known(tenant, order_id))

    async def wait(self, tenant: str, order_id: str) -> OrderResult:
        """Wait until the order is final and return how it ended."""
        try:
            return await self._handle(tenant, order_id).result()
        except (WorkflowFailureError, RPCError) as error:
            view = await self._known(tenant, order_id)
            if view.result is not None:  # Deleted from Temporal after it had ended.
                return view.result
            if isinstance(error, RPCError) and error.status is not RPCStatusCode.NOT_FOUND:
                raise
            raise NotRunningError(_gone(order_id)) from error

    async def cancel(self, tenant: str, order_id: str, request: CancelOrder) -> CancelAnswer:
        """Cancel an order. Raises TooLateError, with the reason, when it is decided already."""
        view = await self._known(tenant, order_id)
        if view.result is not None:
            if view.status is not OrderStatus.CANCELLED:
                raise TooLateError(f"too late to cancel: the order is {view.status.lower()}")
            return CancelAnswer(cancelled=True, status=view.status, reason=view.reason)
        handle = self._handle(tenant, order_id)
        return await _told(handle.execute_update(Checkout.cancel, request), order_id)

    async def pay(self, tenant: str, order_id: str, request: PayOrder) -> AttemptAnswer:
        """Name another payment for an open order; one that was named before is no new attempt."""
        view = await self._known(tenant, order_id)
        attempts = await self._reader.attempts(tenant, order_id)
        named = [AttemptAdded(number=a.number) for a in attempts if a.payment == request.payment]
        if view.result is not None:
            return _first(named, f"too late to pay: the order is {view.status.lower()}")
        try:
            # Also one that the row has: a server that was put back has let the run forget it.
            handle = self._handle(tenant, order_id)
            return await _told(handle.execute_update(Checkout.pay, request), order_id)
        except (TooLateError, NotRunningError):
            if named:
                return named[0]
            raise

    async def repair(self, tenant: str, order_id: str, request: RepairOrder) -> RepairAnswer:
        """Say what to do about a parked step, and answer what came of it."""
        await self._known(tenant, order_id)
        handle = self._handle(tenant, order_id)
        return await _told(handle.execute_update(Checkout.repair, request), order_id)

    async def take_up(self, tenant: str, order_id: str) -> Placement:
        """Go on with an order whose run is gone, as it was asked for; or ask the run that lives."""
        view = await self._known(tenant, order_id)
        return await self.place(view.request)

    async def progress(self, tenant: str, order_id: str) -> Placement:
        """Ask the order's run how far it is, as Temporal's Web UI does; `follow` does without."""
        return await self._handle(tenant, order_id).query(Checkout.progress)

    async def _wants_somebody(
        self, tenant: str, order_id: str, is_answered: Callable[[], Awaitable[bool]]
    ) -> Placement | None:
        """Return the order if its row says that it waits for an operator or its customer."""
        view = await self._reader.order(tenant, order_id)
        if view is None or view.result is not None:
            return None
        if view.waits_for is WaitsFor.REPAIR:
            cases = await self._reader.cases(tenant)
            parked = tuple(case.case_key for case in cases if case.order_id == order_id)
            return _placement(view).model_copy(update={"parked": parked})
        if not (_wants_customer(_placement(view)) and await is_answered()):
            return None
        # The last refusal and the page to pay on are not in the row.
        handle = self._handle(tenant, order_id)
        told = await _told(handle.execute_update(Checkout.placed, view.request), order_id)
        return told if _wants_customer(told) else None

    async def accept(self, order: PlaceOrder) -> Placement:
        """Write the order down and answer; nothing is held yet, and `begin` starts its run.

        If nobody does, the sweeper finds the row and starts it. Accepted twice, it is one order;
        raises OrderDiffersError if the id belongs to an order with another body.
        """
        if (known := await self._find(order)) is None:
            opening = OpenOrder(
                order=await self._routed(order),
                at=clock.now(),
                driver=order.workflow_id(),
                run=ACCEPTED,
            )
            answer: OpenAnswer = await run_alone(
                self._client,
                OrderActivities.open_order,
                opening,
                queue=TOGETHER if self._queue == TOGETHER else tries("order"),
                activity_id=f"accept/{order.workflow_id()}/{request_hash(order, order.HASHED)}",
            )
            if isinstance(answer, OrderWithdrawn):
                raise OrderWithdrawnError(f"order {order.order_id} is withdrawn: {answer.reason}")
            if isinstance(answer, OrderDiffers):
                raise OrderDiffersError(order.order_id, answer.fields)
            known = await self._known(order.tenant, order.order_id)
        return _placement(known)

    async def begin(self, tenant: str, order_id: str) -> None:
        """Start the run of an accepted order, unless it has one or has ended."""
        view = await self._known(tenant, order_id)
        if view.result is None and view.driver == view.request.workflow_id():
            await self._run_of(view.request.model_copy(update={"mode": view.mode}))

    async def _routed(self, order: PlaceOrder) -> PlaceOrder:
        """Return a new order with its mode; once it is begun, its row has the last word."""
        if order.mode is not None:
            return order
        mode = await mode_of_new(self._reader, "checkout", order.tenant, order.order_id)
        return order.model_copy(update={"mode": mode})

    async def _start(self, order: PlaceOrder) -> Placement:
        start = WithStartWorkflowOperation(
            Checkout.run,
            order,
            id=order.workflow_id(),
            task_queue=self._queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=attributes.of_order(order),
            memo=self._memo,
            static_summary=summary(order),
        )
        started = asyncio.ensure_future(start.workflow_handle())  # Fails whenever the call does.
        try:
            placed = self._client.execute_update_with_start_workflow(
                Checkout.placed, order, id="placed", start_workflow_operation=start
            )
            placement = await _told(placed, order.order_id)
        finally:
            started.cancel()  # Looked at, or the loop would report a failure that nobody awaited.
            await asyncio.gather(started, return_exceptions=True)
        # A repeat of the update has its first answer, and its validator is not asked again.
        if placement.request_hash != request_hash(order, order.HASHED):
            raise _differs(await self._known(order.tenant, order.order_id), order)
        return placement

    async def _take_up(self, order: PlaceOrder) -> Placement:
        """Ask the unfinished order's run, or start a new one if it was terminated or deleted."""
        handle = await self._run_of(order)
        return await _told(handle.execute_update(Checkout.placed, order), order.order_id)

    async def _run_of(self, order: PlaceOrder) -> Handle:
        """Return the order's live run, a new one if none lives."""
        return await self._client.start_workflow(
            Checkout.run,
            order,
            id=order.workflow_id(),
            task_queue=self._queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=attributes.of_order(order),
            memo=self._memo,
            static_summary=summary(order),
        )

    async def _find(self, order: PlaceOrder) -> OrderView | None:
        """Return the order's row, None if there is none; another body under its id is refused."""
        view = await self._reader.order(order.tenant, order.order_id)
        if view is not None and view.request_hash != request_hash(order, order.HASHED):
            raise _differs(view, order)
        return view

    async def _known(self, tenant: str, order_id: str) -> OrderView:
        view = await self._reader.order(tenant, order_id)
        if view is None:
            raise InvalidRequest(f"there is no order {order_id} of tenant {tenant}")
        return view

    def _handle(self, tenant: str, order_id: str) -> Handle:
        return self._client.get_workflow_handle_for(Checkout.run, f"checkout/{tenant}/{order_id}")


def _first(named: list[AttemptAdded], too_late: str) -> AttemptAdded:
    """Return the attempt that was named before, or refuse a new one."""
    if not named:
        raise TooLateError(too_late)
    return named[0]


def _wants_customer(placement: Placement) -> bool:
    return placement.decision is Decision.OPEN and placement.waits_for is WaitsFor.PAYMENT


def _placement(view: OrderView) -> Placement:
    return Placement(
        order_id=view.order_id,
        request_hash=view.request_hash,
        decision=view.decision,
        status=view.status,
        waits_for=view.waits_for,
        reason=view.reason,
        result=view.result,
    )


def _differs(view: OrderView, order: PlaceOrder) -> OrderDiffersError:
    stored = view.request.model_dump(mode="json")
    return OrderDiffersError(order.order_id, differing_fields(stored, order))


async def _told(answer: Awaitable[T], order_id: str) -> T:
    """Await an update's answer; a validator's no, or a run that is gone, becomes a sentence."""
    try:
        return await answer
    except WorkflowUpdateFailedError as error:
        raise _refusal_of(error, order_id) from error
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        raise NotRunningError(_gone(order_id)) from error


def _gone(order_id: str) -> str:
    return f"no run of order {order_id} lives in Temporal; placing it again takes it up"


def _refusal_of(error: WorkflowUpdateFailedError, order_id: str) -> InvalidRequest:
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type == "OrderDiffers":
        [fields] = cause.details
        return OrderDiffersError(order_id, tuple(fields))
    if isinstance(cause, ApplicationError) and cause.type == "OrderWithdrawn":
        return OrderWithdrawnError(cause.message)
    if isinstance(cause, ApplicationError):
        return TooLateError(cause.message)
    return InvalidRequest(str(cause))
