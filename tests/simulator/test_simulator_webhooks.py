"""Webhooks: signed, stored, sent again until taken, sometimes twice or late."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from everycent import clock
from everycent.errors import InvalidRequest
from everycent.gateways.payment_provider import SIGNATURE_HEADER, WebhookEvent, read_webhook

KEY = "t/o-1/pay"
SECRET = "whsec_of_this_test"
FIVE_MINUTES = timedelta(minutes=5)


@pytest.fixture
async def listening(rig: Any) -> Any:
    await rig.post("/admin/webhook", {"url": "http://shop.test/hooks", "secret": SECRET})
    return rig


async def test_a_webhook_is_signed_and_tells_how_the_payment_stands(listening: Any) -> None:
    await listening.captured()
    await listening.until_webhooks(3)
    events = [_read(request) for _, request in listening.webhooks]
    assert {event.event for event in events} == {
        "intent.created", "intent.authorised", "intent.captured",
    }  # fmt: skip
    (captured,) = (event for event in events if event.event == "intent.captured")
    assert (captured.intent.reference, captured.intent.captured_minor) == (KEY, 2_933)


async def test_a_forged_altered_or_stale_webhook_is_refused(listening: Any) -> None:
    await listening.open()
    await listening.until_webhooks(1)
    request = listening.webhooks[0][1]
    signature, now = request.headers[SIGNATURE_HEADER], clock.now()
    forgeries: list[dict[str, Any]] = [
        {"body": request.content.replace(b"2933", b"2934")},
        {"secret": "whsec_other"},
        {"signature": signature.replace("t=", "t=1")},
        {"signature": ""},
        {"signature": "t=now,v1=0"},
        {"at": now + timedelta(minutes=6)},
        {"at": now - timedelta(minutes=6)},
    ]
    true = {"body": request.content, "signature": signature, "secret": SECRET, "at": now}
    assert read_webhook(**true, tolerance=FIVE_MINUTES).intent.reference == KEY
    for forgery in forgeries:
        with pytest.raises(InvalidRequest):
            read_webhook(**{**true, **forgery}, tolerance=FIVE_MINUTES)


@pytest.mark.requirement("T25")
async def test_a_webhook_can_overtake_the_answer_to_the_create(listening: Any) -> None:
    """The event names our key before the call that made the payment has been answered.

    Red when: webhooks wait for the answer, or do not carry our reference.
    """
    await listening.rule(kind="delay", operation="create", seconds=60, times=1)
    calling = asyncio.create_task(listening.open(deadline_seconds=60))
    (event,) = await listening.until_webhooks(1)
    assert (event["kind"], event["intent"]["reference"]) == ("intent.created", KEY)
    assert not calling.done()
    calling.cancel()


@pytest.mark.requirement("AC18.2")
async def test_a_duplicate_webhook_is_the_same_event_twice(listening: Any) -> None:
    """Red when: the event is sent once, or the second has another id."""
    await listening.open(card_token="tok_duplicate_webhook_create")
    first, second = await listening.until_webhooks(2)
    assert first == second


@pytest.mark.requirement("AC18.2")
async def test_a_late_webhook_comes_after_later_ones(listening: Any) -> None:
    """Red when: the late event is sent in its turn."""
    await listening.rule(kind="late_webhook", operation="create", seconds=0.8, times=1)
    await listening.open()
    await listening.open("t/o-2/pay")
    events = await listening.until_webhooks(2)
    assert [event["intent"]["reference"] for event in events] == ["t/o-2/pay", KEY]


async def test_a_refused_webhook_is_sent_again_until_the_ladder_ends(listening: Any) -> None:
    listening.webhook_statuses.extend([500, 404, 200, 500, 500, 500])
    await listening.open()
    await listening.until_webhooks(3)
    await listening.until(lambda: _deliveries(listening, [("delivered", 3)]))
    await listening.open("t/o-2/pay")
    await listening.until(lambda: _deliveries(listening, [("delivered", 3), ("given_up", 3)]))


async def test_without_an_address_nothing_is_sent(rig: Any) -> None:
    await rig.open()
    assert await _deliveries(rig, [])


def _read(request: httpx.Request) -> WebhookEvent:
    return read_webhook(
        body=request.content, signature=request.headers[SIGNATURE_HEADER], secret=SECRET,
        at=clock.now(), tolerance=FIVE_MINUTES,
    )  # fmt: skip


async def _deliveries(rig: Any, expected: list[tuple[str, int]]) -> bool:
    rows = (await rig.http.get("/admin/deliveries")).json()["data"]
    return [(row["state"], row["attempts"]) for row in rows] == expected
