"""Does a participant keep its promises? A Try with its Confirm and Cancel, ours or anybody's."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

from everycent.proof.conformance import (
    BrokenPromise,
    Call,
    Said,
    assert_idempotent,
    said_by,
    same_answer,
)


@dataclass(frozen=True)
class Steps:
    """The three requests of one fresh key."""

    try_: Any
    confirm: Any
    cancel: Any


class OnTrial(Protocol):
    """A resource with a Try, a Confirm and a Cancel, and how to look at it."""

    engine: AsyncEngine  # What its three functions commit through.

    def try_(self, request: Any, /) -> Awaitable[Any]:
        """Hold the resource."""

    def confirm(self, request: Any, /) -> Awaitable[Any]:
        """Make the hold final."""

    def cancel(self, request: Any, /) -> Awaitable[Any]:
        """Give the hold back, or forbid a Try that comes later."""

    def requests(self, number: int) -> Steps:
        """Return the requests of a fresh key, one for each number; each wants the same."""

    async def state(self) -> Mapping[str, int]:
        """Return how much of the resource there is in each part (free, held, spent)."""


# What each call has to come to, by what was called before: design rule 3 as a caller sees it.
_ENDS = {
    ("nothing", "try"): ("held", "new"),
    ("nothing", "confirm"): ("nothing", "refused"),
    ("nothing", "cancel"): ("cancelled", "new"),
    ("held", "try"): ("held", "same"),
    ("held", "confirm"): ("confirmed", "new"),
    ("held", "cancel"): ("cancelled", "new"),
    ("confirmed", "try"): ("confirmed", "same"),
    ("confirmed", "confirm"): ("confirmed", "same"),
    ("confirmed", "cancel"): ("confirmed", "refused"),
    ("cancelled", "try"): ("cancelled", "refused"),
    ("cancelled", "confirm"): ("cancelled", "refused"),
    ("cancelled", "cancel"): ("cancelled", "same"),
}
_PROMISES = {
    ("nothing", "confirm"): "a Confirm without a Try is refused",
    ("confirmed", "cancel"): "a Cancel of what is confirmed is refused",
    ("cancelled", "try"): "a late Try after its Cancel is refused",
    ("cancelled", "confirm"): "a Confirm of what is cancelled is refused",
}
_CALLED = {"try": "Try", "confirm": "Confirm", "cancel": "Cancel"}
ORDERS = sorted(set(itertools.permutations(("try", "try", "confirm", "cancel", "cancel"))))


async def assert_participant(
    participant: OnTrial, *, at_once: int = 20, ignore: Collection[str] = ()
) -> None:
    """Call a participant's Try, Confirm and Cancel in all their orders, one by one and at once.

    Each of the three is also put through `assert_idempotent`. The resource must be able to give
    some 300 holds. Raises BrokenPromise.
    """
    trial = Orders(participant)
    await trial.learn()
    for order in ORDERS:
        await trial.one_after_the_other(order)
    for order in ORDERS:
        await trial.all_at_once(order)
    numbers = trial.numbers

    async def tried(operation: str, *, first: bool = True) -> Any:
        steps = participant.requests(next(numbers))
        if first:
            await participant.try_(steps.try_)
        return _request(steps, operation)

    makers: list[tuple[str, Call, Callable[[int], Any]]] = [
        ("Try", participant.try_, lambda _: participant.requests(next(numbers)).try_),
        ("Confirm", participant.confirm, lambda _: tried("confirm")),
        ("Cancel", participant.cancel, lambda _: tried("cancel")),
        ("a Cancel that comes first", participant.cancel, lambda _: tried("cancel", first=False)),
    ]
    for name, call, maker in makers:
        try:
            await assert_idempotent(
                call, maker, engine=participant.engine, at_once=at_once, ignore=ignore
            )
        except BrokenPromise as broken:
            raise BrokenPromise(f"{name}: {broken}") from broken


class Orders:
    """A participant, and by how much each end moves the parts of its resource."""

    def __init__(self, participant: OnTrial) -> None:
        self.numbers = itertools.count()
        self._participant = participant
        self.moves: dict[str, dict[str, int]] = {"nothing": {}, "cancelled": {}}

    async def learn(self) -> None:
        """See what a Try and a Confirm move; a Cancel has to move all of it back."""
        for end, order in (("held", ("try",)), ("confirmed", ("try", "confirm"))):
            before = await self._participant.state()
            for operation, each in zip(order, await self._in_turn(order), strict=True):
                if each.error is not None:
                    raise BrokenPromise(f"a {_CALLED[operation]} in its turn succeeds: it {each}")
            self.moves[end] = _moved(before, await self._participant.state())
            if not self.moves["held"]:
                raise BrokenPromise("a Try holds something: it moved nothing")
        has_confirm = getattr(self._participant, "has_confirm", True)
        if has_confirm and self.moves["confirmed"] == self.moves["held"]:
            raise BrokenPromise("a Confirm spends what is held: it moved nothing")

    async def one_after_the_other(self, order: Sequence[str]) -> None:
        """Call in this order, and look at every answer and at the end."""
        before, state = await self._participant.state(), "nothing"
        first: dict[str, Said] = {}
        for operation, each in zip(order, await self._in_turn(order), strict=True):
            _check(state, operation, each, first, order)
            state = _ENDS[state, operation][0]
        await self.check_end(state, before, " then ".join(_CALLED[each] for each in order))

    async def all_at_once(self, order: Sequence[str]) -> None:
        """Start all in this order without waiting; one end has to come of it."""
        before = await self._participant.state()
        steps = self._participant.requests(next(self.numbers))
        said = await asyncio.gather(*(self._call(steps, operation) for operation in order))
        how = f"all at once, begun as {' '.join(_CALLED[each] for each in order)}"
        by = {name: [s for o, s in zip(order, said, strict=True) if o == name] for name in _CALLED}
        confirmed = any(each.error is None for each in by["confirm"])
        for each in by["cancel"]:
            if confirmed is (each.error is None):
                wanted = "refused" if confirmed else "granted"
                raise BrokenPromise(f"Confirm and Cancel have one winner ({how}): a Cancel that"
                                    f" was to be {wanted} {each}")  # fmt: skip
        for name in ("try", "cancel"):
            answered = [each for each in by[name] if each.error is None]
            for each in answered[1:]:
                same_answer(f"doubles get one answer ({how})", answered[0], each)
        await self.check_end("confirmed" if confirmed else "cancelled", before, how)

    async def _in_turn(self, order: Sequence[str]) -> list[Said]:
        steps = self._participant.requests(next(self.numbers))
        return [await self._call(steps, operation) for operation in order]

    async def _call(self, steps: Steps, operation: str) -> Said:
        calls = {
            "try": self._participant.try_,
            "confirm": self._participant.confirm,
            "cancel": self._participant.cancel,
        }
        return await said_by(calls[operation], _request(steps, operation))

    async def check_end(self, end: str, before: Mapping[str, int], how: str) -> None:
        """Compare what has moved since then with what this end moves."""
        moved = _moved(before, await self._participant.state())
        if moved == self.moves[end]:
            return
        promise = {
            "cancelled": "a Cancel leaves nothing held",
            "confirmed": "a Confirm spends what was held, once",
        }[end]
        wanted = self.moves[end] or "nothing"
        raise BrokenPromise(f"{promise} ({how}): moved {moved or 'nothing'} instead of {wanted}")


def _request(steps: Steps, operation: str) -> Any:
    return getattr(steps, "try_" if operation == "try" else operation)


def _moved(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    names = {*before, *after}
    moved = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return {name: by for name, by in sorted(moved.items()) if by}


def _check(
    state: str, operation: str, said: Said, first: dict[str, Said], order: Sequence[str]
) -> None:
    """Compare one answer of an order with what it has to be."""
    _, wanted = _ENDS[state, operation]
    how = " then ".join(_CALLED[each] for each in order)
    name = _CALLED[operation]
    if wanted == "refused":
        if not said.refused:
            raise BrokenPromise(f"{_PROMISES[state, operation]} ({how}): it {said}")
    elif wanted == "same":
        same_answer(f"a repeated {name} gets the first answer ({how})", first[operation], said)
    elif said.error is not None:
        raise BrokenPromise(f"a {name} of what is {state} succeeds ({how}): it {said}")
    else:
        first[operation] = said
