"""The order that every way sells: two units, paid by stored balance.

Paid by balance, because no other company can be part of one transaction or of a two-phase commit.
"""

from everycent.domain.mode import Mode
from everycent.domain.order import BalancePayment, OrderLine, PlaceOrder

TENANT, SKU, UNITS, AMOUNT_MINOR = "protocols", "CD", 2, 2933
CUSTOMERS = 40  # More than are ever served at once: what is hot is the stock and the revenue.


def wanted(order_id: str, mode: Mode | None = None) -> PlaceOrder:
    """Return the order; its customer follows from its id."""
    customer = customer_of(int(order_id.rpartition("-")[2]))
    return PlaceOrder(
        tenant=TENANT,
        order_id=order_id,
        customer=customer,
        currency="USD",
        lines=(OrderLine(sku=SKU, units=UNITS, amount_minor=AMOUNT_MINOR),),
        payment=BalancePayment(account=customer),
        mode=mode,
    )


def customer_of(number: int) -> str:
    """Return who buys the order of this number."""
    return f"c-{number % CUSTOMERS}"
