"""Calls that were not answered, were cut or overtaken: one charge or none, and no wrong no."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text

from activities.payment import PaymentActivities
from everycent.database.engine import Database
from everycent.domain.payment import (
    Authorised,
    Captured,
    PaymentDeclined,
    RedirectOpened,
    Refunded,
    RefundRefused,
    Voided,
)
from everycent.errors import AlreadyCancelled, EverycentError, Transient, Unknown
from everycent.settings import PoolSettings, Settings

SILENCES = ("timeout_after", "timeout_before", "server_error")


@pytest.mark.requirement("AC18.2", "T25", "I25")
@pytest.mark.parametrize("operation", ["create", "confirm"])
@pytest.mark.parametrize("fault", SILENCES)
async def test_an_authorisation_without_an_answer_is_in_doubt_until_it_is_found(
    till: Any, fault: str, operation: str
) -> None:
    """Red when: silence is taken for a no, or the retry opens another payment."""
    await till.rule(fault, operation)
    with pytest.raises(Unknown):
        await till.authorise()
    row = await till.row()
    assert (row.state, row.status, row.try_answer) == ("TRIED", "UNKNOWN", None)
    assert isinstance(await till.authorise(), Authorised)
    assert (await till.row()).status == "AUTHORISED"
    assert isinstance(await till.capture(), Captured)


@pytest.mark.requirement("AC18.2", "T25", "I25")
@pytest.mark.parametrize("fault", SILENCES)
async def test_a_capture_without_an_answer_is_neither_taken_nor_refused(
    till: Any, fault: str
) -> None:
    """Red when: an Unknown capture is stored as CaptureRefused, or captured twice."""
    await till.authorise()
    await till.rule(fault, "capture")
    with pytest.raises(Unknown):
        await till.capture()
    row = await till.row()
    assert (row.state, row.status, row.capture_refusal) == ("TRIED", "UNKNOWN", None)
    assert isinstance(await till.capture(), Captured)
    assert (await till.row()).status == "CAPTURED"


@pytest.mark.requirement("AC18.2", "T27")
@pytest.mark.parametrize("fault", SILENCES)
async def test_a_void_without_an_answer_stays_cancelling_until_it_is_sure(
    till: Any, fault: str
) -> None:
    """Red when: the row is CANCELLED before the provider has given the payment up."""
    await till.authorise()
    await till.rule(fault, "cancel")
    with pytest.raises(Unknown):
        await till.void()
    row = await till.row()
    assert (row.state, row.cancelling, row.end_answer) == ("TRIED", True, None)
    assert await till.void() == Voided(amount_minor=2_933)
    assert (await till.row()).state == "CANCELLED"


@pytest.mark.requirement("AC18.2", "T7", "T25")
@pytest.mark.parametrize("fault", SILENCES)
async def test_a_refund_without_an_answer_keeps_its_money_reserved_until_it_is_found(
    till: Any, fault: str
) -> None:
    """Red when: the doubt frees the reserved money, or the retry refunds again."""
    await till.captured()
    await till.rule(fault, "refund")
    with pytest.raises(Unknown):
        await till.refund(2_000)
    assert (await till.row()).refunded_minor == 2_000
    assert isinstance(await till.refund(1_000, "r-2"), RefundRefused)
    assert isinstance(await till.refund(2_000), Refunded)
    assert len(await till.refunds()) == 1


@pytest.mark.requirement("T27", "I25")
@pytest.mark.parametrize("operation", ["create", "confirm"])
@pytest.mark.parametrize("fault", SILENCES)
async def test_a_payment_in_doubt_can_be_voided(till: Any, fault: str, operation: str) -> None:
    """Red when: the void of an unanswered payment believes that nothing was opened."""
    await till.rule(fault, operation)
    with pytest.raises(Unknown):
        await till.authorise()
    # What was held is known to the provider alone: the confirmation that took effect held it.
    held = 2_933 if operation == "confirm" and fault != "timeout_before" else 0
    assert await till.void() == Voided(amount_minor=held)
    assert [intent["state"] for intent in await till.intents()] == ["cancelled"]
    assert (await till.call("confirm")).answer["state"] == "cancelled"
    with pytest.raises(AlreadyCancelled):
        await till.authorise()


@pytest.mark.requirement("AC18.2", "I25")
async def test_a_provider_that_is_down_leaves_no_doubt(till: Any) -> None:
    """Red when: what never left counts as sent, or what may have left as never sent."""
    await till.rule("down", "create")
    with pytest.raises(Transient):
        await till.authorise()
    assert [(await till.call(name)).open_sends for name in ("create", "confirm")] == [0, 0]
    await till.rule("timeout_after", "create")
    with pytest.raises(Unknown):
        await till.authorise()
    await till.rule("down", "*", times=None, seconds=60)
    with pytest.raises(Unknown):  # The first call may have happened, whatever the second says.
        await till.authorise()
    await till.heal()
    assert isinstance(await till.authorise(), Authorised)


async def test_an_order_can_be_cancelled_while_the_provider_is_down(till: Any) -> None:
    await till.rule("down", "*", times=None, seconds=60)
    with pytest.raises(Transient):
        await till.authorise()
    assert await till.void() == Voided(amount_minor=0)
    await till.heal()
    with pytest.raises(AlreadyCancelled):
        await till.authorise()
    assert await till.intents() == []


@pytest.mark.requirement("T25")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("authorise", "create_intent"),
        ("authorise", "confirm"),
        ("decline", "confirm"),
        ("redirect", "confirm"),
        ("capture", "capture"),
        ("void", "void"),
        ("void in doubt", "void"),
        ("refund", "refund"),
    ],
)
async def test_a_crash_around_any_call_is_healed_by_the_same_step_sent_again(
    till: Any, step: str, call: str, after: bool
) -> None:
    """Red when: the answer is stored without being asked for again, or the call is made twice."""
    cut = till.cut(call, after=after)
    if step in ("capture", "void"):
        await till.authorise()
    if step == "void in doubt":
        await till.rule("timeout_after", "create")
        with pytest.raises(Unknown):
            await till.authorise()
    if step == "refund":
        await till.captured()
    with pytest.raises(Exception, match=call) as crash:
        await run_step(till, cut, step)
    assert not isinstance(crash.value, EverycentError)
    for _ in range(2):
        [answer] = await run_step(till, till.payments, step)
        assert isinstance(answer, ANSWERS[step])
    assert len(await till.intents()) == 1
    assert len(await till.refunds()) == (step == "refund")


@pytest.mark.requirement("I11")
@pytest.mark.parametrize("kept", [False, True], ids=["lost", "kept"])
@pytest.mark.parametrize("nth", [1, 2], ids=["before the call", "after the call"])
@pytest.mark.parametrize("step", ["authorise", "capture", "void", "refund"])
async def test_a_commit_in_doubt_is_settled_by_the_same_step_sent_again(
    till: Any, step: str, nth: int, kept: bool
) -> None:
    """Red when: the repeat of a half written step calls the provider under another key."""
    if step in ("capture", "void"):
        await till.authorise()
    if step == "refund":
        await till.captured()
    with pytest.raises(Unknown):
        await run_step(till, till.doubtful(nth, kept=kept), step)
    [answer] = await run_step(till, till.payments, step)
    assert isinstance(answer, ANSWERS[step])
    assert len(await till.intents()) == 1
    assert len(await till.refunds()) == (step == "refund")


@pytest.mark.requirement("I25")
async def test_an_answer_that_cannot_be_stored_is_unknown_and_not_transient(
    till: Any, settings: Settings
) -> None:
    """Red when: the database's failure after the call is told as 'nothing happened'."""
    await till.authorise()
    impatient = Database(
        settings.database["payment"], PoolSettings(size=1, lock_timeout_seconds=0.05)
    )
    late = till.late("capture")
    asking = asyncio.create_task(till.behind(late, impatient).capture_all([till.take()]))
    await late.has_answered.wait()
    async with till.database.transaction() as tx:
        locked = text("SELECT 1 FROM payment WHERE key = :key FOR UPDATE")
        await tx.execute(locked, {"key": till.key()})
        late.gate.set()
        with pytest.raises(Unknown, match="not stored"):
            await asking
    await impatient.close()
    assert isinstance(await till.capture(), Captured)


