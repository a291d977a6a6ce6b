"""The simulated provider's rules about money, without faults."""

import asyncio
import csv
import io
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from everycent import clock
from everycent.gateways.payment_provider import Intent, Refund, Refused
from everycent.simulator.intents import fee_of

WANTED = {
    "amount_minor": 2_933,
    "currency": "EUR",
    "reference": "t/o-1/pay",
    "method": "card",
    "card_token": "tok_visa",
    "capture": "manual",
}


@pytest.mark.requirement("AC18.2")
async def test_a_card_payment_is_authorised_captured_and_refunded(rig: Any) -> None:
    """The provider can succeed, and its books say how much it took and gave back.

    Red when: a capture or a refund is answered without being booked.
    """
    paid = await rig.captured()
    assert (paid.state, paid.captured_minor) == ("captured", 2_933)
    refund = await rig.provider.refund(
        paid.provider_id, key="t/o-1/refund/r-1", amount_minor=933, deadline_seconds=5
    )
    assert isinstance(refund, Refund)
    books = (await rig.http.get("/admin/intents")).json()
    assert (books["captured_minor"], books["refunded_minor"]) == (2_933, 933)
    assert [row["reference"] for row in books["data"]] == ["t/o-1/pay"]


async def test_automatic_capture_takes_the_money_with_the_confirmation(rig: Any) -> None:
    opened = await rig.open(capture="automatic")
    answer = await rig.provider.confirm(opened.provider_id, key="t/o-1/pay", deadline_seconds=5)
    assert (answer.state, answer.captured_minor) == ("captured", 2_933)


async def test_a_redirect_payment_waits_for_the_customer_on_a_page(rig: Any) -> None:
    opened = await rig.open(method="redirect", card_token=None)
    waiting = await rig.provider.confirm(opened.provider_id, key="t/o-1/pay", deadline_seconds=5)
    assert waiting.state == "requires_action"
    page = await rig.http.get(waiting.redirect_url)
    assert "Pay now" in page.text
    done = await rig.http.post(waiting.redirect_url)
    assert "This payment is authorised" in done.text
    assert (await rig.look()).state == "authorised"
    again = await rig.post(f"/v1/intents/{opened.provider_id}/customer_pays")
    assert again.json()["error"]["code"] == "no_payment_awaited"


async def test_a_cancelled_payment_refuses_confirm_capture_and_the_customer(rig: Any) -> None:
    for key, method in (("t/o-1/pay", "card"), ("t/o-2/pay", "redirect")):
        opened = await rig.open(key, method=method)
        voided = await rig.provider.void(opened.provider_id, key=key, deadline_seconds=5)
        assert voided.state == "cancelled"
        for act in ("confirm", "capture", "customer_pays"):
            path = f"/v1/intents/{opened.provider_id}/{act}"
            refused = await rig.post(path, **{"Idempotency-Key": f"{key}-{act}"})
            assert refused.status_code == 409
            assert refused.json()["error"]["code"] == "intent_cancelled"
            assert refused.json()["error"]["intent"]["captured_minor"] == 0


async def test_a_captured_payment_refuses_the_cancel_and_shows_how_it_stands(rig: Any) -> None:
    paid = await rig.captured()
    answer = await rig.provider.void(paid.provider_id, key="t/o-1/pay", deadline_seconds=5)
    assert isinstance(answer, Refused)
    assert answer.code == "already_captured"
    assert answer.intent == paid


async def test_more_than_authorised_cannot_be_captured(rig: Any) -> None:
    held = await rig.authorised()
    answer = await rig.provider.capture(
        held.provider_id, key="t/o-1/pay", amount_minor=2_934, deadline_seconds=5
    )
    assert isinstance(answer, Refused)
    assert answer.code == "capture_exceeds_authorised"
    assert (await rig.look()).captured_minor == 0


async def test_refunds_never_exceed_the_capture_even_at_once(rig: Any) -> None:
    """Ten refunds of a tenth and one of a cent at the same moment give back exactly the capture.

    Red when: a refund is booked without looking at what was refunded before.
    """
    paid = await rig.captured(amount_minor=1_000)
    answers = await asyncio.gather(
        *(
            rig.provider.refund(
                paid.provider_id, key=f"t/o-1/refund/r-{n}", amount_minor=100, deadline_seconds=5
            )
            for n in range(11)
        )
    )
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert [answer.code for answer in refused] == ["refund_exceeds_captured"]
    assert (await rig.look()).refunded_minor == 1_000


async def test_a_repeated_key_is_answered_with_the_first_answer(rig: Any) -> None:
    first = await rig.post("/v1/intents", WANTED, **{"Idempotency-Key": "k"})
    again = await rig.post("/v1/intents", WANTED, **{"Idempotency-Key": "k"})
    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers


