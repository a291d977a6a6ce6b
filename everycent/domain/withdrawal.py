"""The withdrawal of an order id: the decision about holds whose order is not written down.

What was tried for an id without an order row may be undone only after the id is withdrawn, in the
place where its order would be opened: of the two that meet there, one wins, and both are told.
"""

from datetime import datetime
from typing import Literal

from pydantic import Field

from everycent.domain.message import Message, OrderRequest, Told
from everycent.domain.outcome import Refusal


class WithdrawOrder(OrderRequest):
    """Withdraw an order id, unless its order is written down; a repeat finds it withdrawn."""

    by: str = Field(min_length=1)  # The workflow that goes on to undo what was held.

    @property
    def reason(self) -> str:
        """What whoever places the order later is told."""
        return why_withdrawn(self.at)


class Withdrawn(Message):
    """No order can be opened under the id any more: what was held for it may be undone."""

    kind: Literal["withdrawn"] = "withdrawn"


class OrderStands(Message):
    """The order is written down: its own decision says what becomes of what it holds."""

    kind: Literal["order_stands"] = "order_stands"
    decision: str


WithdrawAnswer = Withdrawn | OrderStands


class OrderWithdrawn(Refusal):
    """The id was withdrawn before its order was written down; nothing of it can be sold."""

    kind: Literal["order_withdrawn"] = "order_withdrawn"
    reason: Told


def why_withdrawn(at: datetime) -> str:
    """Say in plain words why an order can no longer be placed under an id."""
    return f"what was held for it had no order, so its id was withdrawn at {at:%Y-%m-%d %H:%M} UTC"
