"""What an account decides, without a database."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from everycent.domain import account, points
from everycent.domain.account import (
    AccountUnknown,
    BalanceCredited,
    BalanceDebited,
    BalanceFrozen,
    BalanceUnfrozen,
    CreditBalance,
    Deposit,
    FreezeBalance,
    Funds,
    Hold,
    InsufficientBalance,
    credit,
    debit,
    freeze,
    unfreeze,
)

ANN = ("t", "ann", "EUR")


def request(**other: Any) -> dict[str, Any]:
    return {
        "key": "t/o-1/authorise",
        "at": datetime(2026, 1, 2, 12, 0, tzinfo=UTC),
        "opened_on": date(2026, 1, 2),
        "account": "ann",
        "currency": "EUR",
        "amount_minor": 400,
        **other,
    }


def try_of(order: str, amount_minor: int) -> FreezeBalance:
    return FreezeBalance.model_validate(
        request(key=f"t/{order}/authorise", amount_minor=amount_minor)
    )


@pytest.mark.requirement("AC10.2")
@pytest.mark.parametrize("model", [FreezeBalance, Deposit, CreditBalance])
@pytest.mark.parametrize("amount", [4.0, 4.5, "4", True, None, float("nan")])
def test_an_amount_is_an_integer_of_minor_units_or_no_amount(
    model: type[BaseModel], amount: object
) -> None:
    """Not even a float that is whole, nor text, is taken for cents.

    Red when: the amount's type is not strict.
    """
    with pytest.raises(ValidationError, match="amount_minor"):
        model.model_validate(request(amount_minor=amount))


@pytest.mark.requirement("AC10.2")
@pytest.mark.parametrize("currency", [None, "", "eur", "EURO", "EUR\n"])
def test_an_amount_travels_with_its_currency(currency: str | None) -> None:
    """Red when: the currency is optional or unchecked."""
    for model in (FreezeBalance, Deposit, CreditBalance):
        assert model.model_fields["currency"].is_required()
        assert "currency" in model.HASHED
        with pytest.raises(ValidationError, match="currency"):
            model.model_validate(request(currency=currency))


@pytest.mark.requirement("AC10.2")
def test_no_message_of_account_or_points_has_a_float() -> None:
    """Red when: a field of any model is typed float."""
    models = [
        value
        for module in (account, points)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseModel)
    ]
    assert len(models) > 20
    for model in models:
        for name, field in model.model_fields.items():
            assert "float" not in str(field.annotation), f"{model.__name__}.{name}"


def test_freezing_is_first_come_first_served_and_names_what_is_missing() -> None:
    decided = freeze({ANN: Funds(1000, 0)}, [try_of("a", 600), try_of("b", 500), try_of("c", 400)])

    assert decided.answers == {
        "t/a/authorise": BalanceFrozen(amount_minor=600, available_minor=400),
        "t/b/authorise": InsufficientBalance(needed_minor=500, available_minor=400),
        "t/c/authorise": BalanceFrozen(amount_minor=400, available_minor=0),
    }
    assert decided.moved == {ANN: 1000}


def test_freezing_on_an_account_that_is_not_there_moves_nothing() -> None:
    decided = freeze({}, [try_of("a", 600)])

    assert decided.answers == {"t/a/authorise": AccountUnknown(account="ann", currency="EUR")}
    assert decided.moved == {}


def test_each_end_of_a_hold_answers_the_balance_after_it() -> None:
    funds = {ANN: Funds(100, 700)}
    holds = [Hold("t/a/authorise", ANN, 300), Hold("t/b/authorise", ANN, 400)]

    assert list(debit(funds, holds).answers.values()) == [
        BalanceDebited(amount_minor=300, available_minor=100, balance_minor=500),
        BalanceDebited(amount_minor=400, available_minor=100, balance_minor=100),
    ]
    assert list(unfreeze(funds, holds).answers.values()) == [
        BalanceUnfrozen(amount_minor=300, available_minor=400),
        BalanceUnfrozen(amount_minor=400, available_minor=800),
    ]


def test_credits_add_up_and_know_their_account() -> None:
    paid_in = [
        Deposit.model_validate(request(key="t/d-1/deposit")),
        Deposit.model_validate(request(key="t/d-2/deposit", account="bob")),
        Deposit.model_validate(request(key="t/d-3/deposit")),
    ]

    decided = credit({ANN: Funds(100, 50)}, paid_in)

    assert decided.answers == {
        "t/d-1/deposit": BalanceCredited(amount_minor=400, available_minor=500, balance_minor=550),
        "t/d-2/deposit": AccountUnknown(account="bob", currency="EUR"),
        "t/d-3/deposit": BalanceCredited(amount_minor=400, available_minor=900, balance_minor=950),
    }
    assert decided.moved == {ANN: 800}
