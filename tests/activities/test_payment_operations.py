"""Payments as their callers see them: the yes, the no and the repeat of each operation."""

import asyncio
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.payment import PaymentActivities
from everycent.domain.payment import (
    Authorised,
    Captured,
    CaptureRefused,
    CustomerPaid,
    PaidAnyway,
    PaymentDeclined,
    RedirectOpened,
    Refunded,
    RefundRefused,
    Voided,
)
from everycent.errors import (
    AlreadyCancelled,
    AlreadyConfirmed,
    Bug,
    EverycentError,
    KeyReused,
    NotConfirmable,
    NothingTried,
    NotPaidYet,
)


async def test_a_card_is_authorised_captured_and_refunded_once_however_often_it_is_asked(
    till: Any,
) -> None:
    for _ in range(3):
        authorised = await till.authorise()
        assert isinstance(authorised, Authorised)
    assert (await till.row()).status == "AUTHORISED"
    for _ in range(3):
        captured = await till.capture()
        assert captured == Captured(amount_minor=2_933, provider_id=authorised.provider_id)
    assert ((await till.row()).state, (await till.row()).status) == ("CONFIRMED", "CAPTURED")
    for _ in range(3):
        refunded = await till.refund(933)
        assert isinstance(refunded, Refunded)
    assert await till.authorise() == authorised  # A late duplicate gets the first answer.
    assert (await till.row()).refunded_minor == 933
    assert len(await till.intents()) == 1


async def test_each_call_is_written_before_it_is_made_and_answered_after(till: Any) -> None:
    await till.rule("hold", "confirm", seconds=60)
    asking = asyncio.create_task(till.authorise())
    await till.until_held()
    call = await till.call("confirm")
    assert (call.answer, call.open_sends) == (None, 1)
    assert call.may_arrive_until - call.sent_at == till.times.item + till.times.arrival
    assert (await till.row()).status == "SENT"
    await till.release()
    await asking
    assert (await till.call("confirm")).answer["state"] == "authorised"
    assert (await till.call("create")).answer["state"] == "requires_confirmation"


@pytest.mark.requirement("T13", "AC18.2")
async def test_a_declined_card_is_a_stored_value_and_is_not_asked_again(till: Any) -> None:
    """Red when: a decline is raised, is retried, or leaves the row undecided."""
    for _ in range(2):
        answer = await till.authorise(card_token="tok_insufficient_funds")
        assert answer == PaymentDeclined(code="insufficient_funds")
    row = await till.row()
    assert (row.state, row.status) == ("REFUSED", "REFUSED")
    with pytest.raises(NotConfirmable):
        await till.capture()
    assert await till.void() == Voided(amount_minor=0)
    row = await till.row()
    assert (row.state, row.status) == ("CANCELLED", "REFUSED")


async def test_a_provider_that_refuses_to_open_a_payment_is_a_decline(till: Any) -> None:
    await till.rule("decline", "create", code="blocked_merchant")
    assert await till.authorise() == PaymentDeclined(code="blocked_merchant")


async def test_another_amount_under_a_taken_key_is_refused(till: Any) -> None:
    await till.authorise()
    with pytest.raises(KeyReused):
        await till.authorise(amount_minor=1)
    await till.captured("o-2")
    await till.refund(10, payment_key=till.key("o-2"))
    with pytest.raises(KeyReused):
        await till.refund(11, payment_key=till.key("o-2"))


async def test_a_void_before_its_authorisation_leaves_a_tombstone_and_calls_nobody(
    till: Any,
) -> None:
    await till.rule("down", "*", times=None, seconds=60)
    assert await till.void() == Voided(amount_minor=0)
    assert await till.void() == Voided(amount_minor=0)
    with pytest.raises(AlreadyCancelled):
        await till.authorise()
    assert await till.intents() == []


async def test_a_voided_payment_takes_no_money_any_more(till: Any) -> None:
    await till.authorise()
    for _ in range(2):
        assert await till.void() == Voided(amount_minor=2_933)
    row = await till.row()
    assert (row.state, row.status, row.cancelling) == ("CANCELLED", "VOIDED", False)
    with pytest.raises(NotConfirmable):
        await till.capture()
    with pytest.raises(AlreadyCancelled):
        await till.authorise()


