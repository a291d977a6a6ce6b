"""The outbox in SQL: what a participant tells others, in the transaction of what it did.

`publish` comes last in a transaction, after the keys and the resource rows (design rule 4). It
takes the numbers of each aggregate, whose row stays locked until the end: a later message of the
aggregate cannot be committed before an earlier one, and the numbers tell their order.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql, wake_after_commit
from everycent.database.messages_ddl import LANES, NOTIFY_LANES
from everycent.domain.messaging import Event, content_hash, lane_of
from everycent.errors import KeyReused

WAKE = "everycent_outbox"


async def publish(tx: AsyncConnection, events: Sequence[Event]) -> None:
    """Write messages down for their sinks, once each; in the order given within an aggregate.

    A message that is written already stays as it is; with other content it is `KeyReused`.
    """
    if not events:
        return
    last = await _numbers(tx, events)
    rows: list[dict[str, Any]] = []
    for event in reversed(events):
        place = (event.opened_on, event.aggregate)
        rows += [_row(event, sink, last[place]) for sink in event.to]
        last[place] -= 1
    written = await _insert(tx, rows)
    await _compare(tx, [row for row in rows if (row["key"], row["sink"]) not in written])
    wake_after_commit(tx, WAKE)


async def _numbers(tx: AsyncConnection, events: Sequence[Event]) -> dict[tuple[Any, str], int]:
    """Take as many numbers as each aggregate needs, and lock it; return the last ones."""
    wanted = Counter((event.opened_on, event.aggregate) for event in events)
    result = await tx.execute(
        sql(
            "INSERT INTO outbox_number AS n (opened_on, aggregate, last)"
            " SELECT * FROM unnest(CAST(:days AS date[]), CAST(:aggregates AS text[]),"
            " CAST(:counts AS bigint[])) AS new (opened_on, aggregate, last)"
            ' ORDER BY aggregate COLLATE "C", opened_on'
            " ON CONFLICT (opened_on, aggregate) DO UPDATE SET last = n.last + excluded.last"
            " RETURNING opened_on, aggregate, last"
        ),
        {
            "days": [day for day, _ in wanted],
            "aggregates": [aggregate for _, aggregate in wanted],
            "counts": list(wanted.values()),
        },
    )
    return {(row.opened_on, row.aggregate): row.last for row in result}


def _row(event: Event, sink: str, number: int) -> dict[str, Any]:
    return {
        "key": event.key,
        "opened_on": event.opened_on,
        "sink": sink,
        "aggregate": event.aggregate,
        "number": number,
        "lane": lane_of(sink, event.aggregate, lanes=LANES, notify_lanes=NOTIFY_LANES),
        "event": event,
        "hash": content_hash(event),
    }


async def _insert(tx: AsyncConnection, rows: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    result = await tx.execute(
        sql(
            "INSERT INTO outbox (key, opened_on, sink, aggregate, number, lane, type,"
            " schema_version, payload, content_hash, at, state, next_retry_at)"
            " SELECT key, opened_on, sink, aggregate, number, lane, type, version,"
            " payload::jsonb, hash, at, 'PENDING', at"
            " FROM unnest(CAST(:keys AS text[]), CAST(:days AS date[]), CAST(:sinks AS text[]),"
            " CAST(:aggregates AS text[]), CAST(:numbers AS bigint[]), CAST(:lanes AS smallint[]),"
            " CAST(:types AS text[]), CAST(:versions AS smallint[]), CAST(:payloads AS text[]),"
            " CAST(:hashes AS text[]), CAST(:ats AS timestamptz[])) AS new (key, opened_on, sink,"
            " aggregate, number, lane, type, version, payload, hash, at)"
            ' ORDER BY key COLLATE "C", sink COLLATE "C"'
            " ON CONFLICT (opened_on, key, sink) DO NOTHING RETURNING key, sink"
        ),
        {
            **_columns(rows, "key", "sink", "aggregate", "number", "lane"),
            "days": [row["opened_on"] for row in rows],
            "hashes": [row["hash"] for row in rows],
            "types": [row["event"].type for row in rows],
            "versions": [row["event"].schema_version for row in rows],
            "payloads": [json.dumps(row["event"].payload) for row in rows],
            "ats": [row["event"].at for row in rows],
        },
    )
    return {(row.key, row.sink) for row in result}


def _columns(rows: Sequence[dict[str, Any]], *names: str) -> dict[str, list[Any]]:
    return {f"{name}s": [row[name] for row in rows] for name in names}


async def _compare(tx: AsyncConnection, repeated: Sequence[dict[str, Any]]) -> None:
    if not repeated:
        return
    result = await tx.execute(
        sql(
            "SELECT key, opened_on, sink, content_hash FROM outbox"
            " WHERE (opened_on, key) IN (SELECT * FROM unnest(CAST(:days AS date[]),"
            " CAST(:keys AS text[])))"
        ),
        {"days": [r["opened_on"] for r in repeated], "keys": [r["key"] for r in repeated]},
    )
    stored = {(row.opened_on, row.key, row.sink): row.content_hash for row in result}
    for row in repeated:
        if stored[(row["opened_on"], row["key"], row["sink"])] != row["hash"]:
            raise KeyReused(f"{row['key']} would tell {row['sink']} something else than before")
