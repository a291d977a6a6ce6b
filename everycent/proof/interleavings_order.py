"""The decision of an order, with two drivers and more that want to move it (design rule 7)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import order
from everycent.domain.order import (
    CardPayment,
    Decide,
    Decision,
    OpenOrder,
    OrderLine,
    OrderStatus,
    PlaceOrder,
)
from everycent.proof.interleavings_kinds import NOON, Kind, Rules
from everycent.proof.interleavings_session import Point

_MOST_ORDERS = 5  # As many keys as a case may have.

# Who loses adopts what stands; only a refusal of the pivot takes a commit back.
_RULES: Rules = {
    ("OPEN", "commit"): ("COMMITTING", "COMMITTING"),
    ("OPEN", "abort"): ("ABORTING", "ABORTING"),
    ("OPEN", "take back"): ("ABORTING", "ABORTING"),
    ("COMMITTING", "commit"): ("COMMITTING", "COMMITTING"),
    ("COMMITTING", "abort"): ("COMMITTING", "COMMITTING"),
    ("COMMITTING", "take back"): ("ABORTING", "ABORTING"),
    ("ABORTING", "commit"): ("ABORTING", "ABORTING"),
    ("ABORTING", "abort"): ("ABORTING", "ABORTING"),
    ("ABORTING", "take back"): ("ABORTING", "ABORTING"),
}


def _request(operation: str, place: str, number: int) -> Decide:
    return Decide(
        tenant=place,
        order_id=f"o-{number}",
        at=NOON,
        run="r-1",
        to=Decision.COMMITTING if operation == "commit" else Decision.ABORTING,
        status=OrderStatus.PENDING if operation == "commit" else OrderStatus.CANCELLED,
        pivot_refusal={"kind": "capture_refused"} if operation == "take back" else None,
    )


async def _open(tx: AsyncConnection, places: Sequence[str]) -> None:
    orders = [
        PlaceOrder(
            tenant=place,
            order_id=f"o-{number}",
            customer="c-1",
            currency="EUR",
            lines=(OrderLine(sku="LAMP", units=1, amount_minor=100),),
            payment=CardPayment(card_token="tok_ok"),
        )
        for place in places
        for number in range(_MOST_ORDERS)
    ]
    await order.open_order(
        tx, [OpenOrder(order=each, at=NOON, driver="checkout", run="r-1") for each in orders]
    )


def _shows(answer: Any) -> str:
    return str(getattr(answer, "decision", answer))


DECISION = Kind(
    name="decision of an order",
    service="order",
    table="shop_order",
    operations={"commit": order.decide, "abort": order.decide, "take back": order.decide},
    request=_request,
    prepare=_open,
    shows=_shows,
    begins="OPEN",
    states_query=(
        "SELECT tenant || '/' || order_id || '/step' AS key, decision AS state FROM shop_order"
        " WHERE (tenant, order_id) IN (SELECT split_part(key, '/', 1), split_part(key, '/', 2)"
        " FROM unnest(CAST(:keys AS text[])) AS key)"
    ),
    points=dict.fromkeys(("commit", "abort", "take back"), (Point.LOCK, Point.EFFECT, Point.END)),
    rules=_RULES,
    names=("commit", "commit", "abort", "abort", "take back"),
    starts=((), ("commit",), ("abort",)),
    after=("commit", "abort", "commit"),
)
