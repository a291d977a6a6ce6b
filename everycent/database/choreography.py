"""The choreographed order in its own database: opened with its event, decided, closed.

Every write is one of `everycent.database.order`; beside it stands in the same transaction what is
told about it. The reports of the participants are read from the order service's own inbox.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import order as orders
from everycent.database import outbox
from everycent.database.engine import sql
from everycent.domain.choreography import (
    DRIVER,
    RUN,
    TURNS,
    Standing,
    announced,
    decision_after,
    driver_of,
    payer,
    result_of,
    waits_for_payment,
)
from everycent.domain.events import (
    ORDER_CLOSED,
    ORDER_OPENED,
    PAYMENT_NAMED,
    STEP_REPORTED,
    OrderTold,
    StepReported,
    event_of,
)
from everycent.domain.fence import unwrap
from everycent.domain.messaging import NOTIFY, Event, inboxes
from everycent.domain.mode import Mode
from everycent.domain.order import (
    PAYMENTS,
    AddAttempt,
    AttemptAdded,
    AttemptAnswer,
    CloseOrder,
    Decide,
    Decision,
    MarkOrder,
    OpenAnswer,
    OpenedOrder,
    OpenOrder,
    OrderResult,
    OrderStatus,
    Payment,
    PlaceOrder,
    Verdict,
    WaitsFor,
)
from everycent.errors import Bug, EverycentError

OrderId = tuple[str, str]
_THESE = (
    "(tenant, order_id) IN (SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:ids AS text[])))"
)


async def open_choreographed(tx: AsyncConnection, order: PlaceOrder, *, at: datetime) -> OpenAnswer:
    """Write the order down together with the event that sets its participants going, once.

    An order that a workflow drives is answered as it stands, and nothing is told.
    """
    order = order.model_copy(update={"mode": Mode.CHOREOGRAPHED})
    [answer] = await orders.open_order(
        tx, [OpenOrder(order=order, at=at, driver=driver_of(order), run=RUN)]
    )
    if isinstance(answer, EverycentError):
        raise answer
    if isinstance(answer, OpenedOrder) and await _is_ours(tx, order):
        await outbox.publish(tx, [_opening(order, answer, at)])
    return answer


def _opening(order: PlaceOrder, opened: OpenedOrder, at: datetime) -> Event:
    due = order.payment if order.due_minor else None
    told = OrderTold(
        order=order,
        opened_on=opened.opened_on,
        window_ends_at=opened.window_ends_at,
        attempts=() if due is None else (due,),
        attempt=None if due is None else due.request_id,
    )
    return event_of(
        ORDER_OPENED,
        told,
        key=order.step_key(ORDER_OPENED.name),
        opened_on=opened.opened_on,
        at=at,
        to=inboxes("inventory"),
    )


async def _is_ours(tx: AsyncConnection, order: PlaceOrder) -> bool:
    driver = await tx.scalar(
        sql("SELECT driver FROM shop_order WHERE tenant = :tenant AND order_id = :order_id"),
        {"tenant": order.tenant, "order_id": order.order_id},
    )
    return bool(driver == driver_of(order))


async def name_payment(tx: AsyncConnection, request: AddAttempt, *, at: datetime) -> AttemptAnswer:
    """Write another payment down together with the event that has it tried."""
    standing = await _one(tx, (request.tenant, request.order_id))
    [answer] = await orders.add_attempt(tx, [request])
    if isinstance(answer, EverycentError):
        raise answer
    known = len(standing.opened.attempts)
    if isinstance(answer, AttemptAdded) and answer.number > known:
        await outbox.publish(tx, [_naming(standing, request, at)])
        mark = MarkOrder(
            tenant=request.tenant, order_id=request.order_id, at=at, waits_for=WaitsFor.NOTHING
        )
        await orders.mark_order(tx, [mark])
    return answer


def _naming(standing: Standing, request: AddAttempt, at: datetime) -> Event:
    payment, order = request.payment, standing.order
    told = standing.told().model_copy(
        update={"attempts": (payment,), "attempt": payment.request_id}
    )
    return event_of(
        PAYMENT_NAMED,
        told,
        key=order.step_key(PAYMENT_NAMED.name, payment.request_id),
        opened_on=standing.opened.opened_on,
        at=at,
        to=inboxes(payer(payment)),
    )


async def cancel_choreographed(
    tx: AsyncConnection, order_id: OrderId, *, reason: str, at: datetime
) -> Verdict:
    """Decide that the order is cancelled, if it is not decided yet; the decision that stands."""
    standing = await _one(tx, order_id)
    wanted = Verdict(decision=Decision.ABORTING, status=OrderStatus.CANCELLED, reason=reason)
    after = await _decide(tx, standing, wanted, None, at)
    return after.verdict


async def expire_choreographed(tx: AsyncConnection, *, at: datetime, limit: int) -> int:
    """Abort orders whose payment window is over; return how many."""
    result = await tx.execute(
        sql(
            "SELECT tenant, order_id FROM shop_order WHERE decision = 'OPEN'"
            " AND driver LIKE :driver AND window_ends_at <= :at"
            " ORDER BY window_ends_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED"
        ),
        {"at": at, "limit": limit, "driver": f"{DRIVER}%"},
    )
    over = [(row.tenant, row.order_id) for row in result]
    for standing in (await standings(tx, over)).values():
        seconds = standing.order.payment_window_seconds
        wanted = Verdict(
            decision=Decision.ABORTING,
            status=OrderStatus.EXPIRED,
            reason=f"not paid within {seconds} s",
        )
        await _decide(tx, standing, wanted, None, at)
    return len(over)


async def take_reports(
    tx: AsyncConnection, reports: Sequence[StepReported], *, at: datetime, tell: Sequence[str] = ()
) -> None:
    """Note what participants have done: decide what follows, tell it, close what is complete.

    `tell` names the other systems that hear how an order has ended.
    """
    known = await standings(tx, sorted({(r.tenant, r.order_id) for r in reports}))
    for report in reports:
        key = (report.tenant, report.order_id)
        if key not in known:
            raise Bug(f"{report.operation} was reported of an order that is not there: {key}")
        known[key] = await _take(tx, _with(known[key], report), report, at, tell)


async def _take(
    tx: AsyncConnection,
    standing: Standing,
    report: StepReported,
    at: datetime,
    tell: Sequence[str],
) -> Standing:
    if standing.opened.result is not None:
        return standing
    wanted = decision_after(standing, report)
    if wanted is not None:
        return await _decide(tx, standing, wanted.verdict, wanted.pivot_refusal, at)
    if report.operation in TURNS:
        await outbox.publish(tx, announced(standing, at))
    tenant, order_id = report.tenant, report.order_id
    if waits_for_payment(standing):
        mark = MarkOrder(tenant=tenant, order_id=order_id, at=at, waits_for=WaitsFor.PAYMENT)
        await orders.mark_order(tx, [mark])
    result = result_of(standing)
    if result is None:
        return standing
    closing = CloseOrder(tenant=tenant, order_id=order_id, at=at, result=result)
    [closed] = await orders.close_order(tx, [closing])
    opened = standing.opened.model_copy(update={"result": unwrap(closed)})
    if tell:
        await outbox.publish(tx, [_closing(standing, unwrap(closed), at, tell)])
    return Standing(standing.order, opened, standing.reports)


def _closing(standing: Standing, result: OrderResult, at: datetime, tell: Sequence[str]) -> Event:
    return event_of(
        ORDER_CLOSED,
        result,
        key=standing.order.step_key(ORDER_CLOSED.name),
        opened_on=standing.opened.opened_on,
        at=at,
        to=tuple(f"{NOTIFY}{name}" for name in tell),
    )


async def _decide(
    tx: AsyncConnection,
    standing: Standing,
    wanted: Verdict,
    pivot_refusal: Mapping[str, object] | None,
    at: datetime,
) -> Standing:
    """Move the decision and tell it; who loses adopts what stands, and tells nothing."""
    order = standing.order
    asked = Decide(
        tenant=order.tenant,
        order_id=order.order_id,
        at=at,
        to=wanted.decision,
        run=RUN,
        attempt=wanted.attempt,
        status=wanted.status,
        reason=wanted.reason,
        pivot_refusal=None if pivot_refusal is None else dict(pivot_refusal),
    )
    [answer] = await orders.decide(tx, [asked])
    opened = standing.opened.model_copy(update={"verdict": unwrap(answer)})
    after = Standing(order, opened, standing.reports)
    if after.verdict.decision is not standing.verdict.decision:
        await outbox.publish(tx, announced(after, at))
    return after


def _with(standing: Standing, report: StepReported) -> Standing:
    reports = {**standing.reports, (report.operation, report.request): report}
    return Standing(standing.order, standing.opened, reports)


async def _one(tx: AsyncConnection, order_id: OrderId) -> Standing:
    found = await standings(tx, [order_id])
    if order_id not in found:
        raise Bug(f"there is no choreographed order {'/'.join(order_id)}")
    return found[order_id]


async def standings(tx: AsyncConnection, keys: Sequence[OrderId]) -> dict[OrderId, Standing]:
    """Lock orders, in key order, and return them with what was reported of them so far."""
    result = await tx.execute(
        sql(
            "SELECT tenant, order_id, request, decision, attempt, abort_status, reason, shared,"
            " opened_at, opened_on, window_ends_at, result FROM shop_order"
            f" WHERE {_THESE} AND request IS NOT NULL"
            ' ORDER BY tenant COLLATE "C", order_id COLLATE "C" FOR NO KEY UPDATE'
        ),
        _ids(keys),
    )
    rows = {(row.tenant, row.order_id): row for row in result}
    attempts = await _attempts(tx, list(rows))
    reports = await _reports(tx, {key: row.opened_on for key, row in rows.items()})
    return {
        key: Standing(
            PlaceOrder.model_validate(row.request),
            _opened(row, attempts.get(key, [])),
            reports.get(key, {}),
        )
        for key, row in rows.items()
    }


def _opened(row: Row[Any], attempts: Sequence[Payment]) -> OpenedOrder:
    verdict = Verdict(
        decision=Decision(row.decision),
        attempt=row.attempt,
        status=OrderStatus(row.abort_status or OrderStatus.PENDING),
        reason=row.reason,
        shared=row.shared,
    )
    return OpenedOrder(
        opened_at=row.opened_at,
        opened_on=row.opened_on,
        window_ends_at=row.window_ends_at,
        verdict=verdict,
        attempts=tuple(attempts),
        result=None if row.result is None else OrderResult.model_validate(row.result),
    )


async def _attempts(tx: AsyncConnection, keys: Sequence[OrderId]) -> dict[OrderId, list[Payment]]:
    result = await tx.execute(
        sql(
            "SELECT tenant, order_id, payment FROM payment_attempt"
            f" WHERE {_THESE} ORDER BY tenant, order_id, number"
        ),
        _ids(keys),
    )
    found: dict[OrderId, list[Payment]] = {}
    for row in result:
        of_order = found.setdefault((row.tenant, row.order_id), [])
        of_order.append(PAYMENTS.validate_python(row.payment))
    return found


def _ids(keys: Sequence[OrderId]) -> dict[str, list[str]]:
    return {"tenants": [tenant for tenant, _ in keys], "ids": [order_id for _, order_id in keys]}


async def _reports(
    tx: AsyncConnection, days: Mapping[OrderId, date]
) -> dict[OrderId, dict[tuple[str, str | None], StepReported]]:
    result = await tx.execute(
        sql(
            "SELECT payload FROM inbox WHERE type = :type AND state = 'CONSUMED'"
            " AND (opened_on, aggregate) IN (SELECT * FROM unnest(CAST(:days AS date[]),"
            " CAST(:aggregates AS text[]))) ORDER BY number"
        ),
        {
            "type": STEP_REPORTED.name,
            "days": list(days.values()),
            "aggregates": ["/".join(key) for key in days],
        },
    )
    found: dict[OrderId, dict[tuple[str, str | None], StepReported]] = {}
    for payload in result.scalars():
        report = StepReported.model_validate(payload)
        of_order = found.setdefault((report.tenant, report.order_id), {})
        of_order[(report.operation, report.request)] = report
    return found
