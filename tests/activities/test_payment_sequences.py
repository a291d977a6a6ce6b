"""Whatever happens to a payment in whatever order: 0 <= refunded <= captured, here and there."""

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everycent.errors import Unknown

COUNTER = itertools.count()
FAULTS = st.sampled_from(
    [
        (kind, operation)
        for kind in ("timeout_after", "timeout_before", "server_error", "down", "decline")
        for operation in ("create", "confirm", "capture", "cancel", "refund", "lookup")
        # A void that the provider declines stays declined under its key: a person has to act.
        if (kind, operation) not in (("decline", "lookup"), ("decline", "cancel"))
    ]
)
STEPS = st.one_of(
    st.sampled_from([("authorise", 0), ("capture", 0), ("void", 0), ("twice", 0)]),
    st.tuples(st.just("refund"), st.sampled_from([1, 400, 700, 1_000])),
    st.tuples(st.just("same refund"), st.just(300)),
    st.tuples(st.just("fault"), FAULTS),
)
PAID = st.sampled_from([[], [("authorise", 0), ("capture", 0)]])


@pytest.mark.requirement("AC10.6", "T7")
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(begin=PAID, more=st.lists(STEPS, min_size=3, max_size=12))
async def test_no_sequence_refunds_more_than_was_captured(
    till: Any, begin: list[tuple[str, Any]], more: list[tuple[str, Any]]
) -> None:
    """After the faults end, every step sent again comes to an answer, and both books agree.

    Red when: any order of pay, duplicate, refund and time-out breaks captured - refunded >= 0.
    """
    order = f"o-{next(COUNTER)}"
    sent: list[tuple[str, Any]] = []
    for number, (step, value) in enumerate([*begin, *more]):
        if step == "fault":
            kind, operation = value
            await till.rule(kind, operation, seconds=0 if kind != "down" else None)
            continue
        sent.append((step, (value, f"r-{number}" if step == "refund" else "r-same")))
        await take_step(till, order, sent[-1])
        await check_bounds(till, order)
    await till.heal()
    for step_again in sent:
        for answer in await take_step(till, order, step_again):
            assert not isinstance(answer, Unknown), (step_again, answer)
    await check_bounds(till, order)
    await till.audit()


async def take_step(till: Any, order: str, step: tuple[str, Any]) -> list[Any]:
    name, (amount, request) = step
    if name == "authorise":
        return list(await till.payments.authorise_all([till.wanted(order, amount_minor=1_000)]))
    if name == "capture":
        return list(await till.payments.capture_all([till.take(order)]))
    if name == "void":
        return list(await till.payments.void_all([till.give_up(order)]))
    if name == "twice":
        wanted = till.wanted(order, amount_minor=1_000)
        both = await asyncio.gather(*(till.payments.authorise_all([wanted]) for _ in range(2)))
        return [answer for [answer] in both]
    back = till.back(
        amount, request, key=till.key(order, f"refund/{request}"), payment_key=till.key(order)
    )
    return list(await till.payments.refund_all([back]))


async def check_bounds(till: Any, order: str) -> None:
    rows = await till.read(
        "SELECT captured_minor, refunded_minor FROM payment WHERE key = :key", key=till.key(order)
    )
    for row in rows:
        assert 0 <= row.refunded_minor <= row.captured_minor <= 1_000
    for intent in await till.intents(order):
        assert 0 <= intent["refunded_minor"] <= intent["captured_minor"] <= 1_000
