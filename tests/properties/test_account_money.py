"""Random freezes, debits, unfreezes and credits: no minor unit appears or disappears."""

from datetime import UTC, date, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from everycent.domain.account import (
    AccountId,
    BalanceFrozen,
    CreditBalance,
    FreezeBalance,
    Funds,
    Hold,
    InsufficientBalance,
    credit,
    debit,
    freeze,
    unfreeze,
)

ANN: AccountId = ("t", "ann", "EUR")
AMOUNTS = st.lists(st.integers(min_value=1, max_value=500), max_size=8)
FUNDS = st.builds(
    Funds,
    available_minor=st.integers(min_value=0, max_value=1500),
    frozen_minor=st.integers(min_value=0, max_value=1500),
)


def _fields(n: int, amount_minor: int) -> dict[str, Any]:
    return {
        "key": f"t/o-{n}/authorise",
        "at": datetime(2026, 1, 2, 12, 0, tzinfo=UTC),
        "opened_on": date(2026, 1, 2),
        "account": "ann",
        "currency": "EUR",
        "amount_minor": amount_minor,
    }


@given(funds=FUNDS, amounts=AMOUNTS)
def test_what_is_frozen_was_available_and_each_answer_tells_what_is_left(
    funds: Funds, amounts: list[int]
) -> None:
    requests = [FreezeBalance(**_fields(n, amount)) for n, amount in enumerate(amounts)]
    decided = freeze({ANN: funds}, requests)

    left = funds.available_minor
    for request in requests:
        answer = decided.answers[request.key]
        if isinstance(answer, InsufficientBalance):
            assert request.amount_minor > left
        else:
            left -= request.amount_minor
            assert isinstance(answer, BalanceFrozen)
        assert answer.available_minor == left
    assert decided.moved.get(ANN, 0) == funds.available_minor - left
    assert left >= 0


@given(available=st.integers(min_value=0, max_value=1500), amounts=AMOUNTS)
def test_holds_end_debited_or_unfrozen_to_the_cent(available: int, amounts: list[int]) -> None:
    holds = [Hold(f"t/o-{n}/authorise", ANN, amount) for n, amount in enumerate(amounts)]
    funds = {ANN: Funds(available, sum(amounts))}

    spent, back = debit(funds, holds), unfreeze(funds, holds)

    assert spent.moved.get(ANN, 0) == back.moved.get(ANN, 0) == sum(amounts)
    if holds:
        assert spent.answers[holds[-1].key].balance_minor == available
        assert back.answers[holds[-1].key].available_minor == available + sum(amounts)


@given(funds=FUNDS, amounts=AMOUNTS)
def test_credits_raise_balance_and_available_alike(funds: Funds, amounts: list[int]) -> None:
    requests = [CreditBalance(**_fields(n, amount)) for n, amount in enumerate(amounts)]
    decided = credit({ANN: funds}, requests)

    assert decided.moved.get(ANN, 0) == sum(amounts)
    for answer in decided.answers.values():
        assert answer.kind == "balance_credited"
        assert answer.balance_minor - answer.available_minor == funds.frozen_minor
