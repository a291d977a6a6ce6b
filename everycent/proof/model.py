"""A shop as it must look from outside after each thing that people do: the model, without I/O.

It knows no key, fence, retry or crash: whatever dies in between, the shop has to look like this.
"""

from dataclasses import dataclass, field
from typing import Literal

PaymentKind = Literal[
    "card", "declined", "down", "lost_answer", "lost_capture", "refused_capture", "page", "balance",
]  # fmt: skip
MAX_ATTEMPTS = 3
POINTS_PER_MINOR = 100


@dataclass
class ModelOrder:
    """One order: what is asked, what it waits for and how it stands. Amounts in minor units."""

    units: int
    amount_minor: int
    points: int
    status: str = "PENDING"
    attempts: list[PaymentKind] = field(default_factory=list)
    captured_minor: int = 0  # At the provider.

    @property
    def due_minor(self) -> int:
        """What money has to pay."""
        return self.amount_minor - self.points

    @property
    def is_open(self) -> bool:
        """Whether the order waits for its customer."""
        return self.status == "PENDING"

    @property
    def has_page(self) -> bool:
        """Whether the customer has a page to pay on."""
        return self.is_open and self.attempts[-1] == "page"


@dataclass
class ModelShop:
    """One SKU, one customer with an account and points, and the orders."""

    free: int
    balance: int
    points: int
    held: int = 0
    sold: int = 0
    points_frozen: int = 0
    orders: dict[str, ModelOrder] = field(default_factory=dict)

    def place(self, name: str, order: ModelOrder, payment: PaymentKind) -> None:
        """Sell an order, refuse it, or let it wait for its customer."""
        self.orders[name] = order
        if order.units > self.free or order.points > self.points:
            order.status = "REJECTED"
            return
        self.free, self.held = self.free - order.units, self.held + order.units
        self.points -= order.points
        self.points_frozen += order.points
        self.pay(name, payment)

    def pay(self, name: str, payment: PaymentKind) -> None:
        """Try another payment of an open order; the third that does not pay ends it."""
        order = self.orders[name]
        order.attempts.append(payment)
        if payment == "refused_capture":
            self._abort(order, "REJECTED")
        elif payment == "balance" and order.due_minor <= self.balance:
            self.balance -= order.due_minor
            self._confirm(order, captured_minor=0)
        elif payment in ("card", "down", "lost_answer", "lost_capture"):
            self._confirm(order, captured_minor=order.due_minor)
        elif payment != "page" and len(order.attempts) == MAX_ATTEMPTS:
            self._abort(order, "REJECTED")

    def pay_on_page(self, name: str) -> None:
        """Let the customer pay on the page that is open."""
        self._confirm(self.orders[name], captured_minor=self.orders[name].due_minor)

    def end(self, name: str, status: Literal["CANCELLED", "EXPIRED"]) -> None:
        """Give an open order up; one that has ended stays as it is."""
        if self.orders[name].is_open:
            self._abort(self.orders[name], status)

    def _confirm(self, order: ModelOrder, *, captured_minor: int) -> None:
        order.status, order.captured_minor = "CONFIRMED", captured_minor
        self.held, self.sold = self.held - order.units, self.sold + order.units
        self.points_frozen -= order.points
        self.points += order.due_minor // POINTS_PER_MINOR

    def _abort(self, order: ModelOrder, status: str) -> None:
        order.status = status
        self.held, self.free = self.held - order.units, self.free + order.units
        self.points_frozen -= order.points
        self.points += order.points
