"""What follows from what the provider says, and when a call may be sent again: without any I/O."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everycent.domain.fence import FenceState
from everycent.domain.payment import (
    Authorised,
    CallPlan,
    Captured,
    CaptureRefused,
    CustomerPaid,
    PaidAnyway,
    PaymentDeclined,
    PaymentRow,
    PaymentStatus,
    ProviderSays,
    RedirectOpened,
    Refunded,
    RefundPayment,
    RefundRefused,
    RefundSays,
    SentCall,
    Voided,
    answer_authorise,
    answer_capture,
    answer_customer,
    answer_refund,
    answer_void,
    plan_call,
    reserve_refunds,
)
from everycent.errors import Bug, Unknown

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
SECONDS = st.integers(0, 200_000).map(lambda n: timedelta(seconds=n))


def row(**changes: Any) -> PaymentRow:
    fields: dict[str, Any] = {
        "key": "t/o/pay/first", "state": FenceState.TRIED, "status": PaymentStatus.SENT,
        "request_hash": "h", "amount_minor": 100, "currency": "EUR", "method": "card",
        "card_token": None, "try_answer": None, "provider_id": None, "captured_minor": 0,
        "refunded_minor": 0, "cancelling": False, "capture_refusal": None,
    }  # fmt: skip
    return PaymentRow(**{**fields, **changes})


def says(state: str, **changes: Any) -> ProviderSays:
    captured = 100 if state == "captured" else 0
    fields = {
        "state": state, "provider_id": "int_1", "currency": "EUR", "amount_minor": 100,
        "captured_minor": captured,
    }  # fmt: skip
    return ProviderSays.model_validate({**fields, **changes})


def refund(amount: int, request: str = "r-1", **changes: Any) -> RefundPayment:
    fields = {
        "key": f"t/o/refund/{request}", "payment_key": "t/o/pay/first", "amount_minor": amount,
        "currency": "EUR", "at": NOON, "opened_on": date(2026, 1, 2),
    }  # fmt: skip
    return RefundPayment.model_validate({**fields, **changes})


@pytest.mark.parametrize(
    ("method", "state", "expected"),
    [
        ("card", "authorised", Authorised(amount_minor=100, provider_id="int_1")),
        ("card", "declined", PaymentDeclined(code="declined")),
        ("card", "cancelled", PaymentDeclined(code="cancelled")),
        ("card", "expired", PaymentDeclined(code="expired")),
        ("card", "captured", Bug),
        ("card", "requires_confirmation", Unknown),
        ("redirect", "requires_action", RedirectOpened),
        ("redirect", "captured", RedirectOpened),
        ("redirect", "requires_confirmation", Unknown),
        ("redirect", "authorised", Bug),
    ],
)
def test_every_state_answers_a_try(method: str, state: str, expected: Any) -> None:
    answer = answer_authorise(row(method=method), says(state))
    assert isinstance(answer, expected) if isinstance(expected, type) else answer == expected


@pytest.mark.requirement("I25")
@pytest.mark.parametrize(
    ("state", "capture", "void"),
    [
        ("requires_confirmation", Unknown, Unknown),
        ("requires_action", Unknown, Unknown),
        ("authorised", Unknown, Unknown),
        ("captured", Captured, PaidAnyway),
        ("cancelled", CaptureRefused, Voided),
        ("declined", CaptureRefused, Voided),
        ("expired", CaptureRefused, Voided),
    ],
)
def test_only_a_state_without_return_ends_a_payment(state: str, capture: Any, void: Any) -> None:
    """Red when: a payment that may still move is taken for refused, taken or given up."""
    assert isinstance(answer_capture(row(), says(state)), capture)
    assert isinstance(answer_void(row(), says(state)), void)
    customer = answer_customer(row(method="redirect"), says(state))
    ends: dict[Any, type] = {Captured: CustomerPaid, CaptureRefused: PaymentDeclined}
    over = ends.get(capture)
    assert customer is None if over is None else isinstance(customer, over)


def test_a_void_tells_what_had_been_held() -> None:
    held = row(try_answer={"kind": "authorised"})
    assert answer_void(held, says("cancelled")) == Voided(amount_minor=100)
    assert answer_void(row(), says("cancelled", held=True)) == Voided(amount_minor=100)
    assert answer_void(row(), says("cancelled")) == Voided(amount_minor=0)
    absent = ProviderSays(state="absent")
    assert answer_void(row(), absent) == Voided(amount_minor=0)


@pytest.mark.parametrize("answer", [answer_authorise, answer_capture, answer_void, answer_customer])
@pytest.mark.parametrize(
    "changes",
    [{"amount_minor": 99}, {"currency": "USD"}, {"provider_id": "int_2"}, {"captured_minor": 99}],
)
def test_another_payment_or_amount_stops_the_item(answer: Any, changes: Any) -> None:
    known = row(provider_id="int_1", method="redirect")
    if answer is answer_authorise and "captured_minor" in changes:
        return  # The whole amount is checked where it is accepted.
    assert isinstance(answer(known, says("captured", **changes)), Bug)


def test_a_refund_is_answered_by_what_became_of_it() -> None:
    payment = row(captured_minor=100, refunded_minor=60)
    done = answer_refund(refund(60), payment, RefundSays(state="succeeded", provider_refund_id="x"))
    assert done == Refunded(amount_minor=60, provider_refund_id="x")
    assert isinstance(answer_refund(refund(60), payment, RefundSays(state="pending")), Unknown)
    failed = answer_refund(refund(60), payment, RefundSays(state="failed", code="card_closed"))
    assert failed == RefundRefused(code="card_closed", refundable_minor=100)


@pytest.mark.requirement("AC10.6")
@given(
    captured=st.integers(0, 1_000),
    already=st.integers(0, 1_000),
    amounts=st.lists(st.integers(1, 400), max_size=12),
)
def test_a_batch_of_refunds_reserves_no_more_than_is_left(
    captured: int, already: int, amounts: list[int]
) -> None:
    """Red when: the refunds of one batch are each checked against the same rest."""
    already = min(already, captured)
    payment = row(captured_minor=captured, refunded_minor=already)
    requests = [refund(amount, f"r-{n}") for n, amount in enumerate(amounts)]
    allocated = reserve_refunds({payment.key: payment}, requests)
    granted = [r for r in requests if r.key not in allocated.refused]
    reserved = sum(allocated.reserved.values())
    assert reserved == sum(r.amount_minor for r in granted) <= captured - already
    left = captured - already - reserved
    for r in requests:
        refused = allocated.refused.get(r.key)
        assert refused is None or captured == 0 or r.amount_minor > left


@pytest.mark.requirement("I2")
@given(ago=SECONDS, flight=SECONDS, window=SECONDS, lifetime=SECONDS, open_sends=st.integers(0, 3))
def test_a_call_is_only_sent_where_it_cannot_take_effect_twice(
    ago: timedelta, flight: timedelta, window: timedelta, lifetime: timedelta, open_sends: int
) -> None:
    """Red when: a key is used again after it may be forgotten, beside a call that still flies."""
    earlier = SentCall(NOON - ago, NOON - ago + flight, open_sends)
    plan = plan_call(earlier, at=NOON, until=NOON + window, key_lifetime=lifetime)
    key_lives = window + ago <= lifetime
    may_arrive = flight >= ago
    if plan is CallPlan.FIRST:
        assert open_sends == 0
    else:
        assert open_sends > 0
        assert (plan is CallPlan.SAME_KEY) == key_lives
        assert (plan is CallPlan.LOOK_ONLY) == (may_arrive and not key_lives)


def test_a_call_that_was_answered_or_never_written_is_a_first() -> None:
    answered = SentCall(NOON, NOON, open_sends=2, answered=True)
    for earlier in (None, answered):
        plan = plan_call(earlier, at=NOON, until=NOON, key_lifetime=timedelta())
        assert plan is CallPlan.FIRST


def test_an_error_names_its_item() -> None:
    errors = (
        answer_authorise(row(), says("requires_confirmation")),
        answer_authorise(row(), says("captured")),
        answer_capture(row(), says("authorised")),
        answer_capture(row(), says("captured", captured_minor=99)),
        answer_void(row(), says("authorised")),
        answer_authorise(row(), says("authorised", amount_minor=99)),
        answer_refund(refund(1), row(), RefundSays(state="pending")),
    )
    for error in errors:
        assert isinstance(error, Bug | Unknown)
        assert str(error).startswith("t/o/")


def test_a_refusal_tells_the_providers_code_or_at_least_the_state() -> None:
    for answer in (answer_customer, answer_capture):
        assert answer(row(), says("declined", code="stolen")).code == "stolen"  # type: ignore[union-attr]
        assert answer(row(), says("expired")).code == "expired"  # type: ignore[union-attr]


def test_a_refund_of_what_is_not_there_is_refused_with_nothing_left() -> None:
    taken = row(captured_minor=100, refunded_minor=30, currency="USD")
    wishes = [refund(1, "r-1"), refund(1, "r-2", payment_key="t/o/pay/none")]
    refused = reserve_refunds({taken.key: taken}, wishes).refused
    assert refused[wishes[0].key] == RefundRefused(code="currency_differs", refundable_minor=70)
    assert refused[wishes[1].key] == RefundRefused(code="nothing_captured", refundable_minor=0)


def test_the_last_minor_unit_can_be_refunded() -> None:
    one = row(captured_minor=1)
    assert reserve_refunds({one.key: one}, [refund(1)]).reserved == {one.key: 1}
