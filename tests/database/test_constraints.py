"""Each rule of the tables, broken by hand as the owner, is refused by its name."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from everycent.database.engine import Database
from everycent.settings import ServiceName
from tests.database import break_rows
from tests.database.mode_rows import BROKEN


class Rule(NamedTuple):
    """A constraint and the statements that lead to it: all but the last are allowed."""

    service: ServiceName
    name: str
    statements: tuple[str, ...]


def rules(service: ServiceName, *broken: tuple[str, str | tuple[str, ...]]) -> list[Rule]:
    return [Rule(service, name, (how,) if isinstance(how, str) else how) for name, how in broken]


def insert(table: str, **values: str | int | None) -> str:
    """Return an INSERT; texts are SQL literals already where they begin with a quote or colon."""
    columns = ", ".join(values)
    literals = ", ".join("NULL" if v is None else str(v) for v in values.values())
    return f"INSERT INTO {table} ({columns}) VALUES ({literals})"


DAY, AT, KEY = "'2026-01-02'", "'2026-01-02T12:00Z'", ":t || '/o/step'"


def stock(**units: int) -> str:
    return insert("stock", tenant=":t", sku="'LAMP'", **units)


def line(**more: str | int) -> str:
    return insert(
        "reservation_line", **{"key": KEY, "line": 1, "sku": "'LAMP'", "units": 1, **more}
    )


INVENTORY = rules(
    "inventory",
    ("stock_pkey", (stock(), stock())),
    ("stock_free_not_negative", stock(free=-1, held=1)),
    ("stock_held_not_negative", stock(free=1, held=-1)),
    ("stock_sold_not_negative", stock(free=1, sold=-1)),
    ("stock_written_off_not_negative", stock(free=1, written_off=-1)),
    ("stock_adds_up", stock(received=1)),
    ("reservation_line_pkey", (line(), line())),
    ("reservation_line_units_positive", line(units=0)),
)


def account(**more: str | int) -> str:
    return insert("account", **{"tenant": ":t", "account": "'a'", "currency": "'EUR'", **more})


def hold(table: str = "balance_hold", **more: str | int | None) -> str:
    values: dict[str, Any] = {
        "key": KEY, "opened_on": DAY, "state": "'TRIED'", "request_hash": "'h'", "hash_version": 1,
        "account": "'a'", "currency": "'EUR'", "amount_minor": 100,
    }  # fmt: skip
    return insert(table, **{**values, **more})


def held(change: str) -> str:
    return f"UPDATE balance_hold SET {change} WHERE key = {KEY}"


ACCOUNT = rules(
    "account",
    ("account_pkey", (account(), account())),
    ("account_currency_is_a_code", account(currency="'eur'")),
    (
        "account_balance_not_negative",  # The others imply it, so one of them is taken away first.
        (
            "ALTER TABLE account DROP CONSTRAINT account_available_not_negative",
            account(balance=-1, available=-1),
        ),
    ),
    ("account_available_not_negative", account(available=-1, frozen=1)),
    ("account_frozen_not_negative", account(available=1, frozen=-1)),
    ("account_adds_up", account(balance=1)),
    ("balance_hold_amount_positive", hold(amount_minor=0)),
    ("balance_credit_kind_is_known", hold("balance_credit", kind="'gift'")),
    # The fence itself, shown on one of its tables.
    ("balance_hold_pkey", (hold(), hold())),
    (
        "balance_hold_state_is_known",
        ("ALTER TABLE balance_hold DISABLE TRIGGER balance_hold_arrows", hold(state="'LOST'")),
    ),
    ("balance_hold_hash_unless_tombstone", hold(request_hash=None)),
    ("balance_hold_end_is_answered", (hold(), held("state = 'REFUSED'"))),
    ("balance_hold_begins_tried_or_cancelled", hold(state="'CONFIRMED'")),
    ("balance_hold_request_is_fixed", (hold(), held("amount_minor = 1"))),
    ("balance_hold_request_is_fixed", (hold(), held("opened_on = '2026-01-03'"))),
    ("balance_hold_answer_is_fixed", (hold(), held("try_answer = '1'"), held("try_answer = '2'"))),
    ("balance_hold_answer_is_fixed", (hold(), held("end_answer = '1'"), held("end_answer = '2'"))),
    ("balance_hold_state_moves_forward", (hold(state="'CANCELLED'"), held("state = 'TRIED'"))),
    ("balance_hold_state_moves_forward", (hold(try_answer="'1'"), held("state = 'REFUSED'"))),
    ("balance_hold_state_moves_forward", (hold(), held("state = 'CONFIRMED'"))),
)


def purse(**more: int) -> str:
    return insert("points_account", tenant=":t", customer="'c'", **more)


def points(table: str = "points_hold", **more: str | int) -> str:
    values: dict[str, Any] = {
        "key": KEY, "opened_on": DAY, "state": "'TRIED'", "request_hash": "'h'", "hash_version": 1,
        "customer": "'c'", "points": 1,
    }  # fmt: skip
    return insert(table, **{**values, **more})


POINTS = rules(
    "points",
    ("points_account_pkey", (purse(), purse())),
    ("points_account_available_not_negative", purse(available=-1)),
    ("points_account_frozen_not_negative", purse(frozen=-1)),
    ("points_account_debt_not_negative", purse(debt=-1)),
    ("points_account_debt_is_paid_first", purse(debt=1, available=1)),
    ("points_hold_points_positive", points(points=0)),
    ("points_booking_kind_is_known", points("points_booking", kind="'gift'")),
)


def books(**more: str | int) -> str:
    return insert(
        "ledger_account", **{"tenant": ":t", "account": "'a'", "currency": "'EUR'", **more}
    )


def leg(*amounts: int, first: int = 0, currency: str = "EUR", key: str = KEY) -> str:
    rows = (
        f"({key}, {n}, 'a', '{currency}', {minor})" for n, minor in enumerate(amounts, start=first)
    )
    into = "INSERT INTO transfer_leg (key, leg, account, currency, amount_minor)"
    return f"{into} VALUES {', '.join(rows)}"


def entry(*amounts: int, seq: int = 10**15, currency: str = "EUR", key: str = KEY) -> str:
    rows = (
        f"({seq + n}, {key}, {n}, 'a', '{currency}', {minor}, 0, {AT})"
        for n, minor in enumerate(amounts)
    )
    return (
        "INSERT INTO entry (seq, key, leg, account, currency, amount_minor, balance_after_minor,"
        f" posted_at) OVERRIDING SYSTEM VALUE VALUES {', '.join(rows)}"
    )


def reversal(key: str, original: str) -> str:
    return insert("reversal", key=f":t || '/{key}'", original_key=f":t || '/{original}'")


def change(table: str) -> str:
    return f"UPDATE {table} SET key = key WHERE starts_with(key, :t)"


LEDGER = rules(
    "ledger",
    ("ledger_account_pkey", (books(), books())),
    ("ledger_account_currency_is_a_code", books(currency="'eur'")),
    ("ledger_account_kind_is_known", books(kind="'hope'")),
    ("ledger_account_limit_rule_is_known", books(limit_rule="'some'")),
    *(
        (f"ledger_account_{total}_not_negative", books(**{total: -1}))
        for total in ("debits_posted", "credits_posted", "debits_pending", "credits_pending")
    ),
    *(
        (
            f"ledger_account_{one}_not_over_{other}",
            books(limit_rule=f"'{one}_not_over_{other}'", **{f"{one}_pending": 1}),
        )
        for one, other in (("debits", "credits"), ("credits", "debits"))
    ),
    ("transfer_leg_pkey", (leg(1, -1), leg(1, -1))),
    ("transfer_leg_currency_is_a_code", leg(1, -1, currency="eur")),
    ("transfer_leg_amount_not_zero", leg(0)),
    ("transfer_leg_balances", leg(1, -2)),
    ("transfer_leg_append_only", (leg(1, -1), change("transfer_leg"))),
    ("entry_pkey", (entry(1, -1), entry(1, -1, seq=10**15 + 9))),
    ("entry_in_order_of_its_account", (entry(1, -1), entry(1, -1, key=":t || '/o/other'"))),
    ("entry_currency_is_a_code", entry(1, -1, currency="eur")),
    ("entry_amount_not_zero", entry(0)),
    ("entry_balances", entry(1, 1)),
    ("entry_append_only", (entry(1, -1), change("entry"))),
    ("entry_append_only", "TRUNCATE entry"),
    # Also in a session that plays the replica, where triggers do not fire unless told to.
    (
        "entry_append_only",
        ("SET LOCAL session_replication_role = replica", "DELETE FROM entry WHERE false"),
    ),
    ("reversal_pkey", (reversal("r", "1"), reversal("r", "2"))),
    ("reversal_once_per_original", (reversal("r1", "1"), reversal("r2", "1"))),
    ("reversal_not_of_itself", reversal("r", "r")),
    ("reversal_append_only", (reversal("r", "1"), change("reversal"))),
)


def order(**more: str | int) -> str:
    values: dict[str, Any] = {
        "tenant": ":t", "order_id": "'o'", "customer": "'c'", "currency": "'EUR'", "total_minor": 1,
        "request": "'{}'", "request_hash": "'h'", "hash_version": 1, "driver": "'d'", "run": "'r'",
        "opened_at": AT, "opened_on": DAY, "window_ends_at": AT, "moved_at": AT,
    }  # fmt: skip
    return insert("shop_order", **{**values, **more})


def ordered(change: str) -> str:
    return f"UPDATE shop_order SET {change} WHERE tenant = :t"


def withdrawn(**more: str) -> str:
    nothing = dict.fromkeys(
        ("customer", "currency", "total_minor", "request", "request_hash", "hash_version"), "NULL"
    )
    ended = {"decision": "'ABORTED'", "status": "'REJECTED'", "result": "'{}'"}
    return order(**{**nothing, **ended, **more})


MADE_ONE = (
    "customer = 'c', currency = 'EUR', total_minor = 1, request = '{}', request_hash = 'h',"
    " hash_version = 1"
)
ABORTING, COMMITTING = order(decision="'ABORTING'"), order(decision="'COMMITTING'")
SOLD = order(decision="'COMMITTED'", status="'CONFIRMED'", result="'{}'")


def attempt(request: str, number: int) -> str:
    return insert(
        "payment_attempt", tenant=":t", order_id="'o'", request_id=f"'{request}'", number=number,
        payment="'{}'", added_at=AT,
    )  # fmt: skip


def case(**more: str | int) -> str:
    values: dict[str, Any] = {
        "case_key": KEY, "tenant": ":t", "order_id": "'o'", "step": "'s'", "error_class": "'Bug'",
        "error": "'e'", "proposals": "'[]'", "owner": "'d'", "opened_at": AT, "failed_at": AT,
    }  # fmt: skip
    return insert("repair_case", **{**values, **more})


WHO = {"resolved_at": AT, "resolved_by": "'ann'", "resolution": "'done'"}
ORDER = rules(
    "order",
    ("shop_order_pkey", (order(), order())),
    ("shop_order_total_not_negative", order(total_minor=-1)),
    ("shop_order_decision_is_known", order(decision="'MAYBE'")),
    ("shop_order_status_is_known", order(status="'LOST'")),
    ("shop_order_waits_for_is_known", order(waits_for="'godot'")),
    ("shop_order_mode_is_known", order(mode="'magic'")),
    ("shop_order_mode_is_fixed", (order(), ordered("mode = 'tcc'"))),
    ("shop_order_final_has_result", order(decision="'COMMITTED'", status="'CONFIRMED'")),
    ("shop_order_status_fits_decision", order(decision="'COMMITTED'", result="'{}'")),
    *(
        ("shop_order_request_is_fixed", (order(), ordered(f"{column} = {value}")))
        for column, value in (
            ("tenant", "'x' || :t"), ("order_id", "'x'"), ("request_hash", "'x'"),
            ("total_minor", "2"), ("currency", "'USD'"), ("customer", "'x'"),
            ("opened_on", "'2026-01-03'"),
        )
    ),
    ("shop_order_request_is_fixed", (withdrawn(), ordered(MADE_ONE))),
    ("shop_order_is_asked_for_or_withdrawn", order(customer="NULL")),
    ("shop_order_result_is_fixed", (SOLD, ordered("result = '1'"))),
    ("shop_order_decision_moves_forward", (ABORTING, ordered("decision = 'OPEN'"))),
    ("shop_order_decision_moves_forward", (COMMITTING, ordered("decision = 'ABORTING'"))),
    ("payment_attempt_pkey", (attempt("a", 1), attempt("a", 2))),
    ("payment_attempt_one_per_number", (attempt("a", 1), attempt("b", 1))),
    ("payment_attempt_at_most_three", attempt("a", 4)),
    *BROKEN,
    *break_rows.BROKEN,
    ("repair_case_pkey", (case(), case())),
    ("repair_case_state_is_known", case(state="'LOST'", **WHO)),
    ("repair_case_resolved_says_who_and_why", case(state="'RESOLVED'")),
    ("repair_case_attempts_positive", case(attempts=0)),
)  # fmt: skip


def payment(**more: str | int | None) -> str:
    values: dict[str, Any] = {
        "key": KEY, "opened_on": DAY, "state": "'TRIED'", "request_hash": "'h'", "hash_version": 1,
        "amount_minor": 100, "currency": "'EUR'", "method": "'card'", "try_answer": "'{}'",
    }  # fmt: skip
    return insert("payment", **{**values, **more})


def paid(change: str) -> str:
    return f"UPDATE payment SET {change} WHERE key = {KEY}"


def refund(**more: str | int | None) -> str:
    values: dict[str, Any] = {
        "key": KEY, "opened_on": DAY, "state": "'TRIED'", "request_hash": "'h'", "hash_version": 1,
        "payment_key": "'p'", "amount_minor": 1, "currency": "'EUR'",
    }  # fmt: skip
    return insert("refund", **{**values, **more})


def call(**more: str | int) -> str:
    values: dict[str, Any] = {
        "key": KEY, "provider_key": KEY, "request_hash": "'h'", "sent_at": AT,
        "may_arrive_until": AT, "open_sends": 1,
    }  # fmt: skip
    return insert("provider_call", **{**values, **more})


def called(change: str) -> str:
    return f"UPDATE provider_call SET {change} WHERE key = {KEY}"


def captured(minor: int, **more: str | int) -> str:
    return payment(status="'CAPTURED'", captured_minor=minor, **more)


PAYMENT = rules(
    "payment",
    ("payment_status_is_known", payment(status="'LOST'")),
    ("payment_has_terms", payment(method=None)),
    ("payment_amount_positive", payment(amount_minor=0)),
    ("payment_method_is_known", payment(method="'cheque'")),
    ("payment_captured_within_amount", captured(101)),
    ("payment_refunded_within_captured", captured(100, refunded_minor=101)),
    ("payment_captured_has_status", payment(captured_minor=1)),
    ("payment_confirmed_is_captured", (captured(40), paid("state = 'CONFIRMED'"))),
    ("payment_cancelling_is_tried", payment(cancelling="true")),
    (
        "payment_refused_takes_nothing",
        (captured(100, capture_refusal="'{}'"), paid("state = 'CONFIRMED'")),
    ),
    ("payment_facts_are_fixed", (payment(provider_id="'int_1'"), paid("provider_id = 'int_2'"))),
    ("payment_facts_are_fixed", (payment(capture_refusal="'1'"), paid("capture_refusal = '2'"))),
    ("payment_facts_are_fixed", (captured(100), paid("captured_minor = 99"))),
    ("refund_has_terms", refund(payment_key=None)),
    ("refund_amount_positive", refund(amount_minor=0)),
    ("provider_call_pkey", (call(), call(provider_key="'x' || :t"))),
    ("provider_call_provider_key_unique", (call(), call(key="'x' || :t"))),
    ("provider_call_arrives_after_sending", call(may_arrive_until=DAY)),
    ("provider_call_open_sends_not_negative", call(open_sends=-1)),
    ("provider_call_answer_has_time", call(answer="'{}'")),
    ("provider_call_answer_is_fixed", (call(answer="'1'", answered_at=AT), called("answer = '2'"))),
    ("provider_call_answer_is_fixed", (call(), called("key = 'x' || key"))),
    ("provider_call_answer_is_fixed", (call(), called("provider_key = 'x' || key"))),
    ("provider_call_answer_is_fixed", (call(), called("request_hash = 'x'"))),
)
ALL = (*INVENTORY, *ACCOUNT, *POINTS, *LEDGER, *ORDER, *PAYMENT)


def ids(every: Sequence[Rule]) -> list[str]:
    """Name each case by its rule, and by its place among the cases of one rule."""
    names = [rule.name for rule in every]
    return [
        f"{name}-{names[:n].count(name) + 1}" if names.count(name) > 1 else name
        for n, name in enumerate(names)
    ]


@pytest.mark.requirement("AC6.2")
@pytest.mark.parametrize("rule", ALL, ids=ids(ALL))
async def test_a_broken_rule_is_refused_by_its_name(
    owners: dict[ServiceName, Database], tenant: str, rule: Rule
) -> None:
    """Also by hand and by the owner, whatever the code above does. Nothing is kept.

    Red when: the constraint, or the arm of its trigger, is taken out of the migration.
    """
    async with owners[rule.service].engine.connect() as connection:
        for statement in rule.statements[:-1]:
            await connection.execute(text(statement), {"t": tenant} if ":t" in statement else {})
        last = rule.statements[-1]
        with pytest.raises(DBAPIError) as refused:
            await connection.execute(text(last), {"t": tenant} if ":t" in last else {})
        await connection.rollback()
    cause = getattr(refused.value.orig, "__cause__", None)
    assert getattr(cause, "constraint_name", None) == rule.name, refused.value
