"""What a starter may be told instead of an answer; imports nothing heavy."""

from everycent.errors import InvalidRequest


class OrderDiffersError(InvalidRequest):
    """The id belongs to another order; `fields` are those that differ."""

    def __init__(self, order_id: str, fields: tuple[str, ...]) -> None:
        super().__init__(f"order {order_id} exists with other {', '.join(fields)}")
        self.fields = fields


class TooLateError(InvalidRequest):
    """The business says no: the order has been decided, and the message says how."""


class NotRunningError(InvalidRequest):
    """No run of the order lives; placing it again takes it up where it was left."""


class OrderWithdrawnError(TooLateError):
    """What was held under the id had no order, so it was withdrawn: it can be placed no more."""