async def test_a_captured_payment_cannot_be_voided(till: Any) -> None:
    await till.captured()
    with pytest.raises(AlreadyConfirmed):
        await till.void()
    assert (await till.row()).state == "CONFIRMED"


async def test_a_capture_without_a_try_is_a_bug_and_writes_nothing(till: Any) -> None:
    with pytest.raises(NothingTried):
        await till.capture()
    assert await till.read("SELECT 1 FROM payment WHERE key = :key", key=till.key()) == []


async def test_an_expired_authorisation_refuses_the_capture_for_good(till: Any) -> None:
    await till.authorise()
    await till.http.post("/admin/clock", json={"advance_seconds": 8 * 24 * 3600})
    for _ in range(2):
        assert await till.capture() == CaptureRefused(code="authorisation_expired")
    row = await till.row()
    assert (row.state, row.status) == ("TRIED", "REFUSED")
    assert await till.void() == Voided(amount_minor=2_933)
    assert (await till.row()).status == "VOIDED"


async def test_a_declined_capture_is_refused_for_good(till: Any) -> None:
    await till.authorise()
    await till.rule("decline", "capture", code="issuer_withdrew")
    for _ in range(2):
        assert await till.capture() == CaptureRefused(code="issuer_withdrew")
    await till.void()


async def test_a_redirect_is_paid_by_the_customer_and_accepted_by_the_capture(till: Any) -> None:
    opened = await till.authorise(method="redirect", card_token=None)
    assert isinstance(opened, RedirectOpened)
    assert opened.url.endswith(f"/pay/{opened.provider_id}")
    with pytest.raises(NotPaidYet):
        await till.await_customer()
    assert await till.customer_pays() == 200
    paid = CustomerPaid(amount_minor=2_933, provider_id=opened.provider_id)
    assert [await till.await_customer(), await till.await_customer()] == [paid, paid]
    assert (await till.row()).captured_minor == 0  # Looking moves nothing.
    assert isinstance(await till.capture(), Captured)
    assert await till.await_customer() == paid


async def test_an_unpaid_redirect_is_not_captured_and_not_refused(till: Any) -> None:
    await till.authorise(method="redirect", card_token=None)
    with pytest.raises(EverycentError, match="neither taken nor refused"):
        await till.capture()
    assert (await till.row()).capture_refusal is None


async def test_a_voided_redirect_cannot_be_paid(till: Any) -> None:
    await till.authorise(method="redirect", card_token=None)
    assert await till.void() == Voided(amount_minor=0)
    assert await till.customer_pays() == 409
    with pytest.raises(AlreadyCancelled):
        await till.await_customer()


async def test_a_redirect_declined_by_the_bank_is_told(till: Any) -> None:
    await till.authorise(method="redirect", card_token=None)
    await till.rule("decline", "customer_pays", code="bank_said_no")
    assert await till.customer_pays() == 402
    assert await till.await_customer() == PaymentDeclined(code="bank_said_no")
    assert await till.capture() == CaptureRefused(code="bank_said_no")
    await till.void()


async def test_money_paid_before_the_void_is_told_booked_and_refundable(till: Any) -> None:
    opened = await till.authorise(method="redirect", card_token=None)
    await till.customer_pays()
    paid = PaidAnyway(amount_minor=2_933, provider_id=opened.provider_id)
    assert [await till.void(), await till.void()] == [paid, paid]
    row = await till.row()
    assert (row.state, row.status, row.captured_minor) == ("CANCELLED", "CAPTURED", 2_933)
    assert isinstance(await till.refund(2_933), Refunded)


async def test_nobody_awaits_the_customer_of_a_card_or_of_nothing(till: Any) -> None:
    with pytest.raises(NothingTried):
        await till.await_customer()
    await till.authorise()
    with pytest.raises(Bug):
        await till.await_customer()


@pytest.mark.requirement("T7")
async def test_one_refund_asked_for_often_and_at_once_moves_money_once(till: Any) -> None:
    """Red when: a repeat is sent under another key, or reserves the money again."""
    await till.captured()
    for _ in range(3):
        await till.refund(500)
    answers = await asyncio.gather(*(till.refund(700, "r-2") for _ in range(20)))
    assert len(set(answers)) == 1
    assert (await till.row()).refunded_minor == 1_200


