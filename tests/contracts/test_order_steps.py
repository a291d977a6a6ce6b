"""A participant asks for what the saga asks for: the same key, and the same business fields."""

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from everycent.domain import order_steps as ask
from everycent.domain.events import OrderTold
from everycent.domain.message import StepRequest
from everycent.domain.order import PAYMENTS, OrderStatus, Payment, PlaceOrder
from tests.conftest import NOON

HISTORIES = Path(__file__).parents[1] / "replay" / "histories"
Ask = Callable[[OrderTold, Payment | None, dict[str, Any]], StepRequest]


def _plain(request: Callable[[OrderTold, datetime], StepRequest]) -> Ask:
    return lambda told, _, said: request(told, datetime.fromisoformat(said["at"]))


def _paid(request: Callable[[OrderTold, Any, datetime], StepRequest]) -> Ask:
    return lambda told, payment, said: request(told, payment, datetime.fromisoformat(said["at"]))


STEPS: dict[str, Ask] = {
    "inventory.reserve_stock": _plain(ask.hold_stock),
    "inventory.commit_stock": _plain(ask.sell_stock),
    "inventory.release_stock": _plain(ask.release_stock),
    "points.freeze_points": _plain(ask.hold_points),
    "points.redeem_points": _plain(ask.use_points),
    "points.unfreeze_points": _plain(ask.release_points),
    "points.grant_points": _plain(ask.earn_points),
    "points.revoke_points": _plain(ask.revoke_points),
    "points.restore_points": _plain(ask.restore_points),
    "ledger.post_transfer": _plain(ask.book_sale),
    "ledger.reverse_transfer": _plain(ask.reverse_sale),
    "account.freeze_balance": _paid(ask.hold_balance),
    "account.debit_balance": _paid(ask.debit_balance),
    "account.unfreeze_balance": _paid(ask.release_balance),
    "account.credit_balance": _paid(ask.credit_balance),
    "payment.authorise": _paid(ask.authorise),
    "payment.capture": _paid(ask.capture),
    "payment.void": _paid(ask.void),
}


def recorded() -> Iterator[tuple[str, str, list[Payment], str | None, dict[str, Any]]]:
    """Yield what recorded runs asked: order, activity, payments so far, which one pays, request."""
    for file in sorted(HISTORIES.glob("*/remote/*.json.gz")):
        events = json.loads(gzip.decompress(file.read_bytes()))["events"]
        order, payments, chosen = "", [], None
        for event in events:
            if begun := event.get("workflowExecutionStartedEventAttributes"):
                order = json.dumps(_input(begun))
                first = PlaceOrder.model_validate(_input(begun)).payment
                payments = [] if first is None else [first]
            asked = event.get("activityTaskScheduledEventAttributes")
            if asked is None:
                continue
            name, said = asked["activityType"]["name"], _input(asked)
            if name == "order.add_attempt":
                payments.append(PAYMENTS.validate_python(said["payment"]))
            if name == "order.decide" and said["to"] == "COMMITTING":
                chosen = said["attempt"]
            yield order, name, list(payments), chosen, said


def _input(attributes: dict[str, Any]) -> dict[str, Any]:
    [payload] = attributes["input"]["payloads"]
    found: dict[str, Any] = json.loads(base64.b64decode(payload["data"]))
    return found


@pytest.mark.requirement("AC3.2")
def test_a_participant_asks_for_what_the_saga_asks_for() -> None:
    """Every step of every recorded run, field by field: or the fence would refuse the second.

    Red when: a key, a field or an amount of a step differs between the modes.
    """
    seen: set[str] = set()
    for order, name, payments, chosen, said in recorded():
        if name not in STEPS:
            continue
        parts = said["key"].split("/")
        request = parts[3] if len(parts) > 3 else chosen
        told = OrderTold(
            order=PlaceOrder.model_validate_json(order),
            opened_on=said["opened_on"],
            window_ends_at=NOON,
            attempts=tuple(payments),
            attempt=request,
            status=OrderStatus.PENDING,
            reason=said.get("reason") or "",
        )
        payment = told.payment()
        if name.startswith(("account", "payment")):
            assert payment is not None, said["key"]
        ours = STEPS[name](told, payment, said).model_dump(mode="json")
        assert {f: v for f, v in ours.items() if f != "at"} == {
            f: v for f, v in said.items() if f != "at"
        }, name
        seen.add(name)
    assert seen == set(STEPS) - {"account.unfreeze_balance"}  # Of which no run was recorded.
