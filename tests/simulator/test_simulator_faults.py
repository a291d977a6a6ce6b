"""Every fault the simulator can bring, by rule, by header and by card token."""

import asyncio
from typing import Any

import pytest

from everycent.errors import Transient, Unknown
from everycent.gateways.payment_provider import Declined, Intent, NotFound, Refund, Refused

KEY = "t/o-1/pay"


@pytest.mark.requirement("AC18.2")
async def test_a_declined_card_moves_nothing_and_stays_declined(rig: Any) -> None:
    """Red when: a decline is answered and the authorisation booked all the same."""
    opened = await rig.open(card_token="tok_insufficient_funds")
    for _ in range(2):
        answer = await rig.provider.confirm(opened.provider_id, key=KEY, deadline_seconds=5)
        assert isinstance(answer, Declined)
        assert answer.code == "insufficient_funds"
    assert (await rig.look()).state == "declined"


async def test_each_operation_can_be_declined_by_rule(rig: Any) -> None:
    await rig.rule(kind="decline", operation="create", reference="t/bad-*", times=1)
    refused = await rig.provider.create_intent(
        "t/bad-1/pay", amount_minor=1, currency="EUR", method="card", card_token=None,
        capture="manual", deadline_seconds=5,
    )  # fmt: skip
    assert isinstance(refused, Declined)
    held = await rig.authorised()
    await rig.rule(kind="decline", operation="cancel", code="not_now", times=1)
    answer = await rig.provider.void(held.provider_id, key=KEY, deadline_seconds=5)
    assert isinstance(answer, Declined)
    assert answer.code == "not_now"
    assert (await rig.look()).state == "authorised"
    await rig.rule(kind="decline", operation="capture", reference=KEY, times=1)
    answer = await rig.provider.capture(
        held.provider_id, key=KEY, amount_minor=2_933, deadline_seconds=5
    )
    assert isinstance(answer, Declined)
    assert answer.intent is not None
    assert (answer.intent.state, answer.intent.captured_minor) == ("declined", 0)


async def test_a_declined_refund_moves_nothing_and_another_key_may_succeed(rig: Any) -> None:
    paid = await rig.captured()
    await rig.rule(kind="decline", operation="refund", reference="t/o-1/refund/a")
    answers = [
        await rig.provider.refund(
            paid.provider_id, key=f"t/o-1/refund/{name}", amount_minor=2_933, deadline_seconds=5
        )
        for name in "ab"
    ]
    assert [answer.kind for answer in answers] == ["declined", "refund"]
    failed = await rig.provider.look_up_refund("t/o-1/refund/a", deadline_seconds=5)
    assert isinstance(failed, Refund)
    assert failed.state == "failed"
    assert (await rig.look()).refunded_minor == 2_933


@pytest.mark.requirement("AC18.2", "T25")
@pytest.mark.parametrize("way", ["rule", "token"])
async def test_done_and_never_answered_is_found_by_our_key(rig: Any, way: str) -> None:
    """The provider takes the money and never says so; the look-up by our key tells, the repeat too.

    Red when: the work is not done, or the look-up does not know our key.
    """
    token = "tok_timeout_after_create" if way == "token" else "tok_visa"
    if way == "rule":
        await rig.rule(kind="timeout_after", operation="create", reference=KEY, times=1)
    with pytest.raises(Unknown):
        await rig.open(card_token=token, capture="automatic", deadline_seconds=1)
    found = await rig.look()
    again = await rig.open(card_token=token, capture="automatic")
    assert again.provider_id == found.provider_id
    assert again.replayed


@pytest.mark.requirement("AC18.2")
async def test_not_done_and_never_answered_leaves_nothing(rig: Any) -> None:
    """Red when: the work is done although the fault says it is not."""
    opened = await rig.open(card_token="tok_timeout_before")
    with pytest.raises(Unknown):
        await rig.provider.confirm(opened.provider_id, key=KEY, deadline_seconds=1)
    assert (await rig.look()).state == "requires_confirmation"
    answer = await rig.provider.confirm(opened.provider_id, key=KEY, deadline_seconds=5)
    assert isinstance(answer, Intent)
    assert (answer.state, answer.replayed) == ("authorised", False)


@pytest.mark.requirement("AC18.2")
async def test_a_delayed_answer_is_done_at_once(rig: Any) -> None:
    """Red when: the work waits with the answer."""
    held = await rig.authorised()
    await rig.rule(kind="delay", operation="capture", seconds=30, times=1)
    with pytest.raises(Unknown):
        await rig.provider.capture(
            held.provider_id, key=KEY, amount_minor=2_933, deadline_seconds=1
        )
    assert (await rig.look()).captured_minor == 2_933


