"""What the tests of relays share: a sink that keeps what it is given, and looks at the rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from everycent.database.engine import Database
from everycent.domain.messaging import Applied, Delivery, Envelope, Sink
from everycent.settings import ServiceName
from tests.messages.conftest import Clock
from workers.relay import Relay

Pools = dict[ServiceName, Database]
INVENTORY = "inbox:inventory"


class Crash(Exception):
    """The process dies here: none of our code may catch it."""


@dataclass
class Listed:
    """A sink that keeps what it is given, and answers as it is told."""

    ordered: bool = True
    answer: Callable[[Envelope], Delivery] = lambda message: Applied()
    got: list[Envelope] = field(default_factory=list)
    before: Callable[[Sequence[Envelope]], Any] | None = None

    async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
        if self.before is not None:
            await self.before(messages)
        self.got += messages
        return [self.answer(message) for message in messages]

    def patience(self, attempts: int) -> timedelta | None:
        return timedelta(seconds=1) if attempts < 3 else None

    def names(self) -> list[str]:
        return [message.key.split("/", 1)[1] for message in self.got]


def relay(pools: Pools, sinks: Mapping[str, Sink], clock: Clock, **more: Any) -> Relay:
    return Relay("order", pools["order"], sinks, **{"holder": "r", "now": clock, **more})


async def rows(pools: Pools, tenant: str, service: ServiceName = "order") -> list[Any]:
    async with pools[service].transaction() as tx:
        box = "outbox" if service == "order" else "inbox"
        found = await tx.execute(
            text(f"SELECT * FROM {box} WHERE starts_with(key, :t) ORDER BY aggregate, number"),
            {"t": f"{tenant}/"},
        )
        return list(found.all())


async def states(pools: Pools, tenant: str) -> dict[str, str]:
    found = await rows(pools, tenant)
    return {row.key.split("/", 1)[1]: row.state for row in found}


async def all_passes(*carriers: Relay) -> None:
    while any([await each.run_pass() for each in carriers]):
        pass
