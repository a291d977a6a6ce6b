"""The fault points of messages: what an armed process puts around its relays and consumers.

In such a process each message goes by itself and in a task of its own: one that stands at a point
holds up no other. A process that was not armed at its start has the plain ones.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.exc import DBAPIError

from everycent import faults
from everycent.database.engine import Database
from everycent.database.lanes import Lane
from everycent.domain.messaging import Delivery, Envelope, Failed, Sink
from everycent.errors import Bug, EverycentError
from everycent.faults import Visit
from workers import fault_points
from workers.consumer import Consumer, ConsumerTimes, Reaction
from workers.relay import Relay, RelayTimes

logger = logging.getLogger(__name__)
_CONSUMER_CONNECTIONS = 3
_SPARE_CONNECTIONS = 4  # For the takes, and for messages that are applied twice at once.


def connections(size: int) -> int:
    """Return how many connections the consumer of a service has, of a pool of this size."""
    return min(size, _CONSUMER_CONNECTIONS) if faults.armed is None else size


def consumer(
    service: str,
    database: Database,
    reactions: Mapping[str, Reaction],
    *,
    now: Callable[[], datetime],
) -> Consumer:
    """Return the consumer of a service, in an armed process with points around each message."""
    if faults.armed is None:
        return Consumer(database, reactions, now=now)
    return _ArmedConsumer(service, faults.armed, database, reactions, now=now)


def relay(
    source: str,
    database: Database,
    sinks: Mapping[str, Sink],
    *,
    holder: str,
    now: Callable[[], datetime],
    only: range,
) -> Relay:
    """Return the relay of an outbox, in an armed process with points around each message."""
    if faults.armed is None:
        return Relay(source, database, sinks, holder=holder, now=now, only=only)
    return _ArmedRelay(
        faults.armed, source, database, sinks, holder=holder, now=now, only=only, batch=1
    )


class _ArmedConsumer(Consumer):
    """Passes the points of each message, as the step `<service>.<the message's key>`."""

    def __init__(
        self, service: str, armed: faults.Faults, database: Database, *given: Any, **named: Any
    ) -> None:
        super().__init__(database, *given, **named)
        self._service = service
        self._armed = armed
        self._free = database.pool.size - _SPARE_CONNECTIONS

    async def run_pass(self) -> int:
        """Take as much as there is room for; each message is applied beside the loop."""
        taken = await self._take(self._free) if self._free > 0 else []
        for message in taken:
            self._free -= 1
            self._armed.detach(_logged(self._apply_one(message)))
        return len(taken)

    async def _apply_one(self, message: Envelope) -> None:
        try:
            await self._apply_all(message.type, [message])
        finally:
            self._free += 1

    async def _apply(self, kind: str, messages: Sequence[Envelope]) -> None:
        [message] = messages
        patience = ConsumerTimes().patience.total_seconds()
        with faults.visiting(_visit(message, f"{self._service}.", "", patience)):
            apply = super()._apply
            await fault_points.between(self._armed, "message", lambda: apply(kind, messages))


class _ArmedRelay(Relay):
    """Passes the points of each message, as the step `relay.<the message's key>><its receiver>`.

    Who asks again how a delivered message stands passes none.
    """

    def __init__(self, armed: faults.Faults, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._armed = armed

    async def run_pass(self) -> int:
        """Claim a lane; it is carried beside the loop."""
        lane = await self._claim()
        if lane is not None:
            self._armed.detach(_logged(self._carry(lane)))
        return lane is not None

    async def _deliver(self, messages: Sequence[Envelope]) -> list[Delivery]:
        deliver = super()._deliver
        with faults.visiting(self._visit(messages)):
            try:
                return await fault_points.between(
                    self._armed, "message", lambda: deliver(messages), alike=False
                )
            except EverycentError as error:
                return [Failed(f"{type(error).__name__}: {error}", isinstance(error, Bug))]

    async def _mark(
        self, lane: Lane, messages: Sequence[Envelope], answers: Sequence[Delivery]
    ) -> int:
        with faults.visiting(self._visit(messages)):
            return await super()._mark(lane, messages, answers)

    @staticmethod
    def _visit(messages: Sequence[Envelope]) -> Visit | None:
        [message] = messages
        patience = RelayTimes().lease.total_seconds()
        receiver = f">{message.sink.rpartition(':')[2]}"
        return None if message.sent else _visit(message, "relay.", receiver, patience)


def _visit(message: Envelope, before: str, behind: str, patience: float) -> Visit:
    name = message.key.removeprefix(f"{message.aggregate}/")
    return Visit(message.aggregate, f"{before}{name}{behind}", patience)


async def _logged(work: Awaitable[Any]) -> None:
    """Await what nobody waits for; what is not done is done again by a later pass."""
    try:
        await work
    except (EverycentError, DBAPIError) as error:
        logger.warning("a message failed and will come again: %s: %s", type(error), error)