async def test_another_request_under_a_key_is_refused(rig: Any) -> None:
    await rig.post("/v1/intents", WANTED, **{"Idempotency-Key": "k"})
    other = await rig.post("/v1/intents", {**WANTED, "amount_minor": 1}, **{"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len((await rig.http.get("/admin/intents")).json()["data"]) == 1


async def test_a_definite_refusal_is_kept_under_its_key(rig: Any) -> None:
    opened = await rig.open()
    path = f"/v1/intents/{opened.provider_id}/capture"
    early = await rig.post(path, **{"Idempotency-Key": "c"})
    assert early.json()["error"]["code"] == "not_authorised"
    await rig.provider.confirm(opened.provider_id, key="t/o-1/pay", deadline_seconds=5)
    late = await rig.post(path, **{"Idempotency-Key": "c"})
    assert late.json() == early.json()


async def test_one_key_sent_many_times_at_once_is_executed_once(rig: Any) -> None:
    opened = await asyncio.gather(*(rig.open() for _ in range(10)))
    assert len({intent.provider_id for intent in opened}) == 1
    assert sum(not intent.replayed for intent in opened) == 1


async def test_a_key_is_forgotten_after_its_lifetime(rig: Any) -> None:
    first = await rig.open()
    await rig.post("/admin/clock", {"advance_seconds": 24 * 3600 - 60})
    assert (await rig.open()).provider_id == first.provider_id
    await rig.post("/admin/clock", {"advance_seconds": 120})
    assert (await rig.open()).provider_id != first.provider_id


async def test_an_authorisation_lapses_by_the_simulators_clock(rig: Any) -> None:
    held = await rig.authorised()
    await rig.post("/admin/clock", {"advance_seconds": 7 * 24 * 3600 + 1})
    answer = await rig.provider.capture(
        held.provider_id, key="t/o-1/pay", amount_minor=2_933, deadline_seconds=5
    )
    assert isinstance(answer, Refused)
    assert answer.code == "authorisation_expired"
    assert answer.intent is not None
    assert answer.intent.is_over_without_money


async def test_the_clock_can_be_set_moved_and_let_go(rig: Any) -> None:
    told = await rig.post("/admin/clock", {"now": "2030-02-03T04:05:06Z"})
    assert told.json()["now"].startswith("2030-02-03T04:05:06")
    told = await rig.post("/admin/clock", {"advance_seconds": 60})
    assert told.json()["now"].startswith("2030-02-03T04:06:0")
    told = await rig.post("/admin/clock", {})
    assert abs((datetime.fromisoformat(told.json()["now"]) - clock.now()).total_seconds()) < 5


async def test_the_statement_of_a_day_has_its_captures_and_refunds(rig: Any) -> None:
    await rig.post("/admin/clock", {"now": "2030-02-03T23:59:00Z"})
    paid = await rig.captured()
    await rig.rule(kind="decline", operation="refund", times=1)
    for key, amount in (("t/o-1/refund/no", 5), ("t/o-1/refund/yes", 33)):
        refund = await rig.provider.refund(
            paid.provider_id, key=key, amount_minor=amount, deadline_seconds=5
        )
    await rig.post("/admin/clock", {"now": "2030-02-04T00:00:00Z"})
    await rig.captured("t/o-2/pay")
    text = (await rig.http.get("/v1/statements/2030-02-03")).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [
        (r["reference"], r["provider_id"], r["kind"], r["amount_minor"], r["fee_minor"])
        for r in rows
    ] == [
        ("t/o-1/pay", paid.provider_id, "capture", "2933", "69"),
        ("t/o-1/refund/yes", refund.provider_id, "refund", "33", "0"),
    ]
    assert {(r["currency"], r["at"][:10]) for r in rows} == {("EUR", "2030-02-03")}
    assert (await rig.http.get("/v1/statements/yesterday")).status_code == 400


def test_the_fee_is_whole_minor_units_rounded_half_up() -> None:
    assert [fee_of(n) for n in (1, 33, 34, 2_933, 10_000)] == [25, 25, 26, 69, 175]


async def test_the_books_are_listed_in_pages(rig: Any) -> None:
    for number in range(5):
        await rig.open(f"t/o-{number}/pay")
    await rig.open("other/o-1/pay")
    seen: list[str] = []
    after: int | None = 0
    while after is not None:
        query = {"reference": "t/*", "limit": 2, "after": after}
        page = (await rig.http.get("/admin/intents", params=query)).json()
        seen += [row["reference"] for row in page["data"]]
        after = page["next"]
    assert seen == [f"t/o-{number}/pay" for number in range(5)]


@pytest.mark.parametrize(
    "change",
    [
        {"amount_minor": 0}, {"amount_minor": 1.5}, {"amount_minor": "5"}, {"currency": "euro"},
        {"reference": ""}, {"method": "cash"}, {"surprise": 1},
    ],
    ids=str,
)  # fmt: skip
async def test_an_invalid_request_is_told_and_not_kept(rig: Any, change: dict[str, Any]) -> None:
    bad = await rig.post("/v1/intents", {**WANTED, **change}, **{"Idempotency-Key": "k"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_request")
    good = await rig.post("/v1/intents", WANTED, **{"Idempotency-Key": "k"})
    assert good.status_code == 200


async def test_a_key_a_known_intent_and_the_api_key_are_asked_for(rig: Any) -> None:
    assert (await rig.post("/v1/intents", WANTED)).status_code == 400
    missing = await rig.post("/v1/intents/int_none/confirm", **{"Idempotency-Key": "k"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    foreign = await rig.http.get("/v1/intents/x", headers={"Authorization": "Bearer no"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (401, "bad_api_key")
    health: httpx.Response = await rig.http.get("/healthz")
    assert health.json() == {"status": "ok"}


async def test_a_payment_is_found_by_our_reference_and_by_its_id(rig: Any) -> None:
    opened = await rig.open()
    found = (await rig.http.get("/v1/intents", params={"reference": "t/o-1/pay"})).json()["data"]
    assert [intent["id"] for intent in found] == [opened.provider_id]
    by_id = await rig.provider.read_intent(opened.provider_id, deadline_seconds=5)
    assert isinstance(by_id, Intent)
    assert datetime.fromisoformat(found[0]["created_at"]).tzinfo == UTC
