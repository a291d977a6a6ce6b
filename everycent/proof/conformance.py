"""Is an activity safe to run twice? For our own activities and for anybody's.

`assert_idempotent` calls it for real, on a real database that nobody else uses meanwhile, and
raises `BrokenPromise` with the promise in its first words. For a Try with its Confirm and Cancel
see `everycent.proof.conformance_participant`.
"""

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from everycent.domain.fence import unwrap
from everycent.domain.message import StepRequest
from everycent.domain.outcome import Refusal
from everycent.errors import InvalidRequest
from everycent.proof.conformance_state import (
    Died,
    Effect,
    Tables,
    another_under_the_same_key,
    dying_at_commit,
    read_tables,
    tell_difference,
    under_a_fresh_key,
)

Call = Callable[[Any], Awaitable[Any]]
_MOST_COMMITS = 10  # An activity with more transactions than this is stopped in the first ten.


class BrokenPromise(AssertionError):  # What it says, not how.
    """A step does not keep one of its promises; the message names it and what was seen."""


@dataclass(frozen=True)
class Said:
    """What a call came to: its answer, or the error that was raised or returned."""

    answer: Any = None
    error: BaseException | None = None

    def __str__(self) -> str:
        return f"answered {self.answer!r}" if self.error is None else f"failed: {self.error!r}"

    @property
    def refused(self) -> bool:
        """Whether it was told no."""
        return self.error is not None or isinstance(self.answer, Refusal)

    def same(self, other: "Said") -> bool:
        """Whether a caller is told the same."""
        if self.error is not None or other.error is not None:
            return type(self.error) is type(other.error)
        return bool(self.answer == other.answer)


def one_by_one(
    begin: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
    operation: Callable[[AsyncConnection, Sequence[Any]], Awaitable[Sequence[Any]]],
) -> Call:
    """Make a call for one request out of a function of an open transaction and a batch.

    `begin` opens the transaction that is committed at its end: `engine.begin`.
    """

    async def call(request: Any) -> Any:
        async with begin() as tx:
            [answer] = await operation(tx, [request])
        return unwrap(answer)

    return call


async def assert_idempotent(
    activity: Call,
    request: Any,
    *,
    engine: AsyncEngine,
    other: Callable[[Any], Any] | None = None,
    at_once: int = 20,
    ignore: Collection[str] = (),
) -> None:
    """Call an activity once, twice, many times at once, and die at each of its COMMITs.

    `request` is a StepRequest, of which fresh keys are made, or a function of a number that
    prepares and returns a request under a key of its own, all wanting the same. `engine` is what
    the activity commits through. `other` makes another request under the same key; it is derived if
    None. `ignore` names columns (`entry.seq`) that tell where a row stands among others: they may
    differ between two keys. Raises BrokenPromise.
    """
    trial = _Trial(activity, request, engine, ignore)
    await trial.once_and_twice()
    await trial.at_once(at_once)
    for after in (False, True):
        await trial.die_at_each_commit(after=after)
    await trial.another_request(other)


class _Trial:
    """One activity on trial; `first` is what a single call did."""

    def __init__(
        self, activity: Call, request: Any, engine: AsyncEngine, ignore: Collection[str]
    ) -> None:
        self._activity = activity
        self._request = request
        self._engine = engine
        self._ignore = ignore
        self._numbers = itertools.count()
        self._effect = Effect({})

    async def _fresh(self) -> Any:
        if isinstance(self._request, StepRequest):
            return under_a_fresh_key(self._request)
        made = self._request(next(self._numbers))
        return await made if inspect.isawaitable(made) else made

    async def _call(self, request: Any) -> Said:
        return await said_by(self._activity, request)

    async def _tables(self) -> Tables:
        return await read_tables(self._engine, self._ignore)

    async def once_and_twice(self) -> None:
        request, before = await self._fresh(), await self._tables()
        first = await self._call(request)
        if first.error is not None:
            raise BrokenPromise(f"the first call succeeds: it {first}")
        once = await self._tables()
        self._effect = once.effect_since(before)
        second = await self._call(request)
        same_answer("a second call gets the first answer", first, second)
        _unchanged("a second call changes nothing", once, await self._tables())

    async def at_once(self, number: int) -> None:
        request, before = await self._fresh(), await self._tables()
        said = await asyncio.gather(*(self._call(request) for _ in range(number)))
        for each in said:
            if each.error is not None:
                raise BrokenPromise(f"{number} calls at once all succeed: one {each}")
            same_answer(f"{number} calls at once get one answer", said[0], each)
        await self._as_once(f"{number} calls at once do it once", before)
        same_answer(
            f"a call after {number} at once gets their answer", said[0], await self._call(request)
        )

    async def die_at_each_commit(self, *, after: bool) -> None:
        where = "after" if after else "before"
        for commit in range(1, _MOST_COMMITS + 1):
            request, before = await self._fresh(), await self._tables()
            with dying_at_commit(self._engine, commit, after=after) as died:
                said = await self._call(request)
            if not died:
                if commit == 1 and self._effect.is_something:
                    raise InvalidRequest("the activity does not commit through this engine")
                return
            if said.error is None or not isinstance(said.error, Died):
                raise BrokenPromise(
                    f"a process that dies {where} COMMIT {commit} answers nothing: it {said}"
                )
            if commit == 1 and not after:
                _unchanged("a process that dies before COMMIT leaves nothing", before,
                           await self._tables())  # fmt: skip
            again = await self._call(request)
            if again.error is not None:
                raise BrokenPromise(f"a call after a death {where} COMMIT succeeds: it {again}")
            await self._as_once(
                f"a call after a death {where} COMMIT {commit} does it once", before
            )
            same_answer("and the next gets its answer", again, await self._call(request))

    async def another_request(self, other: Callable[[Any], Any] | None) -> None:
        request = await self._fresh()
        if other is not None:
            another = other(request)
        elif isinstance(request, StepRequest):
            another = another_under_the_same_key(request)
        else:
            raise InvalidRequest("say by `other` what another request under the same key is")
        if another is None:  # A Confirm or Cancel names nothing but its key.
            return
        first, before = await self._call(request), await self._tables()
        refused = await self._call(another)
        if not refused.refused:
            raise BrokenPromise(f"another request under the same key is refused: it {refused}")
        _unchanged("another request under the same key changes nothing", before,
                   await self._tables())  # fmt: skip
        same_answer("the first request keeps its answer", first, await self._call(request))

    async def _as_once(self, promise: str, before: Tables) -> None:
        effect = (await self._tables()).effect_since(before)
        if effect != self._effect:
            raise BrokenPromise(f"{promise}: once was {self._effect}, this was {effect}")


async def said_by(call: Call, request: Any) -> Said:
    """Call it, as Temporal would if it is an activity, and return what it said."""
    if hasattr(call, "__temporal_activity_definition"):
        from temporalio.testing import ActivityEnvironment

        environment, activity = ActivityEnvironment(), call

        async def call(request: Any) -> Any:
            return await environment.run(activity, request)

    [outcome] = await asyncio.gather(call(request), return_exceptions=True)
    if isinstance(outcome, BaseException):  # EverycentError too, which may be an answer.
        return Said(error=outcome)
    return Said(outcome)


def same_answer(promise: str, first: Said, again: Said) -> None:
    """Stop unless both callers were told the same."""
    if not first.same(again):
        raise BrokenPromise(f"{promise}: first it {first}, then it {again}")


def _unchanged(promise: str, before: Tables, after: Tables) -> None:
    difference = tell_difference(before, after)
    if difference:
        raise BrokenPromise(f"{promise}: {difference}")
