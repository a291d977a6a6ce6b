"""What the ledger decides, without a database."""

from datetime import UTC, date, datetime

import pytest
from pydantic import ValidationError

from everycent.domain.ledger import (
    Account,
    AccountBalance,
    AccountKind,
    AccountOpened,
    AccountTaken,
    AlreadyReversed,
    Entry,
    Leg,
    LimitExceeded,
    LimitRule,
    Movement,
    NotPosted,
    OpenAccount,
    Original,
    PostTransfer,
    ReverseTransfer,
    Transfer,
    TransferPending,
    TransferPosted,
    TransferVoided,
    assert_balanced,
    hold,
    open_accounts,
    post,
    reverse,
    settle,
    void,
)

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)
CASH, SALES = ("t", "cash", "EUR"), ("t", "sales", "EUR")


def leg(account: str, amount_minor: int, currency: str = "EUR") -> Leg:
    return Leg(account=account, amount_minor=amount_minor, currency=currency)


def sale(key: str, amount_minor: int) -> Transfer:
    return Transfer(key, NOON, (leg("cash", amount_minor), leg("sales", -amount_minor)))


def empty() -> dict[tuple[str, str, str], Account]:
    return {CASH: Account(), SALES: Account()}


def reversal(key: str, original_key: str) -> ReverseTransfer:
    return ReverseTransfer(key=key, at=NOON, opened_on=TODAY, original_key=original_key)


@pytest.mark.requirement("AC10.4")
@pytest.mark.parametrize(
    "legs",
    [
        (leg("cash", 10), leg("sales", -9)),
        (leg("cash", 10, "EUR"), leg("sales", -10, "USD")),
        (leg("cash", 10), leg("sales", -10), leg("cash", 1, "USD"), leg("sales", 1, "USD")),
    ],
)
def test_legs_that_do_not_sum_to_zero_in_every_currency_are_refused(legs: tuple[Leg, ...]) -> None:
    """At the door and again before anything is decided.

    Red when: the sums are not taken, or are taken over all currencies together.
    """
    with pytest.raises(AssertionError, match="is off by"):
        assert_balanced(legs)
    with pytest.raises(ValidationError, match="is off by"):
        PostTransfer(key="t/o-1/post", at=NOON, opened_on=TODAY, entries=legs)
    accounts = {("t", line.account, line.currency): Account() for line in legs}
    with pytest.raises(AssertionError, match="is off by"):
        post(accounts, [Transfer("t/o-1/post", NOON, legs)])


@pytest.mark.requirement("AC10.4")
def test_legs_balance_per_currency() -> None:
    """One transfer may carry two currencies.

    Red when: the currencies are mixed up.
    """
    assert_balanced((leg("a", 7), leg("b", -7), leg("a", -3, "USD"), leg("b", 3, "USD")))


@pytest.mark.requirement("AC10.2")
@pytest.mark.parametrize("amount", [1.0, 1.5, "1", True, None, 0, 10**15 + 1])
def test_an_amount_is_a_whole_number_of_minor_units_and_never_zero(amount: object) -> None:
    """Floats, texts and nothing are refused, also a float that happens to be whole.

    Red when: the amount is not strict.
    """
    with pytest.raises(ValidationError):
        Leg.model_validate({"account": "cash", "amount_minor": amount, "currency": "EUR"})


@pytest.mark.requirement("AC10.2")
@pytest.mark.parametrize("currency", [None, "", "eur", "EURO", "EU\n"])
def test_an_amount_travels_with_its_currency(currency: object) -> None:
    """A leg without a currency code cannot be made.

    Red when: the currency has a default or is any text.
    """
    fields = {"account": "cash", "amount_minor": 1, "currency": currency}
    with pytest.raises(ValidationError):
        Leg.model_validate({name: value for name, value in fields.items() if value is not None})


@pytest.mark.requirement("T31")
def test_each_transfer_of_a_batch_answers_with_the_balances_it_left() -> None:
    """The second sees the first.

    Red when: answers show the balances before the batch or after all of it.
    """
    decision = post(empty(), [sale("t/o-1/post", 30), sale("t/o-2/post", 12)])
    answers = [decision.answers[key] for key in ("t/o-1/post", "t/o-2/post")]
    assert [
        [balance.balance_minor for balance in answer.balances]
        for answer in answers
        if isinstance(answer, TransferPosted)
    ] == [[30, -30], [42, -42]]
    assert [entry.balance_after_minor for entry in decision.entries] == [30, -30, 42, -42]


def test_two_legs_on_one_account_follow_each_other() -> None:
    legs = (leg("cash", 5), leg("cash", 7), leg("sales", -12))
    decision = post(empty(), [Transfer("t/o-1/post", NOON, legs)])
    assert [entry.balance_after_minor for entry in decision.entries] == [5, 12, -12]
    assert decision.changed[CASH].debits_posted == 12


