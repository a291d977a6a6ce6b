"""The audit on live databases: clean shops pass, and every broken invariant is found and named."""

from dataclasses import dataclass

import pytest

from everycent.database.audit_reads import CHECKS
from everycent.proof.audit import OWNER, audit
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.invariants import PROVIDER, RULES
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.report import AuditReport, RuleResult, RuleState
from everycent.settings import ServiceName, Settings
from tests.proof.conftest import Vandal
from tests.workflows.conftest import Shop

ALL = {*(rule.name for rule in (*CHECKS, *RULES)), OWNER}


async def look(shop: Shop, settings: Settings, *, reread_seconds: float = 5.0) -> AuditReport:
    return await audit(
        settings,
        tenant=shop.tenant,
        reread_seconds=reread_seconds,
        drivers=TemporalDrivers(shop.client),
        provider=SimulatorBooks(shop.provider),
    )


def broken(report: AuditReport) -> dict[str, RuleResult]:
    return {rule.name: rule for rule in report.rules if rule.state is RuleState.BROKEN}


async def test_a_shop_with_orders_of_every_kind_is_clean_and_adds_up(
    busy_shop: Shop, settings: Settings
) -> None:
    report = await look(busy_shop, settings)
    assert report.ok, broken(report)
    assert {rule.name for rule in report.rules} == ALL
    empty = {rule.name for rule in report.rules if rule.state is RuleState.EMPTY}
    assert empty == {"order: undecided, so nothing is confirmed or cancelled", OWNER}
    totals = report.totals
    assert totals.orders_by_status == {"CONFIRMED": 3, "REFUNDED": 1, "REJECTED": 1}
    assert (totals.orders_confirmed, totals.units_sold) == (3, 6)
    assert totals.captured_at_provider == {"EUR": 2933 + 2833}
    assert totals.captured_from_balance == {"EUR": 2733}
    assert (totals.minor_units_captured, totals.minor_units_refunded) == (8499, 2833)
    assert (totals.points_used, totals.points_given_back) == (200 + 100, 100)
    assert (totals.points_earned, totals.points_taken_back) == (29 + 27 + 28, 28)
    assert next(iter(report.snapshots)) == "order"
    assert report.snapshots["order"] == min(report.snapshots.values())


async def test_a_shop_without_rows_is_empty_which_is_not_a_pass(
    settings: Settings, shop: Shop
) -> None:
    report = await look(shop, settings)
    assert {rule.state for rule in report.rules} == {RuleState.EMPTY}
    assert {rule.rows_looked_at for rule in report.rules} == {0}


async def test_what_nobody_can_tell_is_not_called_held(busy_shop: Shop, settings: Settings) -> None:
    report = await audit(settings, tenant=busy_shop.tenant)
    rules = {rule.name: rule for rule in report.rules}
    assert rules[PROVIDER].state is RuleState.EMPTY
    assert "not looked at" in rules[PROVIDER].detail
    assert rules[OWNER].state is RuleState.EMPTY


@dataclass(frozen=True)
class Damage:
    """What is done by hand, the rules it breaks, and the first offender of the first of those."""

    service: ServiceName
    statements: tuple[str, ...]
    rules: tuple[str, ...]
    offender: str


CONFIRMED_DUE = "order: confirmed, so captured = due"
CONFIRMED_STOCK = "order: confirmed, so its stock is sold"
CONFIRMED_POINTS = "order: confirmed, so its points are used and earned"
CONFIRMED_BOOKS = "order: confirmed, so it is in the books"
REFUNDED = "order: refunded, so everything went back"
ABORTED = "order: aborted, so nothing is taken"
HELD = "order: closed, so nothing is held"
ONE_KEPT = "order: closed, so at most one payment is kept"
RESULT = "order: closed, so its result tells the facts"
UNDECIDED = "order: undecided, so nothing is confirmed or cancelled"
ORPHANS = "order: every hold, payment and transfer belongs to one"
CALLS = "payment: every call of a closed order is answered"
STOCK_SOLD = "stock: sold = confirmed reservations"
POINTS_NET = "points: available + frozen - debt = granted + restored - revoked - redeemed"
BALANCE_NET = "account: balance = deposits + credits - debits"
REFUNDS = "payment: refunded = its refunds"
POSTED = "ledger: a posted transfer has the entries of its legs, no other has any"
LAMP = "WHERE tenant = '{t}' AND sku = 'LAMP'"
A1 = "WHERE tenant = '{t}' AND account = 'a-1'"
C1 = "WHERE tenant = '{t}' AND customer = 'c-1'"
REVENUE = "WHERE tenant = '{t}' AND account = 'sales:revenue'"
RECEIVABLE = "WHERE tenant = '{t}' AND account = 'provider:receivable'"


