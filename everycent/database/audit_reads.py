"""The audit's checks inside one database.

Each check is one query over one snapshot. It names what it looked at (`who`), whether it is
`broken` and `how`; the first offender is the first by name. `:tenant` NULL means every shop.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.audit_rows import Span
from everycent.database.engine import sql
from everycent.settings import ServiceName

_MINE = "(CAST(:tenant AS text) IS NULL OR tenant = CAST(:tenant AS text))"
_KEYS = "key >= CAST(:low AS text) AND key < CAST(:high AS text)"


@dataclass(frozen=True)
class Check:
    """A rule that one database can answer alone."""

    name: str
    service: ServiceName
    seen: str


@dataclass(frozen=True)
class CheckAnswer:
    """What a check found; `first` is the first offender by name, and what is wrong with it."""

    rows: int
    offenders: int
    first: tuple[str, str] | None


async def run_checks(
    tx: AsyncConnection, service: ServiceName, tenant: str | None
) -> dict[str, CheckAnswer]:
    """Run every check of a service in the open snapshot, by name; one statement does them all."""
    checks = [check for check in CHECKS if check.service == service]
    statement = " UNION ALL ".join(
        f"SELECT {number} AS number, count(*) AS rows,"
        " count(*) FILTER (WHERE broken) AS offenders,"
        ' min(ARRAY[who, how] COLLATE "C") FILTER (WHERE broken) AS first'
        f" FROM ({check.seen}) AS seen"
        for number, check in enumerate(checks)
    )
    span = Span.of("" if tenant is None else f"{tenant}/")
    given = {"tenant": tenant, "low": span.low, "high": span.high}
    named = {name: value for name, value in given.items() if f":{name}" in statement}
    found = await tx.execute(sql(statement), named)
    return {checks[row.number].name: _answer(row) for row in found}


def _answer(row: Any) -> CheckAnswer:
    who, how = row.first or (None, None)
    first = None if who is None else (who, how or "")
    return CheckAnswer(row.rows, row.offenders, first)


def _equals(table: str, place: str, value: str, sums: str) -> str:
    """Compare a column of each row of `table` with the sum of the rows that should explain it."""
    who = " || '/' || ".join(place.split(", "))
    return f"""
SELECT {who} AS who, coalesce(kept.value, 0) <> coalesce(summed.amount, 0) AS broken,
    '{value} is ' || coalesce(kept.value, 0) || ', its rows sum to ' || coalesce(summed.amount, 0)
    || ', off by ' || coalesce(kept.value, 0) - coalesce(summed.amount, 0) AS how
