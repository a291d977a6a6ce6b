"""The one decision per order, what a valid order is, and what its total is."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everycent.domain.order import (
    Decide,
    Decision,
    OrderLine,
    OrderStatus,
    PlaceOrder,
    Verdict,
    differing_fields,
    move,
)
from everycent.errors import InvalidRequest

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
DECISIONS = list(Decision)
GOOD: dict[str, Any] = {
    "order_id": "o-1",
    "customer": "c-1",
    "currency": "EUR",
    "lines": [{"sku": "LAMP", "units": 2, "amount_minor": 2933}],
    "payment": {"method": "card", "card_token": "tok_ok"},
}


def asked(to: Decision, refusal: dict[str, Any] | None = None) -> Decide:
    return Decide.model_validate(
        {
            "tenant": "t", "order_id": "o-1", "at": NOON, "to": to, "run": "r-1",
            "attempt": "first", "status": OrderStatus.CANCELLED, "reason": "r",
            "pivot_refusal": refusal,
        }
    )  # fmt: skip


@pytest.mark.requirement("AC18.5")
@pytest.mark.parametrize("standing", DECISIONS)
@pytest.mark.parametrize("to", [Decision.COMMITTING, Decision.ABORTING])
@pytest.mark.parametrize("refused", [False, True])
def test_a_decision_moves_only_along_its_arrows(
    standing: Decision, to: Decision, refused: bool
) -> None:
    """From OPEN anywhere; from COMMITTING back only with the pivot's refusal; else it stands.

    Red when: `move` lets a decided order be decided again.
    """
    before = Verdict(decision=standing, attempt="second")
    after = move(before, asked(to, {"kind": "capture_refused"} if refused else None))
    takes_back = standing is Decision.COMMITTING and to is Decision.ABORTING and refused
    if standing is Decision.OPEN or takes_back:
        assert after.decision is to
    else:
        assert after == before


@given(st.lists(st.sampled_from([Decision.COMMITTING, Decision.ABORTING]), min_size=1))
def test_whoever_asks_first_decides_and_all_others_adopt(wishes: list[Decision]) -> None:
    verdict = Verdict(decision=Decision.OPEN)
    for wish in wishes:
        verdict = move(verdict, asked(wish))
    assert verdict.decision is wishes[0]


@pytest.mark.requirement("T28")
@given(st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=50))
def test_the_total_is_the_sum_of_the_lines_as_quoted(amounts: list[int]) -> None:
    """No unit price, no rounding: what was quoted per line adds up to what is due.

    Red when: `total_minor` multiplies an amount with its units.
    """
    lines = tuple(OrderLine(sku="S", units=3, amount_minor=amount) for amount in amounts)
    order = PlaceOrder.model_validate({**GOOD, "lines": lines})
    assert order.total_minor == order.due_minor == sum(amounts)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"order_id": "a b"}, "order_id"),
        ({"order_id": "ä"}, "order_id"),
        ({"order_id": "o-1\n"}, "order_id"),
        ({"tenant": "a/b"}, "tenant"),
        ({"currency": "eur"}, "currency"),
        ({"lines": []}, "lines"),
        ({"lines": [{"sku": "L", "units": 0, "amount_minor": 1}]}, "lines.0.units"),
        ({"lines": [{"sku": "L", "units": 1, "amount_minor": 1.5}]}, "lines.0.amount_minor"),
        ({"lines": [{"sku": "L", "units": 1, "amount_minor": -1}]}, "lines.0.amount_minor"),
        ({"lines": [{"sku": "L", "units": 1, "amount_minor": "1"}]}, "lines.0.amount_minor"),
        ({"payment": None}, "order"),
        ({"points": 3000}, "order"),
        ({"color": "red"}, "color"),
        ({"mode": "tcc"}, "mode"),
        ({"payment": {"method": "card", "card_token": "a\x00b"}}, "card_token"),
    ],
)  # fmt: skip
def test_a_wrong_order_is_refused_at_the_door_with_its_field(
    changes: dict[str, Any], field: str
) -> None:
    import json

    with pytest.raises(InvalidRequest) as refused:
        PlaceOrder.from_door(json.dumps({**GOOD, **changes}))
    assert field in str(refused.value)


@pytest.mark.requirement("T34")
def test_every_field_that_moves_money_or_goods_is_compared() -> None:
    """Another amount, quantity, payment or customer under the same id is another order.

    Red when: a field of the order is missing in `HASHED`.
    """
    order = PlaceOrder.model_validate(GOOD)
    stored = order.model_dump(mode="json")
    assert differing_fields(stored, order) == ()
    everything = set(PlaceOrder.model_fields) - {"tenant", "order_id", "mode"}
    assert set(PlaceOrder.HASHED) == everything
    other = order.model_copy(update={"points": 1, "currency": "USD"})
    assert differing_fields(stored, other) == ("currency", "points")


def test_a_moved_decision_keeps_what_its_request_says_and_who_shares_it() -> None:
    """A commit names the payment that pays; taken back, it is still known which one was meant."""
    commit = asked(Decision.COMMITTING)
    standing = move(Verdict(decision=Decision.OPEN, attempt="other", shared=True), commit)
    assert standing == Verdict(
        decision=Decision.COMMITTING, attempt="first", status=OrderStatus.CANCELLED, reason="r",
        shared=True,
    )  # fmt: skip
    back = asked(Decision.ABORTING, {"kind": "capture_refused"}).model_copy(
        update={"attempt": "third"}
    )
    assert move(standing, back) == standing.model_copy(update={"decision": Decision.ABORTING})
    assert move(Verdict(decision=Decision.OPEN), back).attempt is None


def test_a_step_of_an_order_has_its_key_and_verdicts_agree_whoever_shares_them() -> None:
    order = PlaceOrder.model_validate({**GOOD, "tenant": "t"})
    assert order.step_key("reserve") == "t/o-1/reserve"
    assert order.step_key("pay", "second") == "t/o-1/pay/second"
    one, other = Verdict(decision=Decision.OPEN), Verdict(decision=Decision.OPEN, shared=True)
    assert one.agrees_with(other)
    assert not one.agrees_with(Verdict(decision=Decision.ABORTING))