def drop(table: str, constraint: str) -> str:
    return f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint}"


DAMAGES = {
    "order total": Damage(
        "order",
        ("UPDATE shop_order SET total_minor = 1 WHERE tenant = '{t}' AND order_id = 'card'",),
        ("order: the total is the sum of its lines",),
        "card",
    ),
    "stock sum": Damage(
        "inventory",
        (drop("stock", "stock_adds_up"), f"UPDATE stock SET free = free + 1 {LAMP}"),
        ("stock: received = free + held + sold + written off",),
        "LAMP",
    ),
    "stock below zero": Damage(
        "inventory",
        (
            drop("stock", "stock_free_not_negative"),
            f"UPDATE stock SET received = received - free - 1, free = -1 {LAMP}",
        ),
        ("stock: received = free + held + sold + written off", "stock: received = bookings in"),
        "LAMP",
    ),
    "stock held": Damage(
        "inventory",
        (f"UPDATE stock SET held = held + 1, free = free - 1 {LAMP}",),
        ("stock: held = open reservations",),
        "LAMP",
    ),
    "stock sold": Damage(
        "inventory",
        (f"UPDATE stock SET sold = sold + 1, free = free - 1 {LAMP}",),
        (STOCK_SOLD,),
        "LAMP",
    ),
    "stock received": Damage(
        "inventory",
        (f"UPDATE stock SET received = received + 1, free = free + 1 {LAMP}",),
        ("stock: received = bookings in",),
        "LAMP",
    ),
    "stock written off": Damage(
        "inventory",
        (f"UPDATE stock SET written_off = written_off + 1, free = free - 1 {LAMP}",),
        ("stock: written off = bookings out",),
        "LAMP",
    ),
    "stock row gone": Damage(
        "inventory",
        (f"DELETE FROM stock {LAMP}",),
        (STOCK_SOLD, "stock: received = bookings in"),
        "LAMP",
    ),
    "payment over-refunded": Damage(
        "payment",
        (
            drop("payment", "payment_refunded_within_captured"),
            "UPDATE payment SET refunded_minor = captured_minor + 1"
            " WHERE key = '{t}/card/pay/first'",
        ),
        ("payment: 0 <= refunded <= captured <= amount", REFUNDS, PROVIDER),
        "card/pay/first",
    ),
    "payment refunded without a refund": Damage(
        "payment",
        ("UPDATE payment SET refunded_minor = 1 WHERE key = '{t}/card/pay/first'",),
        (REFUNDS, PROVIDER),
        "card/pay/first",
    ),
    "account sum": Damage(
        "account",
        (drop("account", "account_adds_up"), f"UPDATE account SET available = available + 1 {A1}"),
        ("account: balance = available + frozen",),
        "a-1/EUR",
    ),
    "account frozen": Damage(
        "account",
        (f"UPDATE account SET frozen = frozen + 1, available = available - 1 {A1}",),
        ("account: frozen = open holds",),
        "a-1/EUR",
    ),
    "account balance": Damage(
        "account",
        (f"UPDATE account SET balance = balance + 1, available = available + 1 {A1}",),
        (BALANCE_NET,),
        "a-1/EUR",
    ),
    "balance hold of another amount": Damage(
        "account",
        ("UPDATE balance_hold SET amount_minor = 1 WHERE key = '{t}/card-balance/pay/first'",),
        (CONFIRMED_DUE, BALANCE_NET, RESULT),
        "card-balance/pay/first",
    ),
    "points owed and available": Damage(
        "points",
        (
            drop("points_account", "points_account_debt_is_paid_first"),
            f"UPDATE points_account SET debt = debt + 5, available = available + 5 {C1}",
        ),
        ("points: nothing below zero, a debt is paid first",),
        "c-1",
    ),
    "points frozen": Damage(
        "points",
        (f"UPDATE points_account SET frozen = frozen + 1, available = available - 1 {C1}",),
        ("points: frozen = open holds",),
        "c-1",
    ),
    "points available": Damage(
        "points",
        (f"UPDATE points_account SET available = available + 1 {C1}",),
        (POINTS_NET,),
        "c-1",
    ),
    "points not earned": Damage(
        "points",
        ("DELETE FROM points_booking WHERE key = '{t}/card/earn'",),
        (CONFIRMED_POINTS, POINTS_NET),
        "card/earn",
    ),
    "entry of another amount": Damage(
        "ledger",
        (
            "UPDATE entry SET amount_minor = amount_minor + 1 WHERE key = '{t}/card/ledger'"
            " AND amount_minor > 0",
        ),
        (
            "ledger: every transfer sums to zero per currency",
            POSTED,
            "ledger: debits posted = its rows",
            "ledger: each entry's balance follows from the one before",
            CONFIRMED_BOOKS,
        ),
        "card/ledger EUR",
    ),
    "leg on another account": Damage(
        "ledger",
        ("UPDATE transfer_leg SET account = 'x' WHERE key = '{t}/card/ledger' AND leg = 0",),
        (POSTED,),
        "card/ledger",
    ),
    "transfer not posted": Damage(
        "ledger",
        ("UPDATE transfer SET state = 'CANCELLED' WHERE key = '{t}/card/ledger'",),
        (CONFIRMED_BOOKS, POSTED),
        "card/ledger",
    ),
    "ledger account, both sides": Damage(
        "ledger",
        (
            f"UPDATE ledger_account SET debits_posted = debits_posted + 1 {RECEIVABLE}",
            f"UPDATE ledger_account SET credits_posted = credits_posted + 1 {REVENUE}",
        ),
        ("ledger: debits posted = its rows", "ledger: credits posted = its rows"),
        "provider:receivable/EUR",
    ),
    "trial balance": Damage(
        "ledger",
        (f"UPDATE ledger_account SET debits_posted = debits_posted + 1 {RECEIVABLE}",),
        ("ledger: the trial balance is zero", "ledger: debits posted = its rows"),
        "EUR",
    ),
    "ledger debits pending": Damage(
        "ledger",
        (f"UPDATE ledger_account SET debits_pending = 1 {RECEIVABLE}",),
        ("ledger: debits pending = its rows",),
        "provider:receivable/EUR",
    ),
    "ledger credits pending": Damage(
        "ledger",
        (f"UPDATE ledger_account SET credits_pending = 1 {REVENUE}",),
        ("ledger: credits pending = its rows",),
        "sales:revenue/EUR",
    ),
    "balance after an entry": Damage(
        "ledger",
        (
            "UPDATE entry SET balance_after_minor = balance_after_minor + 1"
            f" {REVENUE} AND key = '{{t}}/refunded/ledger-reversal'",
        ),
        ("ledger: each entry's balance follows from the one before",),
        "sales:revenue/EUR entry",
    ),
    "captured less than due": Damage(
        "payment",
        (
            drop("payment", "payment_confirmed_is_captured"),
            "UPDATE payment SET captured_minor = captured_minor - 1"
            " WHERE key = '{t}/card/pay/first'",
        ),
        (CONFIRMED_DUE, RESULT, PROVIDER),
        "card/pay/first",
    ),
    "a second payment kept": Damage(
        "payment",
        (
            "INSERT INTO payment SELECT (p2).* FROM (SELECT jsonb_populate_record(p,"
            """ '{"key": "{t}/card/pay/second", "provider_id": "int_2"}') AS p2 FROM payment AS p"""
            " WHERE p.key = '{t}/card/pay/first') AS copy",
        ),
        (ONE_KEPT, CONFIRMED_DUE, RESULT, PROVIDER),
        "card/pay/second",
    ),
    "sold stock of a confirmed order cancelled": Damage(
        "inventory",
        ("UPDATE reservation SET state = 'CANCELLED' WHERE key = '{t}/card/reserve'",),
        (CONFIRMED_STOCK, STOCK_SOLD),
        "card/reserve",
    ),
    "another number of units sold": Damage(
        "inventory",
        ("UPDATE reservation_line SET units = units + 1 WHERE key = '{t}/card/reserve'",),
        (CONFIRMED_STOCK, STOCK_SOLD),
        "card/reserve",
    ),
    "not refunded": Damage(
        "payment",
        (
            "UPDATE refund SET state = 'CANCELLED' WHERE payment_key = '{t}/refunded/pay/first'",
            "UPDATE payment SET refunded_minor = 0 WHERE key = '{t}/refunded/pay/first'",
        ),
        (REFUNDED, RESULT, PROVIDER),
        "refunded/pay/first",
    ),
    "sale of a refunded order not reversed": Damage(
        "ledger",
        ("DELETE FROM reversal WHERE key = '{t}/refunded/ledger-reversal'",),
        (REFUNDED,),
        "refunded/ledger-reversal",
    ),
    "leaked hold of a closed order": Damage(
        "inventory",
        (
            "UPDATE reservation SET state = 'TRIED' WHERE key = '{t}/no-stock/reserve'",
            "INSERT INTO reservation_line VALUES ('{t}/no-stock/reserve', 0, 'LAMP', 3)",
            f"UPDATE stock SET free = free - 3, held = held + 3 {LAMP}",
        ),
        (HELD,),
        "no-stock/reserve",
    ),
    "sale of an aborted order": Damage(
        "inventory",
        (
            "UPDATE reservation SET state = 'CONFIRMED' WHERE key = '{t}/no-stock/reserve'",
            "INSERT INTO reservation_line VALUES ('{t}/no-stock/reserve', 0, 'LAMP', 3)",
            f"UPDATE stock SET free = free - 3, sold = sold + 3 {LAMP}",
        ),
        (ABORTED,),
        "no-stock/reserve",
    ),
    "another result": Damage(
        "order",
        (
            "UPDATE shop_order SET result = jsonb_set(result, CAST('{captured_minor}' AS text[]),"
            " '1') WHERE tenant = '{t}' AND order_id = 'card'",
        ),
        (RESULT,),
        "card/close",
    ),
    "confirmed before the decision": Damage(
        "order",
        (
            "UPDATE shop_order SET decision = 'OPEN', status = 'PENDING', result = NULL"
            " WHERE tenant = '{t}' AND order_id = 'card'",
        ),
        (UNDECIDED, OWNER),
        "card/reserve",
    ),
    "order row gone": Damage(
        "order",
        ("DELETE FROM shop_order WHERE tenant = '{t}' AND order_id = 'card'",),
        (ORPHANS,),
        "card/reserve",
    ),
    "call without an answer": Damage(
        "payment",
        (
            "UPDATE provider_call SET answer = NULL, answered_at = NULL,"
            " sent_at = '2026-01-01 00:00Z', may_arrive_until = '2026-01-01 00:01Z'"
            " WHERE key = '{t}/card/pay/first/capture'",
        ),
        (CALLS,),
        "card/pay/first",
    ),
}