FROM (SELECT {place}, {value} AS value FROM {table} WHERE {_MINE}) AS kept
FULL JOIN (SELECT {place}, sum(amount) AS amount FROM ({sums}) AS part GROUP BY {place}) AS summed
USING ({place})"""


def _lines_of(state: str) -> str:
    return (
        "SELECT split_part(key, '/', 1) AS tenant, sku, units AS amount FROM reservation"
        f" JOIN reservation_line USING (key) WHERE state = '{state}' AND {_KEYS}"
    )


def _booked(sign: str) -> str:
    units = "CAST(try_answer->>'units_booked' AS bigint)"
    return (
        f"SELECT split_part(key, '/', 1) AS tenant, sku, {sign}{units} AS amount"
        f" FROM stock_booking WHERE state = 'CONFIRMED' AND {sign}{units} > 0 AND {_KEYS}"
    )


def _of(table: str, columns: str, amount: str, where: str) -> str:
    return (
        f"SELECT split_part(key, '/', 1) AS tenant, {columns}, {amount} AS amount FROM {table}"
        f" WHERE {where} AND {_KEYS}"
    )


_ACCOUNT = "tenant, account, currency"
_ACCOUNT_COLUMNS = "account, currency"
_INVENTORY_CHECKS = (
    Check(
        "stock: received = free + held + sold + written off",
        "inventory",
        "SELECT tenant || '/' || sku AS who, received <> free + held + sold + written_off"
        " OR least(received, free, held, sold, written_off) < 0 AS broken,"
        " format('received %s, free %s, held %s, sold %s, written off %s',"
        f" received, free, held, sold, written_off) AS how FROM stock WHERE {_MINE}",
    ),
    Check(
        "stock: held = open reservations",
        "inventory",
        _equals("stock", "tenant, sku", "held", _lines_of("TRIED")),
    ),
    Check(
        "stock: sold = confirmed reservations",
        "inventory",
        _equals("stock", "tenant, sku", "sold", _lines_of("CONFIRMED")),
    ),
    Check(
        "stock: received = bookings in",
        "inventory",
        _equals("stock", "tenant, sku", "received", _booked("+")),
    ),
    Check(
        "stock: written off = bookings out",
        "inventory",
        _equals("stock", "tenant, sku", "written_off", _booked("-")),
    ),
)

_ACCOUNT_CHECKS = (
    Check(
        "account: balance = available + frozen",
        "account",
        "SELECT tenant || '/' || account || '/' || currency AS who,"
        " balance <> available + frozen OR least(balance, available, frozen) < 0 AS broken,"
        " format('balance %s, available %s, frozen %s', balance, available, frozen) AS how"
        f" FROM account WHERE {_MINE}",
    ),
    Check(
        "account: frozen = open holds",
        "account",
        _equals(
            "account",
            _ACCOUNT,
            "frozen",
            _of("balance_hold", _ACCOUNT_COLUMNS, "amount_minor", "state = 'TRIED'"),
        ),
    ),
    Check(
        "account: balance = deposits + credits - debits",
        "account",
        _equals(
            "account",
            _ACCOUNT,
            "balance",
            _of("balance_credit", _ACCOUNT_COLUMNS, "amount_minor", "state = 'CONFIRMED'")
            + " UNION ALL "
            + _of("balance_hold", _ACCOUNT_COLUMNS, "-amount_minor", "state = 'CONFIRMED'"),
        ),
    ),
)

_POINTS_CHECKS = (
    Check(
        "points: nothing below zero, a debt is paid first",
        "points",
        "SELECT tenant || '/' || customer AS who,"
        " least(available, frozen, debt) < 0 OR (debt > 0 AND available > 0) AS broken,"
        " format('available %s, frozen %s, debt %s', available, frozen, debt) AS how"
        f" FROM points_account WHERE {_MINE}",
    ),
    Check(
        "points: frozen = open holds",
        "points",
        _equals(
            "points_account",
            "tenant, customer",
            "frozen",
            _of("points_hold", "customer", "points", "state = 'TRIED'"),
        ),
    ),
    Check(
        "points: available + frozen - debt = granted + restored - revoked - redeemed",
        "points",
        _equals(
            "points_account",
            "tenant, customer",
            "available + frozen - debt",
            _of(
                "points_booking",
                "customer",
                "CASE kind WHEN 'revoke' THEN -points ELSE points END",
                "state = 'CONFIRMED'",
            )
            + " UNION ALL "
            + _of("points_hold", "customer", "-points", "state = 'CONFIRMED'"),
        ),
    ),
)


def _ledger_column(column: str, amount: str, rows: str) -> Check:
    return Check(
        f"ledger: {column.replace('_', ' ')} = its rows",
        "ledger",
        _equals(
            "ledger_account",
            _ACCOUNT,
            column,
            f"SELECT {_ACCOUNT}, {amount} AS amount FROM {rows} AND {amount} > 0 AND {_KEYS}",
        ),
    )


_ENTRIES = "entry WHERE true"
_PENDING = "transfer_leg JOIN transfer USING (key) WHERE state = 'TRIED'"
_LEDGER_CHECKS = (
    Check(
        "ledger: every transfer sums to zero per currency",
        "ledger",
        "SELECT key || ' ' || currency AS who, sum(amount_minor) <> 0 AS broken,"
        " 'it is off by ' || sum(amount_minor) || ' minor units' AS how"
        f" FROM entry WHERE {_KEYS} GROUP BY key, currency",
    ),
    Check(
        "ledger: a posted transfer has the entries of its legs, no other has any",
        "ledger",
        f"""
