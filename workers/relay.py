"""The relay: carries what stands in outboxes to where it is to go, and notes what became of it.

One pass claims a lane, and until nothing is due in it: reads (a transaction), delivers (in none),
marks (a transaction that keeps the lane). Killed anywhere, the next relay delivers again what was
not marked; receivers know a message by its key.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from everycent.database import inbox, lanes
from everycent.database.engine import Database, assert_no_transaction
from everycent.database.lanes import Lane, LaneLost
from everycent.domain.messaging import (
    Accepted,
    Applied,
    Delivery,
    Envelope,
    Failed,
    InboxState,
    Sink,
    backoff,
    mark_of,
    whole_runs,
)
from everycent.errors import Bug, EverycentError, InvalidRequest, KeyReused


@dataclass(frozen=True)
class RelayTimes:
    """How long a lane is held without a sign, and how much of that a delivery may take."""

    lease: timedelta = timedelta(seconds=15)
    delivery: timedelta = timedelta(seconds=10)


class Relay:
    """Carries the messages of one service's outbox; `now` is the edge's clock."""

    def __init__(
        self,
        source: str,
        database: Database,
        sinks: Mapping[str, Sink],
        *,
        holder: str,
        now: Callable[[], datetime],
        times: RelayTimes | None = None,
        batch: int = 200,
        only: range = lanes.ALL,
    ) -> None:
        self._source = source
        self._database = database
        self._sinks = sinks
        self._unordered = [name for name, sink in sinks.items() if not sink.ordered]
        self._holder = holder
        self._now = now
        self._times = times or RelayTimes()
        self._batch = batch
        self._only = only

    async def run_pass(self) -> int:
        """Carry one lane until nothing is due in it; return how many messages were marked."""
        lane = await self._claim()
        return 0 if lane is None else await self._carry(lane)

    async def _claim(self) -> Lane | None:
        async with self._database.transaction() as tx:
            return await lanes.claim_lane(
                tx,
                holder=self._holder,
                at=self._now(),
                lease=self._times.lease,
                lanes=self._only,
                unordered=self._unordered,
            )

    async def _carry(self, lane: Lane) -> int:
        marked = 0
        try:
            while messages := await self._read(lane):
                marked += await self._mark(lane, messages, await self._deliver(messages))
            await self._give_back(lane)
        except LaneLost:
            return marked  # What was delivered is known by its keys; the other relay marks it.
        return marked

    async def _read(self, lane: Lane) -> list[Envelope]:
        at = self._now()
        async with self._database.transaction() as tx:
            await lanes.hold_lane(tx, lane, until=at + self._times.lease)
            return await lanes.due_in(
                tx,
                lane,
                source=self._source,
                at=at,
                limit=self._batch,
                unordered=self._unordered,
            )

    async def _deliver(self, messages: Sequence[Envelope]) -> list[Delivery]:
        """Hand each sink its messages, the sinks side by side; one that fails holds up no other."""
        assert_no_transaction()
        parts = [(name, list(part)) for name, part in groupby(messages, lambda m: m.sink)]
        answers = await asyncio.gather(*(self._to(name, part) for name, part in parts))
        return [answer for part in answers for answer in part]

    async def _to(self, name: str, messages: Sequence[Envelope]) -> Sequence[Delivery]:
        """Deliver to one sink; where the whole is refused, one by one: a bad one spoils itself."""
        sink = self._sinks.get(name, UNKNOWN)
        answers = await self._at_once(sink, messages)
        if answers is not None:
            return answers
        failed: set[object] = set()
        single: list[Delivery] = []
        for message in messages:
            if sink.ordered and message.place in failed:
                single.append(Failed("an earlier message of its aggregate failed"))
                continue
            [answer] = await self._at_once(sink, [message]) or [Failed("refused")]
            if isinstance(answer, Failed):
                failed.add(message.place)
            single.append(answer)
        return single

    async def _at_once(self, sink: Sink, messages: Sequence[Envelope]) -> Sequence[Delivery] | None:
        """Deliver in one call; None if a bug was met among several messages."""
        try:
            async with asyncio.timeout(self._times.delivery.total_seconds()):
                return await sink.deliver(messages)
        except (Bug, InvalidRequest) as error:
            if len(messages) > 1:
                return None
            return [Failed(_told(error), for_good=True)]
        except EverycentError as error:
            return [Failed(_told(error))] * len(messages)
        except TimeoutError:
            return [Failed("the delivery took too long")] * len(messages)

    async def _mark(
        self, lane: Lane, messages: Sequence[Envelope], answers: Sequence[Delivery]
    ) -> int:
        at = self._now()
        marks = [
            (message, mark_of(message, answer, self._sinks.get(message.sink, UNKNOWN), at=at))
            for message, answer in whole_runs(messages, answers)
        ]
        async with self._database.transaction() as tx:
            await lanes.hold_lane(tx, lane, until=at + self._times.lease)
            await lanes.mark(tx, marks, at=at)
        return len(marks)

    async def _give_back(self, lane: Lane) -> None:
        async with self._database.transaction() as tx:
            await lanes.hold_lane(tx, lane, until=None)


class InboxSink:
    """The inbox of a service. Its order is kept: a batch is written down whole, or not at all.

    An inbox that cannot be reached is tried again without end; a message that it refuses, because
    its key stands for another, is dead at once.
    """

    ordered = True

    def __init__(self, database: Database, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
        """Write the messages down, and tell how each stands with its consumer."""
        async with self._database.transaction() as tx:
            standings = await inbox.receive(tx, messages, at=self._now())
            for message, standing in zip(messages, standings, strict=True):
                if standing.content_hash != message.content_hash:
                    raise KeyReused(f"the receiver knows another message {message.key}")
        return [_answer(standing) for standing in standings]

    def patience(self, attempts: int) -> timedelta | None:
        """Return the pause after so many tries: up to a minute, and never the end."""
        return backoff(attempts, first=timedelta(seconds=1), cap=timedelta(minutes=1))


class UnknownSink:
    """Stands for a sink that this relay does not know: a newer one may."""

    ordered = True

    async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
        """Deliver nothing."""
        return [Failed("no such sink")] * len(messages)

    def patience(self, attempts: int) -> timedelta | None:
        """Return the pause after so many tries."""
        return backoff(attempts, first=timedelta(seconds=1), cap=timedelta(minutes=5))


UNKNOWN = UnknownSink()


def _answer(standing: inbox.Standing) -> Delivery:
    if standing.state is InboxState.CONSUMED:
        return Applied()
    if standing.state is InboxState.DEAD:
        return Failed(f"the receiver gave it up: {standing.error}", for_good=True)
    return Accepted()


def _told(error: EverycentError) -> str:
    return f"{type(error).__name__}: {error}"
