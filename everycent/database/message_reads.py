"""What people, the audit and other systems read of messages, as readers of each service."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import AwareDatetime, JsonValue

from everycent.database.engine import sql
from everycent.database.reads import Reader
from everycent.domain.events import ORDER_PAID
from everycent.domain.message import Message
from everycent.domain.messaging import NOTIFY
from everycent.settings import SERVICES, ServiceName

# By then whoever wrote a message of that time has ended, its retries too: it is there, or never
# comes.
SETTLED = timedelta(minutes=5)


class MessageView(Message):
    """A message as its sender or its receiver sees it; `box` says which."""

    service: ServiceName
    box: str
    key: str
    other: str  # The sink of an outbox row, the source of an inbox row.
    type: str
    state: str
    attempts: int
    next_retry_at: datetime
    last_error: str


class Count(Message):
    """How many messages of a box stand so, and since when the oldest of them."""

    service: ServiceName
    box: str
    state: str
    messages: int
    oldest: datetime


class Told(Message):
    """What another system was to be told, and whether it has heard it."""

    key: str
    type: str
    schema_version: int
    at: AwareDatetime
    payload: JsonValue
    heard: bool


class ToldPage(Message):
    """What was to be told since then, complete up to `until`: ask again from there."""

    events: tuple[Told, ...]
    until: AwareDatetime


UNFINISHED = ("PENDING", "SENT", "RECEIVED", "DEAD")
_BOXES = {"outbox": "sink", "inbox": "source"}


async def messages(
    reader: Reader, states: Sequence[str], *, xid: str | None = None, limit: int = 100
) -> list[MessageView]:
    """Return messages in these states, of one order if it is named, the oldest first."""
    found: list[MessageView] = []
    for service in SERVICES:
        async with reader.database(service).snapshot() as tx:
            for box, other in _BOXES.items():
                result = await tx.execute(
                    sql(
                        f"SELECT key, {other} AS other, type, state, attempts, next_retry_at,"
                        f" last_error FROM {box} WHERE state = ANY(CAST(:states AS text[]))"
                        " AND (CAST(:xid AS text) IS NULL OR aggregate = :xid)"
                        " ORDER BY at, number LIMIT :limit"
                    ),
                    {"states": list(states), "xid": xid, "limit": limit},
                )
                found += [MessageView(service=service, box=box, **row._mapping) for row in result]
    return found


async def counts(reader: Reader) -> list[Count]:
    """Return how many messages of each box are not consumed, by their states."""
    found: list[Count] = []
    for service in SERVICES:
        async with reader.database(service).snapshot() as tx:
            for box in _BOXES:
                result = await tx.execute(
                    sql(
                        "SELECT state, count(*) AS messages, min(at) AS oldest"
                        f" FROM {box} WHERE state <> 'CONSUMED' GROUP BY state ORDER BY state"
                    )
                )
                found += [Count(service=service, box=box, **row._mapping) for row in result]
    return found


async def orders_on_their_way(reader: Reader, xids: Sequence[str]) -> set[str]:
    """Return those orders of which a message is under way in any service, or is dead."""
    found: set[str] = set()
    for service in SERVICES:
        async with reader.database(service).snapshot() as tx:
            for box in _BOXES:
                result = await tx.execute(
                    sql(
                        f"SELECT DISTINCT aggregate FROM {box} WHERE state <> 'CONSUMED'"
                        " AND aggregate = ANY(CAST(:xids AS text[]))"
                    ),
                    {"xids": list(xids)},
                )
                found |= set(result.scalars())
    return found


async def extended(reader: Reader, xids: Sequence[str]) -> set[str]:
    """Return those orders whose extensions have not all done what the core's end has told them.

    Read before their rows, it accuses nobody: a message is consumed with its effect, not before.
    """
    async with reader.database("order").snapshot() as tx:
        result = await tx.execute(
            sql(
                "SELECT DISTINCT aggregate FROM outbox WHERE type = :type AND state <> 'CONSUMED'"
                " AND aggregate = ANY(CAST(:xids AS text[]))"
            ),
            {"type": ORDER_PAID.name, "xids": list(xids)},
        )
        return set(result.scalars())


async def told(reader: Reader, name: str, *, since: datetime, now: datetime) -> ToldPage:
    """Return what the system of that name was to be told since then, in the order of its time.

    A row that is written late has an early time. So the newest are left out until no such row can
    come any more: `until` says how far the answer is complete.
    """
    until = max(since, now - SETTLED)
    events: list[Told] = []
    for service in SERVICES:
        async with reader.database(service).snapshot() as tx:
            result = await tx.execute(
                sql(
                    "SELECT key, type, schema_version, at, payload, state = 'CONSUMED' AS heard"
                    " FROM outbox WHERE sink = :sink AND at > :since AND at <= :until"
                ),
                {"sink": f"{NOTIFY}{name}", "since": since, "until": until},
            )
            events += [Told.model_validate(row._mapping) for row in result]
    ordered = sorted(events, key=lambda each: (each.at, each.key))
    return ToldPage(events=tuple(ordered), until=until)
