"""The relay's side of an outbox: claim a lane, read what is due in it, mark what became of it.

A lane is a relay's for a while (`held_until`), under a number that grows with every claim. Every
statement of a relay about its lane looks whether that number still stands and keeps it until the
commit: who comes back after another has claimed the lane reads and marks nothing (decision 0009).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.database.fence import assert_all_written
from everycent.database.messages_ddl import LANES, NOTIFY_LANES
from everycent.domain.messaging import Envelope, Mark, OutboxState
from everycent.errors import Transient


class LaneLost(Transient):
    """Another relay has claimed the lane: what this one knows of it is old."""


@dataclass(frozen=True)
class Lane:
    """A lane of an outbox, and the number of the claim."""

    number: int
    fence: int


ALL = range(LANES + NOTIFY_LANES)
TO_SERVICES, TO_OTHERS = ALL[:LANES], ALL[LANES:]

# Due, and behind nothing of its aggregate that has to go first. To a sink without an order nothing
# is behind anything. There is no cursor: a row counts by its state, whenever it was committed.
_DUE = (
    "o.state IN ('PENDING', 'SENT') AND o.next_retry_at <= :at"
    " AND (o.sink = ANY(CAST(:unordered AS text[])) OR NOT EXISTS ("
    "SELECT FROM outbox AS e WHERE e.lane = o.lane AND e.sink = o.sink"
    " AND e.opened_on = o.opened_on AND e.aggregate = o.aggregate AND e.number < o.number"
    " AND (e.state = 'DEAD' OR (e.state = 'PENDING' AND e.next_retry_at > :at))))"
)


async def claim_lane(
    tx: AsyncConnection,
    *,
    holder: str,
    at: datetime,
    lease: timedelta,
    lanes: range = ALL,
    unordered: Sequence[str] = (),
) -> Lane | None:
    """Take the lane with something due that nobody holds and that has waited longest, if any.

    A lane that another relay is just claiming or marking is passed by, not waited for.
    """
    result = await tx.execute(
        sql(
            "UPDATE outbox_lane SET fence = fence + 1, holder = :holder, claimed_at = :at,"
            " held_until = :until WHERE lane = (SELECT l.lane FROM outbox_lane AS l"
            " WHERE (l.held_until IS NULL OR l.held_until <= :at)"
            " AND l.lane BETWEEN :first AND :last"
            f" AND EXISTS (SELECT FROM outbox AS o WHERE o.lane = l.lane AND {_DUE})"
            " ORDER BY l.claimed_at NULLS FIRST, l.lane LIMIT 1 FOR UPDATE SKIP LOCKED"
            ")"
            " RETURNING lane, fence"
        ),
        {
            "holder": holder,
            "at": at,
            "until": at + lease,
            "unordered": list(unordered),
            "first": lanes[0],
            "last": lanes[-1],
        },
    )
    row = result.one_or_none()
    return None if row is None else Lane(row.lane, row.fence)


async def hold_lane(tx: AsyncConnection, lane: Lane, *, until: datetime | None) -> None:
    """Keep the lane until then, or give it back (None); raises LaneLost if it is another's."""
    result = await tx.execute(
        sql("UPDATE outbox_lane SET held_until = :until WHERE lane = :lane AND fence = :fence"),
        {"lane": lane.number, "fence": lane.fence, "until": until},
    )
    if result.rowcount == 0:
        raise LaneLost(f"lane {lane.number} was claimed by another relay")


async def due_in(
    tx: AsyncConnection,
    lane: Lane,
    *,
    source: str,
    at: datetime,
    limit: int,
    unordered: Sequence[str] = (),
) -> list[Envelope]:
    """Return what is due in the lane, each aggregate from its first such message on."""
    result = await tx.execute(
        sql(
            "SELECT key, aggregate, opened_on, at, type, schema_version, payload, content_hash,"
            " number, sink, attempts, state = 'SENT' AS sent FROM outbox AS o"
            f" WHERE o.lane = :lane AND {_DUE}"
            " ORDER BY sink, opened_on, aggregate, number LIMIT :limit"
        ),
        {"lane": lane.number, "at": at, "limit": limit, "unordered": list(unordered)},
    )
    return [Envelope.model_validate({**row._mapping, "source": source}) for row in result]


async def mark(
    tx: AsyncConnection, marks: Sequence[tuple[Envelope, Mark]], *, at: datetime
) -> None:
    """Write what became of messages of a lane that `hold_lane` has kept in this transaction."""
    result = await tx.execute(
        sql(
            "UPDATE outbox AS o SET state = new.state, attempts = o.attempts + 1,"
            " next_retry_at = new.next_retry_at, last_error = new.error,"
            " sent_at = CASE WHEN new.state = 'SENT' THEN coalesce(o.sent_at, :at)"
            " ELSE o.sent_at END,"
            " consumed_at = CASE WHEN new.state = 'CONSUMED' THEN CAST(:at AS timestamptz) END"
            " FROM unnest(CAST(:keys AS text[]), CAST(:days AS date[]), CAST(:sinks AS text[]),"
            " CAST(:states AS text[]), CAST(:nexts AS timestamptz[]), CAST(:errors AS text[]))"
            " AS new (key, opened_on, sink, state, next_retry_at, error)"
            " WHERE o.key = new.key AND o.opened_on = new.opened_on AND o.sink = new.sink"
        ),
        {
            "at": at,
            "keys": [message.key for message, _ in marks],
            "days": [message.opened_on for message, _ in marks],
            "sinks": [message.sink for message, _ in marks],
            "states": [what.state for _, what in marks],
            "nexts": [what.next_retry_at for _, what in marks],
            "errors": [what.error[:2000] for _, what in marks],
        },
    )
    assert_all_written(result, len(marks))


async def replay_sent(tx: AsyncConnection, keys: Sequence[str], *, at: datetime) -> list[str]:
    """Put dead messages back among those to be delivered; return the keys of those that were."""
    result = await tx.execute(
        sql(
            "UPDATE outbox SET state = :pending, attempts = 0, next_retry_at = :at,"
            " last_error = 'replayed: ' || last_error"
            " WHERE key = ANY(CAST(:keys AS text[])) AND state = 'DEAD' RETURNING key"
        ),
        {"keys": list(keys), "at": at, "pending": OutboxState.PENDING},
    )
    return sorted(set(result.scalars()))