@pytest.mark.requirement("T4")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_damage_by_hand_breaks_its_rules_and_no_others(
    busy_shop: Shop, settings: Settings, vandal: Vandal, damage: Damage
) -> None:
    """A counter or a row that is changed past all guards is found, and the first offender named.

    Of T4 this is the finding: who, and by how much. The repairing is another command's.

    Red when: a rule of `CHECKS` or `RULES` is left out, or looks at one side of its comparison.
    """
    async with vandal.breaks(damage.service, *damage.statements):
        report = await look(busy_shop, settings)
    found = broken(report)
    assert set(found) == set(damage.rules), found
    assert not report.ok
    assert report.broken_invariants == len(damage.rules)
    first = found[damage.rules[0]]
    assert (first.first_offender or "").startswith(f"{busy_shop.tenant}/{damage.offender}"), first
    assert first.detail
    assert (await look(busy_shop, settings)).ok


def test_every_rule_is_broken_by_some_damage() -> None:
    assert {rule for damage in DAMAGES.values() for rule in damage.rules} == ALL


@pytest.mark.requirement("T4")
async def test_the_drift_of_a_counter_is_told_in_units(
    busy_shop: Shop, settings: Settings, vandal: Vandal
) -> None:
    """The report names the SKU and the delta.

    Red when: the detail of `_equals` leaves out by how much the column is off.
    """
    async with vandal.breaks("inventory", f"UPDATE stock SET held = 4, free = free - 4 {LAMP}"):
        found = broken(await look(busy_shop, settings))
    [rule] = found.values()
    assert rule.first_offender == f"{busy_shop.tenant}/LAMP"
    assert rule.detail == "held is 4, its rows sum to 0, off by 4"