@pytest.mark.requirement("T8", "T32")
def test_what_is_pending_counts_against_the_limit_and_is_given_back_by_a_void() -> None:
    """Of 10 credits, 6 held leave 4; a void gives the 6 back.

    Red when: the limit looks at posted amounts only.
    """
    limited = Account(limit_rule=LimitRule.DEBITS_NOT_OVER_CREDITS, credits_posted=10)
    first = hold({CASH: limited, SALES: Account()}, [sale("t/o-1/hold", 6)])
    second = hold(empty() | first.changed, [sale("t/o-2/hold", 5)])
    assert second.answers["t/o-2/hold"] == LimitExceeded(
        account="cash", currency="EUR", needed_minor=5, available_minor=4
    )
    assert second.changed == {}
    third = void(empty() | first.changed, [sale("t/o-1/hold", 6)])
    assert third.changed[CASH] == limited
    assert not third.entries


def test_credits_are_limited_the_same_way() -> None:
    limited = Account(limit_rule=LimitRule.CREDITS_NOT_OVER_DEBITS, debits_posted=10)
    decision = post({CASH: Account(), SALES: limited}, [sale("t/o-1/post", 11)])
    assert decision.answers["t/o-1/post"] == LimitExceeded(
        account="sales", currency="EUR", needed_minor=11, available_minor=10
    )
    assert post({CASH: Account(), SALES: limited}, [sale("t/o-1/post", 10)]).entries


def test_a_refused_transfer_leaves_no_trace_on_its_other_accounts() -> None:
    limited = Account(limit_rule=LimitRule.DEBITS_NOT_OVER_CREDITS, credits_posted=10)
    batch = [sale("t/o-1/post", 11), sale("t/o-2/post", 10)]
    decision = post({CASH: limited, SALES: Account()}, batch)
    assert decision.changed[SALES].credits_posted == 10
    assert [entry.key for entry in decision.entries] == ["t/o-2/post"] * 2


@pytest.mark.requirement("T32")
def test_a_settlement_moves_what_is_pending_to_posted() -> None:
    """Both sides, and the entries appear only now.

    Red when: the pending side keeps the amount, or the hold already posts.
    """
    held = hold(empty(), [sale("t/o-1/hold", 6)])
    assert not held.entries
    settled = settle(held.changed, [sale("t/o-1/hold", 6)])
    assert settled.changed[CASH] == Account(debits_posted=6)
    assert settled.changed[SALES] == Account(credits_posted=6)
    assert [entry.balance_after_minor for entry in settled.entries] == [6, -6]


def test_a_hold_that_was_not_counted_stops_its_settlement() -> None:
    limited = Account(limit_rule=LimitRule.DEBITS_NOT_OVER_CREDITS, debits_pending=6)
    with pytest.raises(AssertionError, match="not counted"):
        settle({CASH: limited, SALES: Account()}, [sale("t/o-1/hold", 6)])


def test_of_two_reversals_in_one_batch_only_the_first_posts() -> None:
    originals = {"t/o-1/post": Original("CONFIRMED", sale("t/o-1/post", 6).legs)}
    requests = [
        reversal("t/o-1/reverse/a", "t/o-1/post"),
        reversal("t/o-1/reverse/b", "t/o-1/post"),
    ]
    decision = reverse(empty(), requests, originals, {})
    assert decision.changed[CASH].credits_posted == 6
    assert decision.answers["t/o-1/reverse/b"] == AlreadyReversed(
        original_key="t/o-1/post", reversed_by="t/o-1/reverse/a"
    )


def test_what_is_not_posted_cannot_be_reversed() -> None:
    originals = {"t/o-1/hold": Original("TRIED", None)}
    requests = [reversal("t/o-1/r/a", "t/o-1/hold"), reversal("t/o-1/r/b", "t/o-1/nothing")]
    decision = reverse({}, requests, originals, {})
    assert list(decision.answers.values()) == [
        NotPosted(original_key="t/o-1/hold", state="TRIED"),
        NotPosted(original_key="t/o-1/nothing", state=None),
    ]


@pytest.mark.parametrize("original_key", ["other/o-1/post", "t/o-1/reverse"])
def test_a_reversal_stays_in_its_shop_and_is_not_of_itself(original_key: str) -> None:
    with pytest.raises(ValidationError):
        reversal("t/o-1/reverse", original_key)


def opening(key: str, limit_rule: LimitRule) -> OpenAccount:
    return OpenAccount(
        key=key,
        at=NOON,
        opened_on=TODAY,
        account="cash",
        currency="EUR",
        account_kind=AccountKind.ASSET,
        limit_rule=limit_rule,
    )


def test_an_opened_account_keeps_its_kind_and_limit() -> None:
    batch = [
        opening("t/ledger/open/a", LimitRule.CREDITS_NOT_OVER_DEBITS),
        opening("t/ledger/open/b", LimitRule.NONE),
        opening("t/ledger/open/c", LimitRule.CREDITS_NOT_OVER_DEBITS),
    ]
    answers = list(open_accounts(empty(), batch).answers.values())
    assert [type(answer) for answer in answers] == [AccountOpened, AccountTaken, AccountOpened]


def test_an_account_that_is_over_the_limit_does_not_get_it() -> None:
    over = {CASH: Account(debits_posted=3, debits_pending=4, credits_posted=5)}
    decision = open_accounts(over, [opening("t/x/y", LimitRule.DEBITS_NOT_OVER_CREDITS)])
    assert decision.answers["t/x/y"] == LimitExceeded(
        account="cash", currency="EUR", needed_minor=7, available_minor=5
    )
    assert not decision.changed