@pytest.mark.requirement("T7", "AC10.6")
async def test_twenty_refunds_at_once_never_exceed_what_was_captured(till: Any) -> None:
    """Red when: what is left is read without reserving it."""
    await till.captured()
    answers = await asyncio.gather(*(till.refund(400, f"r-{n}") for n in range(20)))
    assert sum(isinstance(a, Refunded) for a in answers) == 7
    assert {a for a in answers if isinstance(a, RefundRefused)} == {
        RefundRefused(code="exceeds_captured", refundable_minor=133)
    }
    assert (await till.row()).refunded_minor == 2_800


@pytest.mark.requirement("T7")
async def test_a_refused_refund_changes_no_balance(till: Any) -> None:
    """Red when: a provider's no leaves the reserved amount as refunded."""
    await till.captured()
    await till.rule("decline", "refund", code="card_closed")
    no = RefundRefused(code="card_closed", refundable_minor=2_933)
    assert [await till.refund(2_933), await till.refund(2_933)] == [no, no]
    assert (await till.row()).refunded_minor == 0
    assert isinstance(await till.refund(2_933, "r-2"), Refunded)
    over = RefundRefused(code="exceeds_captured", refundable_minor=0)
    assert await till.refund(1, "r-3") == over


async def test_a_refund_of_nothing_or_in_another_currency_is_refused(till: Any) -> None:
    nothing = RefundRefused(code="nothing_captured", refundable_minor=0)
    assert await till.refund(1, "r-1") == nothing
    await till.authorise()
    assert await till.refund(1, "r-2") == nothing
    await till.capture()
    dollars = RefundRefused(code="currency_differs", refundable_minor=2_933)
    assert await till.refund(1, "r-3", currency="USD") == dollars


async def test_a_batch_answers_each_item_and_calls_side_by_side(till: Any) -> None:
    tokens = ["tok_visa", "tok_declined", "tok_server_error"]
    wanted = [till.wanted(f"o-{n}", card_token=tokens[n % 3]) for n in range(30)]
    answers = await till.payments.authorise_all([*wanted, wanted[0]])
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == ["Authorised", "PaymentDeclined", "Unknown"] * 10 + ["Authorised"]
    again = await till.payments.authorise_all(wanted)
    assert [type(a).__name__ for a in again] == ["Authorised", "PaymentDeclined", "Authorised"] * 10
    voids = await till.payments.void_all([till.give_up(f"o-{n}") for n in range(30)])
    assert [v.amount_minor for v in voids] == [2_933, 0, 2_933] * 10


async def test_no_more_calls_are_under_way_than_the_bound(till: Any) -> None:
    await till.rule("hold", "create", times=None, seconds=60)
    bounded = PaymentActivities(till.database, till.provider, times=till.times, calls_at_once=2)
    asking = asyncio.create_task(bounded.authorise_all([till.wanted(f"o-{n}") for n in range(5)]))
    await till.until_held(2)
    assert (await till.http.get("/admin/held")).json() == {"held": 2}
    await till.heal()
    await till.release()
    assert all(isinstance(answer, Authorised) for answer in await asking)


@pytest.mark.requirement("T13", "I25")
async def test_temporal_is_told_what_to_retry(till: Any) -> None:
    """Red when: a decline is an error, an Unknown is not retried, or a Bug is."""
    run = ActivityEnvironment().run
    declined = till.wanted("o-1", card_token="tok_declined")
    assert isinstance(await run(till.payments.authorise, declined), PaymentDeclined)
    silent = till.wanted("o-2", card_token="tok_server_error")
    with pytest.raises(ApplicationError) as unknown:
        await run(till.payments.authorise, silent)
    assert (unknown.value.type, unknown.value.non_retryable) == ("Unknown", False)
    with pytest.raises(ApplicationError) as bug:
        await run(till.payments.capture, till.take("o-9"))
    assert (bug.value.type, bug.value.non_retryable) == ("NothingTried", True)