SELECT key AS who,
    CASE WHEN state = 'CONFIRMED' THEN legs IS NULL OR legs IS DISTINCT FROM entries
    ELSE entries IS NOT NULL END AS broken,
    'the transfer is ' || coalesce(lower(state), 'absent') AS how
FROM (SELECT key, state FROM transfer WHERE {_KEYS}) AS head
FULL JOIN (SELECT key, jsonb_agg(jsonb_build_array(leg, account, currency, amount_minor)
    ORDER BY leg) AS legs FROM transfer_leg WHERE {_KEYS} GROUP BY key) AS leg USING (key)
FULL JOIN (SELECT key, jsonb_agg(jsonb_build_array(leg, account, currency, amount_minor)
    ORDER BY leg) AS entries FROM entry WHERE {_KEYS} GROUP BY key) AS posted USING (key)""",
    ),
    _ledger_column("debits_posted", "amount_minor", _ENTRIES),
    _ledger_column("credits_posted", "-amount_minor", _ENTRIES),
    _ledger_column("debits_pending", "amount_minor", _PENDING),
    _ledger_column("credits_pending", "-amount_minor", _PENDING),
    Check(
        "ledger: each entry's balance follows from the one before",
        "ledger",
        "SELECT tenant || '/' || account || '/' || currency || ' entry ' || lpad(CAST(seq AS text),"
        " 19, '0') AS who, balance_after_minor <> amount_minor"
        " + coalesce(lag(balance_after_minor) OVER account_of_entry, 0) AS broken,"
        " 'balance after it is ' || balance_after_minor AS how"
        f" FROM entry WHERE {_MINE}"
        f" WINDOW account_of_entry AS (PARTITION BY {_ACCOUNT} ORDER BY seq)",
    ),
    Check(
        "ledger: the trial balance is zero",
        "ledger",
        "SELECT tenant || '/' || currency AS who, sum(debits_posted - credits_posted) <> 0"
        " AS broken, 'debits - credits = ' || sum(debits_posted - credits_posted) AS how"
        f" FROM ledger_account WHERE {_MINE} GROUP BY tenant, currency",
    ),
)

_PAYMENT_CHECKS = (
    Check(
        "payment: 0 <= refunded <= captured <= amount",
        "payment",
        "SELECT key AS who, NOT (0 <= refunded_minor AND refunded_minor <= captured_minor"
        " AND captured_minor <= coalesce(amount_minor, 0)) AS broken,"
        " format('refunded %s, captured %s, amount %s', refunded_minor, captured_minor,"
        f" amount_minor) AS how FROM payment WHERE {_KEYS}",
    ),
    Check(
        "payment: refunded = its refunds",
        "payment",
        # What a refund under way has reserved counts as refunded.
        "SELECT key AS who, coalesce(refunded_minor, 0) <> coalesce(minor, 0) AS broken,"
        " format('refunded %s, its refunds sum to %s', coalesce(refunded_minor, 0),"
        " coalesce(minor, 0)) AS how"
        f" FROM (SELECT key, refunded_minor FROM payment WHERE {_KEYS}) AS paid"
        " FULL JOIN (SELECT payment_key AS key, sum(amount_minor) AS minor FROM refund"
        f" WHERE state IN ('TRIED', 'CONFIRMED') AND {_KEYS} GROUP BY payment_key) AS back"
        " USING (key)",
    ),
)

_ORDER_CHECKS = (
    Check(
        "order: the total is the sum of its lines",
        "order",
        "SELECT tenant || '/' || order_id AS who, total_minor <> lines.minor AS broken,"
        " format('total %s, its lines sum to %s', total_minor, lines.minor) AS how"
        " FROM shop_order, LATERAL (SELECT sum(CAST(line->>'amount_minor' AS bigint)) AS minor"
        f" FROM jsonb_array_elements(request->'lines') AS line) AS lines WHERE {_MINE}"
        " AND request IS NOT NULL",
    ),
)

CHECKS = (
    *_ORDER_CHECKS, *_INVENTORY_CHECKS, *_PAYMENT_CHECKS, *_ACCOUNT_CHECKS, *_POINTS_CHECKS,
    *_LEDGER_CHECKS,
)  # fmt: skip