# --- What exactly is answered and posted ---


def balance(place: tuple[str, str, str], **totals: int) -> AccountBalance:
    zero = dict.fromkeys(
        ("debits_posted", "credits_posted", "debits_pending", "credits_pending", "balance_minor"), 0
    )
    return AccountBalance.model_validate(
        {**zero, **totals, "account": place[1], "currency": place[2]}
    )


def test_a_posting_writes_each_leg_with_its_number_balance_and_time() -> None:
    legs = (leg("cash", 7), leg("sales", -7))
    decided = post(empty(), [Transfer("t/o-1/sale", NOON, legs)])
    assert decided.entries == [
        Entry("t/o-1/sale", 0, legs[0], 7, NOON),
        Entry("t/o-1/sale", 1, legs[1], -7, NOON),
    ]


def test_what_is_held_settled_and_voided_is_answered_with_its_balances() -> None:
    transfer = sale("t/o-1/sale", 7)
    first, second = transfer.places()
    held = hold(empty(), [transfer])
    assert held.answers[transfer.key] == TransferPending(
        balances=(balance(first, debits_pending=7), balance(second, credits_pending=7))
    )
    assert held.entries == []
    assert void(held.changed, [transfer]).answers[transfer.key] == TransferVoided(
        balances=(balance(first), balance(second))
    )
    settled = settle(held.changed, [transfer])
    assert settled.answers[transfer.key] == TransferPosted(
        balances=(
            balance(first, debits_posted=7, balance_minor=7),
            balance(second, credits_posted=7, balance_minor=-7),
        )
    )
    assert [entry.posted_at for entry in settled.entries] == [NOON, NOON]


def test_a_reversal_is_answered_and_posted_at_its_own_time() -> None:
    original = Original("CONFIRMED", (leg("cash", 7), leg("sales", -7)))
    request = reversal("t/o-1/back", "t/o-1/sale")
    decided = reverse(empty(), [request], {"t/o-1/sale": original}, {})
    assert decided.answers[request.key] == TransferPosted(
        balances=(
            balance(CASH, credits_posted=7, balance_minor=-7),
            balance(SALES, debits_posted=7, balance_minor=7),
        )
    )
    assert {entry.posted_at for entry in decided.entries} == {request.at}
    full = {**empty(), CASH: Account(limit_rule=LimitRule.CREDITS_NOT_OVER_DEBITS)}
    assert reverse(full, [request], {"t/o-1/sale": original}, {}).answers[request.key] == (
        LimitExceeded(account="cash", currency="EUR", needed_minor=7, available_minor=0)
    )


@pytest.mark.parametrize(
    ("rule", "limited", "free", "sign"),
    [
        (LimitRule.DEBITS_NOT_OVER_CREDITS, "debits", "credits", 1),
        (LimitRule.CREDITS_NOT_OVER_DEBITS, "credits", "debits", -1),
    ],
)
def test_a_limit_tells_what_was_needed_and_what_there_was(
    rule: LimitRule, limited: str, free: str, sign: int
) -> None:
    """Posted and pending both count, on the limited side; of the other only what is posted."""
    account = Account(
        limit_rule=rule,
        **{f"{free}_posted": 20, f"{limited}_posted": 5, f"{limited}_pending": 3},  # type: ignore[arg-type]
    )
    assert account.room_minor() == 12
    accounts = {**empty(), CASH: account}
    decided = post(accounts, [sale("t/o-1/fits", sign * 10), sale("t/o-2/not", sign * 4)])
    assert decided.answers["t/o-2/not"] == LimitExceeded(
        account="cash", currency="EUR", needed_minor=4, available_minor=2
    )


def test_an_account_without_a_limit_has_no_room_to_lose() -> None:
    assert Account(debits_posted=9).room_minor() == 0
    assert Account(debits_posted=9).moved(-4, Movement(posted=0, pending=1)).credits_pending == 4


def test_a_key_names_the_shop_by_its_first_part_only() -> None:
    assert sale("t/o-1/sale/again", 1).places()[0][0] == "t"


def test_an_account_that_has_another_kind_tells_which_and_where() -> None:
    taken = {**empty(), CASH: Account(kind=AccountKind.ASSET)}
    request = opening("t/ledger/open/cash", LimitRule.DEBITS_NOT_OVER_CREDITS)
    place = (request.tenant, request.account, request.currency)
    accounts = {**taken, place: Account(kind=AccountKind.EXPENSE)}
    assert open_accounts(accounts, [request]).answers[request.key] == AccountTaken(
        account=request.account, currency="EUR", account_kind=AccountKind.EXPENSE,
        limit_rule=LimitRule.NONE,
    )  # fmt: skip


def test_an_unbalanced_set_tells_by_how_much_it_is_off() -> None:
    with pytest.raises(AssertionError, match="EUR is off by 3 minor units"):
        assert_balanced((leg("cash", 10), leg("sales", -7)))
