"""Is what came of a schedule what one call after the other could have brought? Checked afterwards.

Every operation locks its keys until its end, so a schedule has to come to what its sessions bring
one after the other, in the order of their ends, by the rules of the kind. Only a Confirm that finds
no row locks nothing: it counts at the moment when it asked.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from everycent.domain.outcome import Refusal
from everycent.errors import EverycentError, NothingTried, Unknown
from everycent.proof.interleavings_kinds import ABSENT, START, UNITS, Kind, Parts
from everycent.proof.interleavings_session import Ending, Point, Session


@dataclass
class Played:
    """A schedule that was played: its place, its sessions and the order they went in."""

    kind: Kind
    title: str
    place: str
    operations: tuple[str, ...]
    sessions: Sequence[Session]
    order: Sequence[tuple[int, Point | None]]
    keys: Sequence[str]
    log: list[tuple[str, str, Any]] = field(default_factory=list)  # (operation, key, answer)

    def told(self) -> str:
        """Return the order in words: who went past which point."""
        return " ".join(f"{self.operations[i]}{i + 1}:{at}" for i, at in self.order)


@dataclass(frozen=True)
class Finding:
    """A schedule that is not safe, and the promise that it broke."""

    kind: str
    case: str
    order: str
    broken: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.case}: {self.broken}; order: {self.order}"


class Book:
    """What the rules say of each key of one place, and the first answers that were given."""

    def __init__(self, kind: Kind) -> None:
        self.states: dict[str, str] = {}
        self._kind = kind
        self._first: dict[tuple[str, str], Any] = {}

    def take(self, operation: str, key: str, answer: Any) -> str | None:
        """Let an operation happen; return what is wrong with its answer, if anything."""
        state = self.states.get(key, self._kind.begins)
        after, wanted = self._kind.rules[state, operation]
        self.states[key] = after
        if isinstance(wanted, type):
            right = isinstance(answer, wanted)
        elif wanted == "new":
            right = not isinstance(answer, EverycentError | Refusal)
            self._first[key, operation] = answer
        elif wanted != "same":
            right = self._kind.shows(answer) == wanted
        else:
            right = answer == self._first.get((key, operation))
        if right:
            return None
        expected = wanted.__name__ if isinstance(wanted, type) else f"the {wanted} answer"
        return f"{operation} of {key}, which was {state}, answered {answer!r} instead of {expected}"


def judge_schedule(
    played: Played, states: Mapping[str, str], parts: Parts | None
) -> tuple[Book, list[str]]:
    """Return the book after the schedule, and every promise that the schedule broke."""
    book = Book(played.kind)
    broken = [f"{op} {i + 1} failed: {e!r}" for i, op, e in _failures(played)]
    broken += _take(book, played.log)
    broken += _take(book, [entry for _, *entry in sorted(_events(played), key=lambda e: e[0])])
    return book, broken + judge_rows(book, played, states, parts)


def judge_after(
    book: Book,
    played: Played,
    late: Sequence[tuple[str, str, Any]],
    states: Mapping[str, str],
    parts: Parts | None,
) -> list[str]:
    """Return every promise that calls broke which came when all was over."""
    broken = [f"afterwards, {what}" for what in _take(book, late)]
    return broken + [f"afterwards, {what}" for what in judge_rows(book, played, states, parts)]


def judge_rows(
    book: Book, played: Played, states: Mapping[str, str], parts: Parts | None
) -> list[str]:
    """Compare the rows and the resources with the book."""
    begins = played.kind.begins
    ended = {key: states.get(key, ABSENT) for key in played.keys}
    wanted = {key: book.states.get(key, begins) for key in played.keys}
    broken = [
        f"the row of {key} is {ended[key]} instead of {wanted[key]}"
        for key in played.keys
        if ended[key] != wanted[key]
    ]
    return broken if parts is None else broken + _judge_parts(Counter(ended.values()), parts)


def _judge_parts(ended: Counter[str], parts: Parts) -> list[str]:
    held, done = UNITS * ended["TRIED"], UNITS * ended["CONFIRMED"]
    broken = []
    if parts.held != held:
        broken.append(f"{parts.held} are held, the rows hold {held}: a hold has no owner")
    if parts.done != done:
        broken.append(f"{parts.done} are spent, the confirmed rows spent {done}")
    if parts.free != 2 * START - held - done:
        broken.append(f"{parts.free} of {2 * START} are free beside {held} held and {done} spent")
    return broken


def _take(book: Book, log: Sequence[Any]) -> list[str]:
    taken = (book.take(*entry) for entry in log)
    return [wrong for wrong in taken if wrong is not None]


def _failures(played: Played) -> list[tuple[int, str, BaseException]]:
    """Return the sessions that ended in another way than they were to."""
    return [
        (i, played.operations[i], session.error)
        for i, session in enumerate(played.sessions)
        if session.error is not None
        and not (
            session.ending is Ending.LOST
            and session.answers is not None
            and isinstance(session.error, Unknown)
        )
    ]


def _events(played: Played) -> list[tuple[int, str, str, Any]]:
    """Return when which committed operation happened to which key, with its answer."""
    return [
        (
            _asked(played.kind, session, key)
            if isinstance(answer, NothingTried)
            else session.ended_at,
            operation,
            key,
            answer,
        )
        for operation, session in zip(played.operations, played.sessions, strict=True)
        if session.committed
        for key, answer in zip(session.keys, session.answers or (), strict=True)
    ]


def _asked(kind: Kind, session: Session, key: str) -> int:
    """Return the step in which the session asked for the key: in a call for it, or for all."""
    calls = sorted(set(session.keys)) if kind.key_by_key else [key]
    return session.asked_at[calls.index(key)]
