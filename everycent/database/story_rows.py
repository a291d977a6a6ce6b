"""Every row that an order has left in the services, whole, for a person who asks what happened."""

from datetime import datetime
from typing import Any

from everycent.database.audit_rows import Span
from everycent.database.reads import Reader
from everycent.domain.message import Message
from everycent.settings import ServiceName


class StoryRow(Message):
    """A row as its table has it: `facts` maps each column to its value, times as ISO text."""

    service: ServiceName
    table: str
    facts: dict[str, Any]

    @property
    def key(self) -> str:
        """The step's key; of the order's own rows, that of the case, or nothing."""
        return str(self.facts.get("key") or self.facts.get("case_key") or "")

    def time(self, column: str) -> datetime | None:
        """Return a time of the row, None if it has not come."""
        value = self.facts.get(column)
        return None if value is None else datetime.fromisoformat(value)


async def read_story_rows(
    reader: Reader, service: ServiceName, tenant: str, order_id: str
) -> list[StoryRow]:
    """Return the order's rows in a service, read at one instant."""
    span = Span.of(f"{tenant}/{order_id}/")
    given = {"low": span.low, "high": span.high}
    if service == "order":
        given |= {"tenant": tenant, "order_id": order_id}
    selects = [
        *(_select(service, table) for table in _TABLES[service]),
        *(_select_messages(box, party) for box, party in _BOXES.items()),
    ]
    statement = " UNION ALL ".join(selects)
    rows = await reader.rows(service, statement, **given)
    return [StoryRow(service=service, table=row["name"], facts=row["facts"]) for row in rows]


async def find_by_request_id(reader: Reader, tenant: str, name: str) -> set[tuple[str, str]]:
    """Return the shop and id of each of its orders that know `name` as a payment's request id.

    It has no index, nor have the provider's ids: for a person's question, not for a loop.
    """
    attempts = await reader.rows(
        "order",
        "SELECT DISTINCT order_id FROM payment_attempt"
        " WHERE tenant = :tenant AND request_id = :name LIMIT 20",
        tenant=tenant,
        name=name,
    )
    return {(tenant, row["order_id"]) for row in attempts}


async def find_by_provider_id(reader: Reader, name: str) -> set[tuple[str, str]]:
    """Return the shop and id of each order that has this payment or refund at the provider."""
    rows = await reader.rows(
        "payment",
        "SELECT key FROM payment WHERE provider_id = :name UNION"
        " SELECT key FROM refund WHERE try_answer ->> 'provider_refund_id' = :name",
        name=name,
    )
    return {(tenant, order) for row in rows for tenant, order, *_ in [row["key"].split("/")]}


_TABLES: dict[ServiceName, tuple[str, ...]] = {
    "order": ("shop_order", "payment_attempt", "repair_case"),
    "inventory": ("reservation",),
    "payment": ("payment", "refund", "provider_call"),
    "account": ("balance_hold", "balance_credit"),
    "points": ("points_hold", "points_booking"),
    "ledger": ("transfer",),
}
# What other services were told, and by which service, about an order that messages drive.
_BOXES = {"outbox": "split_part(t.sink, ':', 2)", "inbox": "t.source"}
# What hangs on a row in a table of its own.
_PARTS = {"reservation": ("reservation_line", "line"), "transfer": ("transfer_leg", "leg")}
# A card's token is nobody's business, and what was asked for is told by the columns beside it.
_HIDDEN = "'card_token', 'request', 'request_hash', 'hash_version'"


def _select(service: ServiceName, table: str) -> str:
    where = (
        "t.tenant = :tenant AND t.order_id = :order_id"
        if service == "order"
        else "t.key >= :low AND t.key < :high"
    )
    facts = f"to_jsonb(t) - ARRAY[{_HIDDEN}]"
    if table in _PARTS:
        part, number = _PARTS[table]
        facts += (
            f" || jsonb_build_object('parts', (SELECT jsonb_agg(to_jsonb(p) ORDER BY p.{number})"
            f" FROM {part} AS p WHERE p.key = t.key))"
        )
    if table == "payment_attempt":
        facts += " || jsonb_build_object('payment', t.payment - 'card_token')"
    return f"SELECT '{table}' AS name, {facts} AS facts FROM {table} AS t WHERE {where}"


def _select_messages(box: str, party: str) -> str:
    """Select messages without what they say: it is told by the rows that it is about."""
    done = "t.sent_at" if box == "outbox" else "t.received_at"
    return (
        f"SELECT '{box}' AS name, jsonb_build_object('key', t.key, 'event', t.type,"
        f" 'party', {party}, 'number', t.number, 'state', t.state, 'attempts', t.attempts,"
        f" 'at', t.at, 'carried_at', {done}, 'consumed_at', t.consumed_at,"
        " 'next_retry_at', t.next_retry_at, 'error', t.last_error,"
        " 'refused', coalesce(t.payload -> 'refused', 'false'))"
        f" AS facts FROM {box} AS t WHERE t.key >= :low AND t.key < :high"
    )
