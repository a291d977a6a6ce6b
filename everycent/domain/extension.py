"""What follows the core of a mixed order by messages, written in the core's last transaction.

An extension has no say in the order: it begins when the core is whole and closed, is carried by
outbox, relay and inbox until it is done, and is repaired apart (`everycent messages`).
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum

from everycent.domain.events import ORDER_CLOSED, ORDER_PAID, OrderTold, event_of
from everycent.domain.messaging import NOTIFY, Event, inboxes
from everycent.domain.mode import Mode
from everycent.domain.order import OrderResult, OrderStatus


class Extension(StrEnum):
    """A part of a checkout that may follow its core; the name is that of its service."""

    POINTS = "points"  # What the order earns.


def extensions_of(mode: Mode) -> tuple[Extension, ...]:
    """Return what follows by messages in a mode; everything else is done by the flow itself."""
    return (Extension.POINTS,) if mode is Mode.MIXED else ()


def following(
    told: OrderTold,
    result: OrderResult,
    extensions: Collection[Extension],
    *,
    at: datetime,
    tell: Sequence[str],
) -> list[Event]:
    """Return what is told as the core closes: to the extensions if it sold, and to who else hears.

    `tell` names other systems, which hear of every end.
    """
    order, opened_on = told.order, told.opened_on
    confirmed = result.status is OrderStatus.CONFIRMED
    services = [each for each in extensions if confirmed and _has_work(each, told)]
    heard = tuple(f"{NOTIFY}{name}" for name in tell)
    wanted = ((ORDER_PAID, told, inboxes(*services)), (ORDER_CLOSED, result, heard))
    return [
        event_of(kind, said, key=order.step_key(kind.name), opened_on=opened_on, at=at, to=to)
        for kind, said, to in wanted
        if to
    ]


def _has_work(extension: Extension, told: OrderTold) -> bool:
    return extension is not Extension.POINTS or told.order.points_earned > 0
