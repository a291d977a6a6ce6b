"""The inbox in SQL: a message is received once, and applied once with its effect.

A message goes through three transactions. `receive` is the relay's: it writes the message down.
`take` is the consumer's: it counts a try *before* it, so that a message that kills its consumer is
counted too, and keeps it from other consumers for a while. The third begins with `lock`, does the
effect, and ends with `finish`: the inbox row is the first key that it claims (design rule 4). Who
comes second waits there, and then finds that the message was consumed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql, wake_after_commit
from everycent.database.fence import assert_all_written
from everycent.domain.messaging import Envelope, InboxState

WAKE = "everycent_inbox"
_MESSAGE = (
    "key, aggregate, opened_on, at, type, schema_version, payload, content_hash, number, source,"
    " attempts"
)


@dataclass(frozen=True)
class Standing:
    """How a message stands with its receiver."""

    state: InboxState
    content_hash: str
    error: str


async def receive(
    tx: AsyncConnection, messages: Sequence[Envelope], *, at: datetime
) -> list[Standing]:
    """Write down what is new, all or none of it, and say how each message stands."""
    result = await tx.execute(
        sql(
            "INSERT INTO inbox (key, opened_on, aggregate, number, type, schema_version, payload,"
            " content_hash, at, state, next_retry_at, source, received_at)"
            " SELECT key, opened_on, aggregate, number, type, version, payload::jsonb, hash, at,"
            " 'RECEIVED', :at, source, :at"
            " FROM unnest(CAST(:keys AS text[]), CAST(:days AS date[]),"
            " CAST(:aggregates AS text[]), CAST(:numbers AS bigint[]), CAST(:types AS text[]),"
            " CAST(:versions AS smallint[]), CAST(:payloads AS text[]), CAST(:hashes AS text[]),"
            " CAST(:ats AS timestamptz[]), CAST(:sources AS text[])) AS new (key, opened_on,"
            " aggregate, number, type, version, payload, hash, at, source)"
            ' ORDER BY key COLLATE "C" ON CONFLICT (opened_on, key) DO NOTHING RETURNING key'
        ),
        {
            "at": at,
            "keys": [m.key for m in messages],
            "days": [m.opened_on for m in messages],
            "aggregates": [m.aggregate for m in messages],
            "numbers": [m.number for m in messages],
            "types": [m.type for m in messages],
            "versions": [m.schema_version for m in messages],
            "payloads": [json.dumps(m.payload) for m in messages],
            "hashes": [m.content_hash for m in messages],
            "ats": [m.at for m in messages],
            "sources": [m.source for m in messages],
        },
    )
    if result.scalars().all():
        wake_after_commit(tx, WAKE)
    return await _standings(tx, messages)


async def _standings(tx: AsyncConnection, messages: Sequence[Envelope]) -> list[Standing]:
    result = await tx.execute(
        sql(
            "SELECT key, opened_on, state, content_hash, last_error FROM inbox"
            " WHERE (opened_on, key) IN (SELECT * FROM unnest(CAST(:days AS date[]),"
            " CAST(:keys AS text[])))"
        ),
        {"days": [m.opened_on for m in messages], "keys": [m.key for m in messages]},
    )
    rows = {
        (r.opened_on, r.key): Standing(InboxState(r.state), r.content_hash, r.last_error)
        for r in result
    }
    return [rows[(m.opened_on, m.key)] for m in messages]


async def take(
    tx: AsyncConnection, *, at: datetime, limit: int, patience: timedelta
) -> list[Envelope]:
    """Count a try of messages that are due, the first unconsumed one of each aggregate and source.

    They are due again after `patience`, should this consumer die. What another is just taking is
    passed by.
    """
    result = await tx.execute(
        sql(
            "UPDATE inbox AS i SET attempts = i.attempts + 1, next_retry_at = :later"
            " FROM (SELECT h.opened_on AS day, h.key AS name FROM inbox AS h"
            " WHERE h.state = 'RECEIVED' AND h.next_retry_at <= :at AND NOT EXISTS ("
            "SELECT FROM inbox AS e WHERE e.opened_on = h.opened_on AND e.aggregate = h.aggregate"
            " AND e.source = h.source AND e.number < h.number AND e.state <> 'CONSUMED')"
            " ORDER BY h.next_retry_at LIMIT :limit FOR UPDATE SKIP LOCKED"
            f") AS due WHERE i.key = due.name AND i.opened_on = due.day RETURNING {_MESSAGE}"
        ),
        {"at": at, "later": at + patience, "limit": limit},
    )
    found = [Envelope.model_validate(row._mapping) for row in result]
    return sorted(found, key=lambda message: message.key.encode())


async def lock(tx: AsyncConnection, messages: Sequence[Envelope]) -> list[Envelope]:
    """Lock messages in key order; return those that are still to be applied."""
    result = await tx.execute(
        sql(
            "SELECT key, opened_on, state FROM inbox"
            " WHERE (opened_on, key) IN (SELECT * FROM unnest(CAST(:days AS date[]),"
            ' CAST(:keys AS text[]))) ORDER BY key COLLATE "C" FOR UPDATE'
        ),
        {"days": [m.opened_on for m in messages], "keys": [m.key for m in messages]},
    )
    waiting = {(r.opened_on, r.key) for r in result if r.state == InboxState.RECEIVED}
    return [m for m in messages if (m.opened_on, m.key) in waiting]


async def finish(tx: AsyncConnection, messages: Sequence[Envelope], *, at: datetime) -> None:
    """Note that messages were applied, in the transaction of their effect."""
    result = await tx.execute(
        sql(
            "UPDATE inbox AS i SET state = 'CONSUMED', consumed_at = :at, last_error = ''"
            " FROM unnest(CAST(:days AS date[]), CAST(:keys AS text[])) AS new (opened_on, key)"
            " WHERE i.key = new.key AND i.opened_on = new.opened_on AND i.state = 'RECEIVED'"
        ),
        {
            "at": at,
            "days": [m.opened_on for m in messages],
            "keys": [m.key for m in messages],
        },
    )
    assert_all_written(result, len(messages))


async def put_off(
    tx: AsyncConnection, message: Envelope, *, until: datetime | None, error: str, at: datetime
) -> None:
    """Note why a message could not be applied, and when it is tried again; None for never."""
    await tx.execute(
        sql(
            "UPDATE inbox SET state = :state, next_retry_at = :until, last_error = :error"
            " WHERE key = :key AND opened_on = :day AND state = 'RECEIVED'"
        ),
        {
            "state": InboxState.DEAD if until is None else InboxState.RECEIVED,
            "until": until or at,
            "error": error[:2000] or "no reason was given",
            "key": message.key,
            "day": message.opened_on,
        },
    )


async def replay_received(tx: AsyncConnection, keys: Sequence[str], *, at: datetime) -> list[str]:
    """Let dead messages be tried again; return the keys of those that were dead."""
    result = await tx.execute(
        sql(
            "UPDATE inbox SET state = :received, attempts = 0, next_retry_at = :at,"
            " last_error = 'replayed: ' || last_error"
            " WHERE key = ANY(CAST(:keys AS text[])) AND state = 'DEAD' RETURNING key"
        ),
        {"keys": list(keys), "at": at, "received": InboxState.RECEIVED},
    )
    if found := sorted(result.scalars()):
        wake_after_commit(tx, WAKE)
        return found
    return []
