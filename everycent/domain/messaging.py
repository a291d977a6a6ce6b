"""Messages between services: what is published, how it is ordered, and when it is tried again.

A message goes outbox -> relay -> sink. Its states, as its outbox tells them:

PENDING    written down with its effect, not delivered yet
SENT       the sink has it; its consumer has not said that it is done
CONSUMED   the consumer has applied it, in one transaction with its own note of it
DEAD       tried in vain; waits for a person (`everycent messages replay`)

A dead message holds up the later ones of its own aggregate to its own sink, so that they keep their
order, and no others. One to a sink without an order holds up nothing.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Protocol

from pydantic import AwareDatetime, JsonValue

from everycent.domain.message import Key, Message
from everycent.settings import ServiceName

INBOX: Final = "inbox:"
NOTIFY: Final = "notify:"


class OutboxState(StrEnum):
    """Where a message stands for its sender."""

    PENDING = "PENDING"
    SENT = "SENT"
    CONSUMED = "CONSUMED"
    DEAD = "DEAD"


class InboxState(StrEnum):
    """Where a message stands for its receiver."""

    RECEIVED = "RECEIVED"
    CONSUMED = "CONSUMED"
    DEAD = "DEAD"


class Event(Message):
    """What is to be told, once per `key` and sink. `aggregate` is what its order is kept within.

    `opened_on` is the opening day of the order it is about, `at` the business time.
    """

    key: Key
    aggregate: Key
    opened_on: date
    at: AwareDatetime
    type: str
    schema_version: int
    payload: dict[str, JsonValue]
    to: tuple[str, ...]


class Envelope(Message):
    """A message on its way: what is read from an outbox and handed to a sink."""

    key: str
    aggregate: str
    opened_on: date
    at: AwareDatetime
    type: str
    schema_version: int
    payload: dict[str, JsonValue]
    content_hash: str
    number: int
    source: str
    sink: str = ""
    attempts: int = 0
    sent: bool = False

    @property
    def place(self) -> tuple[date, str]:
        """What a message's order is kept within."""
        return (self.opened_on, self.aggregate)


@dataclass(frozen=True)
class Accepted:
    """The sink has the message; whether it was applied is asked again later."""


@dataclass(frozen=True)
class Applied:
    """The receiver has done what the message asks for."""


@dataclass(frozen=True)
class Failed:
    """It was not delivered; `for_good` if another try cannot help."""

    error: str
    for_good: bool = False


Delivery = Accepted | Applied | Failed


class Sink(Protocol):
    """Where a relay delivers: an inbox, an HTTP address; later a broker, a workflow's signal.

    `deliver` is called in no transaction, with the messages of one lane in their order, and may be
    called again with any of them, also while an earlier call is still under way: the receiver knows
    a message by its key. It answers each. `ordered` says whether a dead message holds up the later
    ones of its aggregate.
    """

    @property
    def ordered(self) -> bool:
        """Whether the order within an aggregate is kept."""
        ...

    async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
        """Deliver what may have been delivered before; an answer for each, in order."""
        ...

    def patience(self, attempts: int) -> timedelta | None:
        """Return how long to wait after so many tries that failed; None to give up."""
        ...


def inboxes(*services: str) -> tuple[str, ...]:
    """Return the sinks that are the inboxes of these services."""
    return tuple(f"{INBOX}{service}" for service in sorted(services))


def lane_of(sink: str, aggregate: str, *, lanes: int, notify_lanes: int) -> int:
    """Return the lane of an aggregate to a sink: the same in every process and release.

    Other systems have lanes of their own behind those of our services: they may be slow.
    """
    drawn = zlib.crc32(f"{sink} {aggregate}".encode())
    return lanes + drawn % notify_lanes if sink.startswith(NOTIFY) else drawn % lanes


def content_hash(event: Event) -> str:
    """Return a digest of what a message says; another one under its key is refused."""
    said = [event.aggregate, event.type, event.schema_version, event.payload]
    told = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


def backoff(attempts: int, *, first: timedelta, cap: timedelta) -> timedelta:
    """Return the pause after so many tries: doubled each time, up to a cap."""
    doublings: int = min(max(attempts - 1, 0), 30)
    return min(first * (1 << doublings), cap)


@dataclass(frozen=True)
class Ladder:
    """Fixed pauses after the first, second … try that failed; after the last step nothing more."""

    steps: tuple[timedelta, ...] = (
        timedelta(minutes=1),
        timedelta(minutes=5),
        timedelta(minutes=15),
        timedelta(hours=1),
        timedelta(hours=6),
    )

    def after(self, attempts: int) -> timedelta | None:
        """Return the pause after the nth try, None once the ladder is climbed."""
        return self.steps[attempts - 1] if attempts <= len(self.steps) else None


@dataclass(frozen=True)
class Mark:
    """What becomes of an outbox row after its delivery."""

    state: OutboxState
    next_retry_at: datetime
    error: str = ""


LOOK_AGAIN: Final = (timedelta(seconds=1), timedelta(seconds=30))


def mark_of(message: Envelope, answer: Delivery, sink: Sink, *, at: datetime) -> Mark:
    """Say how a message stands after a delivery that ended with this answer.

    What was sent stays sent while the receiver cannot be asked: only its own no makes it dead.
    """
    attempts = message.attempts + 1
    if isinstance(answer, Applied):
        return Mark(OutboxState.CONSUMED, at)
    if isinstance(answer, Accepted):
        first, cap = LOOK_AGAIN
        return Mark(OutboxState.SENT, at + backoff(attempts, first=first, cap=cap))
    pause = None if answer.for_good else sink.patience(attempts)
    if pause is None:
        return Mark(OutboxState.DEAD, at, answer.error or "no reason was given")
    state = OutboxState.SENT if message.sent else OutboxState.PENDING
    return Mark(state, at + pause, answer.error)


def whole_runs(
    messages: Sequence[Envelope], answers: Sequence[Delivery]
) -> list[tuple[Envelope, Delivery]]:
    """Pair messages and answers, but for those behind a failure of their aggregate.

    Whatever a sink did with them, they stay as they were and go again, in their order.
    """
    failed: set[Any] = set()
    kept = []
    for message, answer in zip(messages, answers, strict=True):
        place = (message.sink, *message.place)
        if place in failed:
            continue
        if isinstance(answer, Failed):
            failed.add(place)
        kept.append((message, answer))
    return kept


class ReplayMessages(Message):
    """Let these dead messages of a service be tried again."""

    service: ServiceName
    keys: tuple[str, ...]
    at: AwareDatetime


class Replayed(Message):
    """The keys that were dead: of its inbox, and of its outbox."""

    received: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()