async def test_ten_authorisations_at_once_charge_once(till: Any) -> None:
    answers = await asyncio.gather(*(till.authorise() for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)
    captured = await asyncio.gather(*(till.capture() for _ in range(10)))
    assert all(answer == captured[0] for answer in captured)
    assert len(await till.intents()) == 1


async def test_ten_voids_at_once_give_one_answer(till: Any) -> None:
    await till.authorise()
    answers = await asyncio.gather(*(till.void() for _ in range(10)))
    assert answers == [Voided(amount_minor=2_933)] * 10


@pytest.mark.requirement("T27", "T25")
@pytest.mark.parametrize("operation", ["create", "confirm"])
async def test_a_call_that_arrives_after_the_void_is_refused_by_the_provider(
    till: Any, operation: str
) -> None:
    """Red when: the void leaves the payment open, or the late answer is stored."""
    await till.rule("hold", operation, seconds=60)
    asking = asyncio.create_task(till.authorise())
    await till.until_held()
    assert await till.void() == Voided(amount_minor=0)
    await till.release()  # Only now the provider executes what was on its way.
    with pytest.raises(AlreadyCancelled):
        await asking
    assert [intent["state"] for intent in await till.intents()] == ["cancelled"]


@pytest.mark.requirement("T27", "T25")
@pytest.mark.parametrize("call", ["create_intent", "confirm"])
async def test_a_call_whose_process_dies_after_the_void_opens_nothing(till: Any, call: str) -> None:
    """Red when: the void of a payment that is not found yet leaves its key unused."""
    zombie = till.zombie(call)
    asking = asyncio.create_task(till.behind(zombie).authorise_all([till.wanted()]))
    await zombie.is_leaving.wait()
    assert await till.void() == Voided(amount_minor=0)
    zombie.gate.set()
    with pytest.raises(Exception, match=call):
        await asking
    assert [intent["state"] for intent in await till.intents()] == ["cancelled"]


@pytest.mark.requirement("T27")
async def test_an_answer_that_comes_after_the_void_is_given_up_and_not_believed(till: Any) -> None:
    """Red when: the late answer makes the cancelled row AUTHORISED."""
    late = till.late("confirm")
    asking = asyncio.create_task(till.behind(late).authorise_all([till.wanted()]))
    await late.has_answered.wait()
    assert await till.void() == Voided(amount_minor=2_933)
    late.gate.set()
    [answer] = await asking
    assert isinstance(answer, AlreadyCancelled)
    assert (await till.row()).state == "CANCELLED"


@pytest.mark.requirement("T27")
async def test_who_comes_back_to_a_cancelling_row_voids_before_it_answers(till: Any) -> None:
    """Red when: the late authorisation leaves its hold to somebody else, or stores it."""
    late = till.late("confirm")
    asking = asyncio.create_task(till.behind(late).authorise_all([till.wanted()]))
    await late.has_answered.wait()
    await till.rule("hold", "cancel", seconds=60)
    voiding = asyncio.create_task(till.void())
    await till.until_held()  # The void is written, its call has not arrived.
    late.gate.set()
    [answer] = await asking
    assert isinstance(answer, AlreadyCancelled)
    assert [intent["state"] for intent in await till.intents()] == ["cancelled"]
    assert (await till.row()).cancelling
    await till.release()
    assert await voiding == Voided(amount_minor=2_933)


async def test_a_retry_of_an_authorisation_that_is_being_cancelled_sends_nothing(
    till: Any,
) -> None:
    await till.rule("timeout_before", "create")
    with pytest.raises(Unknown):
        await till.authorise()
    await till.rule("down", "*", times=None, seconds=60)
    with pytest.raises(Unknown):
        await till.void()
    await till.heal()
    with pytest.raises(AlreadyCancelled):
        await till.authorise()
    assert await till.intents() == []
    assert await till.void() == Voided(amount_minor=0)


async def test_a_capture_never_overtakes_a_void_that_has_begun(till: Any) -> None:
    await till.authorise()
    await till.rule("hold", "cancel", seconds=60)
    voiding = asyncio.create_task(till.void())
    await till.until_held()
    with pytest.raises(EverycentError, match="being cancelled"):
        await till.capture()
    await till.release()
    assert await voiding == Voided(amount_minor=2_933)


ANSWERS: dict[str, type] = {
    "authorise": Authorised,
    "decline": PaymentDeclined,
    "redirect": RedirectOpened,
    "capture": Captured,
    "void": Voided,
    "void in doubt": Voided,
    "refund": Refunded,
}


async def run_step(till: Any, payments: PaymentActivities, step: str) -> Sequence[Any]:
    if step == "capture":
        return await payments.capture_all([till.take()])
    if step.startswith("void"):
        return await payments.void_all([till.give_up()])
    if step == "refund":
        return await payments.refund_all([till.back(1_000)])
    token = "tok_declined" if step == "decline" else "tok_visa"
    method = "redirect" if step == "redirect" else "card"
    return await payments.authorise_all([till.wanted(card_token=token, method=method)])
