"""What each version of an event looks like on its way, and the schema its readers had.

`python -m tests.contracts.samples` writes what is missing for the versions of today; a file that is
there stays as it is: it is what an earlier release has written.
"""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from everycent.domain.events import EVENT_TYPES, CaseParked, EventType, OrderTold, StepReported
from everycent.domain.message import Message
from everycent.domain.order import (
    BalancePayment,
    CardPayment,
    Decision,
    OrderLine,
    OrderResult,
    OrderStatus,
    PlaceOrder,
)

FOLDER = Path(__file__).parent / "events"
NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TOLD = OrderTold(
    order=PlaceOrder(
        tenant="shop", order_id="o-1", customer="ada", currency="EUR", points=100,
        lines=(OrderLine(sku="LAMP", units=2, amount_minor=5998),),
        payment=CardPayment(card_token="tok_ok"),
    ),
    opened_on=date(2026, 1, 2),
    window_ends_at=NOON,
    attempts=(CardPayment(card_token="tok_ok"), BalancePayment(account="ada", request_id="second")),
    attempt="first",
    status=OrderStatus.PENDING,
    reason="as it was said",
)  # fmt: skip
REPORTED = StepReported(
    tenant="shop", order_id="o-1", operation="hold payment", request="first", refused=True,
    reason="payment declined", answer={"kind": "payment_declined", "code": "no"},
    captured_minor=1, refunded_minor=1,
)  # fmt: skip
CLOSED = OrderResult(
    tenant="shop", order_id="o-1", status=OrderStatus.CONFIRMED, decision=Decision.COMMITTED,
    total_minor=5998, captured_minor=5898, points_used=100, points_earned=58,
)  # fmt: skip
PARKED = CaseParked(
    tenant="shop", order_id="o-1", case_key="shop/o-1/refund", step="refund payment",
    error_class="Transient", error="the provider is down", proposals=("retry", "resolve"),
)  # fmt: skip
SAMPLES: dict[type[Message], Message] = {
    OrderTold: TOLD, StepReported: REPORTED, OrderResult: CLOSED,
    CaseParked: PARKED,
}  # fmt: skip


def sample_file(kind: EventType, version: int) -> Path:
    return FOLDER / f"{kind.name}.v{version}.json"


def schema_file(kind: EventType, version: int) -> Path:
    return FOLDER / f"{kind.name}.v{version}.schema.json"


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def of_today(kind: EventType) -> dict[Path, Any]:
    """Return what the files of a type's version of today have to say."""
    return {
        sample_file(kind, kind.version): SAMPLES[kind.model].model_dump(mode="json"),
        schema_file(kind, kind.version): kind.model.model_json_schema(mode="validation"),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in EVENT_TYPES:
        for file, says in of_today(each).items():
            if not file.exists():
                file.write_text(json.dumps(says, indent=1, sort_keys=True) + "\n")
