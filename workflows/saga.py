"""A saga: what was done can be undone, newest first, and nothing that may have run is forgotten.

The engine stands alone: it knows Temporal and no flow, no service and no database of ours.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from temporalio.exceptions import ActivityError, ApplicationError, FailureError

T = TypeVar("T")


@dataclass(frozen=True)
class ParkedStep:
    """A step that did not succeed within its budget and waits for repair."""

    name: str
    key: str
    error_class: str
    error: str
    run: Callable[[], Awaitable[object]]


@dataclass
class _Undo(Generic[T]):
    name: str
    key: str
    undo: Callable[[T | None], Awaitable[object]]
    result: T | None = None

    async def run(self) -> object:
        return await self.undo(self.result)


@dataclass
class Saga:
    """The undos of one run, in the order in which their steps were begun.

    `undone` names the undos that have run, in the order in which they ran.
    """

    undone: list[str] = field(default_factory=list)
    _undos: list[_Undo[object]] = field(default_factory=list)

    async def step(
        self,
        name: str,
        key: str,
        action: Callable[[], Awaitable[T]],
        undo: Callable[[T | None], Awaitable[object]],
    ) -> T:
        """Register the undo, then run the action; the undo gets its result, or None for "unknown".

        The order is the point: an action whose reply is lost may have run.
        """
        entry = _Undo(name, key, undo)
        self._undos.append(entry)  # type: ignore[arg-type]
        result = await action()
        entry.result = result
        return result

    def may_have_run(
        self, name: str, key: str, undo: Callable[[object], Awaitable[object]]
    ) -> None:
        """Register the undo of a step that this run did not begin, but another may have."""
        self._undos.append(_Undo(name, key, undo))

    async def compensate(self, *, at_once: bool = False) -> list[ParkedStep]:
        """Run every undo, newest first or all side by side; return those that did not succeed.

        Neither a cancellation of the run nor an undo that fails stops any of the others.
        """
        return await uninterrupted(self._undo_at_once() if at_once else self._undo_in_turn())

    async def _undo_in_turn(self) -> list[ParkedStep]:
        parked = []
        while self._undos:
            parked += await self._undo(self._undos.pop())
        return parked

    async def _undo_at_once(self) -> list[ParkedStep]:
        undos, self._undos = self._undos, []
        parked = await asyncio.gather(*map(self._undo, undos))
        return [step for steps in parked for step in steps]

    async def _undo(self, entry: _Undo[object]) -> list[ParkedStep]:
        done = await run_or_park(entry.name, entry.key, entry.run)
        if isinstance(done, ParkedStep):
            return [done]
        self.undone.append(entry.name)
        return []


async def run_or_park(name: str, key: str, run: Callable[[], Awaitable[T]]) -> T | ParkedStep:
    """Run a step that must not be given up; one that fails comes back as parked, never raises."""
    try:
        return await run()
    except FailureError as error:
        error_class, text = what_went_wrong(error)
        return ParkedStep(name, key, error_class, text, run)


async def uninterrupted(work: Awaitable[T], on_cancel: Callable[[], None] = lambda: None) -> T:
    """Await the work to its end; a cancellation of the workflow is told to `on_cancel` instead."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            on_cancel()  # The server has noted it; the work goes on.
    return task.result()


def what_went_wrong(error: FailureError) -> tuple[str, str]:
    """Return the error's class and text; a time-out has none of ours, it is Unknown."""
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError) and cause.type:
        return cause.type, cause.message
    return "Unknown", str(cause or error)
