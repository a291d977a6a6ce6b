"""What follows mixed orders, written down in the transaction that closes them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import outbox
from everycent.domain.events import OrderTold
from everycent.domain.extension import extensions_of, following
from everycent.domain.messaging import Event
from everycent.domain.mode import Mode
from everycent.domain.order import CloseOrder, Payment, PlaceOrder


async def tell(
    tx: AsyncConnection,
    ends: Sequence[tuple[Row[Any], Sequence[Payment], CloseOrder]],
    *,
    others: Sequence[str],
) -> None:
    """Tell the extensions, and `others`, of orders that were just closed: row, payments, end."""
    events: list[Event] = []
    for row, payments, closing in ends:
        told = OrderTold(
            order=PlaceOrder.model_validate(row.request),
            opened_on=row.opened_on,
            window_ends_at=row.window_ends_at,
            attempts=tuple(payments),
            attempt=row.attempt,
        )
        extensions = extensions_of(Mode(row.mode))
        events += following(told, closing.result, extensions, at=closing.at, tell=others)
    await outbox.publish(tx, events)
