"""The consumer: applies what stands in a service's inbox, once, with the effect of each message.

A message that cannot be applied is tried again with growing pauses, without end while the failure
may pass (Transient, Unknown); any other failure makes it dead after so many tries, and holds up the
later messages of its aggregate from the same sender, no others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import inbox, outbox
from everycent.database.engine import Database
from everycent.domain.messaging import Envelope, Event, backoff
from everycent.errors import EverycentError, Transient, Unknown

# What a message can be to blame for: ours, a broken invariant, a payload that no model takes.
_FAILURES = (EverycentError, AssertionError, ValueError)


class Reaction(Protocol):
    """What a service does about messages of one type.

    `prepare` may talk to others and comes before the transaction of the effect: what it does is
    safe to be repeated, under keys of its own. `apply` does the effect in the open transaction and
    returns what is to be told about it. Both take a batch, `prepared` in step with it.
    """

    async def prepare(self, messages: Sequence[Envelope]) -> Sequence[Any]:
        """Do what lies outside of the transaction."""
        ...

    async def apply(
        self, tx: AsyncConnection, messages: Sequence[Envelope], prepared: Sequence[Any]
    ) -> Sequence[Event]:
        """Do the effect; raises what stands in its way."""
        ...


@dataclass(frozen=True)
class ConsumerTimes:
    """How long a taken message is left alone, the pauses after failures, how many are enough."""

    patience: timedelta = timedelta(seconds=60)
    first: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(minutes=1)
    tries: int = 8


class Consumer:
    """Applies the messages of one inbox; `now` is the edge's clock."""

    def __init__(
        self,
        database: Database,
        reactions: Mapping[str, Reaction],
        *,
        now: Callable[[], datetime],
        times: ConsumerTimes | None = None,
        batch: int = 50,
    ) -> None:
        self._database = database
        self._reactions = reactions
        self._now = now
        self._times = times or ConsumerTimes()
        self._batch = batch

    async def run_pass(self) -> int:
        """Take what is due and apply it; return how many messages were taken."""
        taken = await self._take(self._batch)
        by_type = sorted(taken, key=lambda message: message.type)
        for kind, group in groupby(by_type, lambda message: message.type):
            await self._apply_all(kind, list(group))
        return len(taken)

    async def _take(self, limit: int) -> list[Envelope]:
        async with self._database.transaction() as tx:
            return await inbox.take(tx, at=self._now(), limit=limit, patience=self._times.patience)

    async def _apply_all(self, kind: str, messages: Sequence[Envelope]) -> None:
        """Apply a batch; where that fails one by one, so that a bad message spoils no other."""
        if len(messages) > 1:
            try:
                await self._apply(kind, messages)
            except _FAILURES:
                pass
            else:
                return
        for message in messages:
            try:
                await self._apply(kind, [message])
            except _FAILURES as error:
                await self._put_off(message, error)

    async def _apply(self, kind: str, messages: Sequence[Envelope]) -> None:
        reaction = self._reactions.get(kind)
        if reaction is None:
            raise Transient(f"this release knows no {kind}; a newer one may")
        prepared = await reaction.prepare(messages)
        async with self._database.transaction() as tx:
            waiting = await inbox.lock(tx, messages)
            known = {id(m): p for m, p in zip(messages, prepared, strict=True)}
            events = await reaction.apply(tx, waiting, [known[id(m)] for m in waiting])
            await inbox.finish(tx, waiting, at=self._now())
            await outbox.publish(tx, events)

    async def _put_off(self, message: Envelope, error: BaseException) -> None:
        times, at = self._times, self._now()
        passes = isinstance(error, Transient | Unknown)
        pause = backoff(message.attempts, first=times.first, cap=times.cap)
        over = not passes and message.attempts >= times.tries
        async with self._database.transaction() as tx:
            await inbox.put_off(
                tx,
                message,
                until=None if over else at + pause,
                error=f"{type(error).__name__}: {error}",
                at=at,
            )