@pytest.mark.requirement("AC18.2")
@pytest.mark.parametrize("late", ["confirm", "capture"])
async def test_a_held_call_that_arrives_after_the_cancel_is_refused(rig: Any, late: str) -> None:
    """The client gave up and cancelled; its first call is executed afterwards and takes nothing.

    Red when: a held request dies with its client, or a cancelled payment can still be taken.
    """
    opened = await (rig.authorised() if late == "capture" else rig.open(capture="automatic"))
    await rig.rule(kind="hold", operation=late, seconds=60, times=1)
    path = f"/v1/intents/{opened.provider_id}/{late}"
    gone = asyncio.create_task(rig.post(path, **{"Idempotency-Key": "late"}))
    await rig.until(lambda: _is_held(rig, 1))
    gone.cancel()
    voided = await rig.provider.void(opened.provider_id, key=KEY, deadline_seconds=5)
    assert voided.state == "cancelled"
    await rig.post("/admin/held/release")
    await rig.until(lambda: _is_held(rig, 0))
    kept = await rig.post(path, **{"Idempotency-Key": "late"})
    assert kept.headers["Idempotent-Replayed"] == "true"  # So the held one was executed.
    assert kept.json()["error"]["code"] == "intent_cancelled"
    assert (await rig.look()).captured_minor == 0


async def test_a_held_create_after_create_and_cancel_opens_nothing_new(rig: Any) -> None:
    await rig.rule(kind="hold", operation="create", seconds=60, times=1)
    first = asyncio.create_task(rig.open())
    await rig.until(lambda: _is_held(rig, 1))
    assert isinstance(await rig.provider.look_up(KEY, deadline_seconds=5), NotFound)
    ours = await rig.open()
    await rig.provider.void(ours.provider_id, key=KEY, deadline_seconds=5)
    await rig.post("/admin/held/release")
    late = await first
    assert (late.provider_id, late.replayed) == (ours.provider_id, True)
    assert (await rig.look()).state == "cancelled"


async def test_a_held_call_goes_by_itself_when_its_time_is_over(rig: Any) -> None:
    await rig.rule(kind="hold", operation="create", seconds=0.05, times=1)
    opened = await rig.open(deadline_seconds=30)
    assert (await rig.look()).provider_id == opened.provider_id
    assert await _is_held(rig, 0)


@pytest.mark.requirement("AC18.2")
async def test_down_says_that_nothing_was_done_and_ends_by_itself(rig: Any) -> None:
    """Red when: a request is executed while the provider says that it is down."""
    await rig.rule(kind="down", seconds=0.2)
    with pytest.raises(Transient):
        await rig.open()

    async def up() -> bool:
        try:
            return isinstance(await rig.provider.look_up(KEY, deadline_seconds=5), NotFound)
        except Transient:
            return False

    await rig.until(up)


async def test_a_server_error_is_no_answer_though_the_work_is_done(rig: Any) -> None:
    await rig.rule(kind="server_error", operation="create", times=1)
    with pytest.raises(Unknown):
        await rig.open()
    assert (await rig.look()).reference == KEY


async def test_a_header_brings_a_fault_to_one_request_alone(rig: Any) -> None:
    opened = await rig.open()
    path = f"/v1/intents/{opened.provider_id}/confirm"
    fault = {"Simulate-Fault": "decline; code=suspected_fraud", "Idempotency-Key": "a"}
    declined = await rig.post(path, **fault)
    assert (declined.status_code, declined.json()["error"]["code"]) == (402, "suspected_fraud")
    await rig.authorised("t/o-2/pay")
    unknown = await rig.post(path, **{"Simulate-Fault": "gremlins", "Idempotency-Key": "b"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "invalid_fault")


async def test_rules_strike_where_they_say_as_often_as_they_say(rig: Any) -> None:
    await rig.rule(kind="server_error", operation="lookup", reference="t/a-*/pay", times=2)
    assert isinstance(await rig.provider.look_up("t/b-1/pay", deadline_seconds=5), NotFound)
    for _ in range(2):
        with pytest.raises(Transient):
            await rig.provider.look_up("t/a-1/pay", deadline_seconds=5)
    assert isinstance(await rig.provider.look_up("t/a-1/pay", deadline_seconds=5), NotFound)
    rules = (await rig.http.get("/admin/faults")).json()["data"]
    assert [rule["times_left"] for rule in rules] == [0]
    await rig.rule(kind="down", times=1)
    assert (await rig.http.delete("/admin/faults")).json() == {"deleted": 2}
    assert isinstance(await rig.provider.look_up(KEY, deadline_seconds=5), NotFound)


async def test_a_customer_can_be_declined_on_the_page(rig: Any) -> None:
    opened = await rig.open(method="redirect", card_token="tok_decline_customer_pays")
    await rig.provider.confirm(opened.provider_id, key=KEY, deadline_seconds=5)
    await rig.post(f"/v1/intents/{opened.provider_id}/customer_pays")
    capture = await rig.provider.capture(
        opened.provider_id, key=KEY, amount_minor=2_933, deadline_seconds=5
    )
    assert isinstance(capture, Refused)
    assert capture.code == "intent_declined"


async def _is_held(rig: Any, count: int) -> bool:
    return bool((await rig.http.get("/admin/held")).json() == {"held": count})
