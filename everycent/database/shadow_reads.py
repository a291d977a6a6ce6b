"""How the branches of final orders answered, for a shadow run: it reads and does nothing else."""

from typing import Any

from everycent.database.reads import Reader
from everycent.domain.account import AccountUnknown, InsufficientBalance
from everycent.domain.inventory import OutOfStock
from everycent.domain.mode import Mode
from everycent.domain.order import MAX_ATTEMPTS, Decision, OrderResult, PlaceOrder
from everycent.domain.payment import CaptureRefused, PaymentDeclined
from everycent.domain.points import InsufficientPoints
from everycent.domain.shadow import Answer, Shadow, shadow
from everycent.settings import ServiceName

_FINAL = (
    "SELECT request, result, mode FROM shop_order WHERE result IS NOT NULL"
    " AND request IS NOT NULL AND (:tenant = '*' OR tenant = :tenant)"
    " ORDER BY closed_at DESC, order_id LIMIT :limit"
)
_HOLDS = (
    "SELECT try_answer ->> 'kind' AS kind, request_hash IS NOT NULL AS tried FROM {table}"
    ' WHERE key COLLATE "C" BETWEEN :low AND :high'
)
_REFUSALS = frozenset(
    refusal.model_fields["kind"].default
    for refusal in (
        OutOfStock, InsufficientPoints, PaymentDeclined, InsufficientBalance, AccountUnknown,
    )
)  # fmt: skip
_CAPTURE_REFUSED = CaptureRefused.model_fields["kind"].default


async def shadows(reader: Reader, tenant: str, then: Mode, *, limit: int) -> list[Shadow]:
    """Return for the newest final orders how each would have gone in another mode."""
    rows = await reader.rows("order", _FINAL, tenant=tenant, limit=limit)
    return [await _shadow(reader, row, then) for row in rows]


async def _shadow(reader: Reader, row: dict[str, Any], then: Mode) -> Shadow:
    order = PlaceOrder.model_validate(row["request"])
    result = OrderResult.model_validate(row["result"])
    branches = {"stock": await _hold(reader, "inventory", "reservation", order, "reserve")}
    if order.points:
        branches["points"] = await _hold(reader, "points", "points_hold", order, "points")
    if order.due_minor:
        branches["payment"] = await _payment(reader, order, result)
    return shadow(result, branches, today=Mode(row["mode"]), then=then)


async def _hold(
    reader: Reader, service: ServiceName, table: str, order: PlaceOrder, step: str
) -> Answer:
    found = await _tries(reader, service, table, order.step_key(step), order.step_key(step))
    return Answer.NEVER if not found else _answer(found[0])


async def _payment(reader: Reader, order: PlaceOrder, result: OrderResult) -> Answer:
    """Tell what the payment's branch came to: it is as many attempts as the customer named."""
    low, high = order.step_key("pay/"), order.step_key("pay0")
    tried = [
        *await _tries(reader, "payment", "payment", low, high),
        *await _tries(reader, "account", "balance_hold", low, high),
    ]
    if result.decision is Decision.COMMITTED:
        return Answer.HELD
    at_capture = any(refusal.get("kind") == _CAPTURE_REFUSED for refusal in result.refusals)
    if at_capture or (len(tried) == MAX_ATTEMPTS and all(kind in _REFUSALS for kind in tried)):
        return Answer.REFUSED
    return Answer.OPEN if tried else Answer.NEVER


async def _tries(
    reader: Reader, service: ServiceName, table: str, low: str, high: str
) -> list[str | None]:
    rows = await reader.rows(service, _HOLDS.format(table=table), low=low, high=high)
    return [row["kind"] for row in rows if row["tried"]]


def _answer(kind: str | None) -> Answer:
    if kind is None:
        return Answer.OPEN
    return Answer.REFUSED if kind in _REFUSALS else Answer.HELD
