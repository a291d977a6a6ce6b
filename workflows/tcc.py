"""TCC: every branch holds first; one decision is written; then all confirm, or all cancel.

The engine stands alone: it knows Temporal and no flow, no service and no database of ours.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

# Relative: in a wheel these two lie below our own name, beside somebody else's `workflows`.
from .saga import ParkedStep, run_or_park, uninterrupted, what_went_wrong

T = TypeVar("T")
PARKED_RETRY = timedelta(hours=1)


@dataclass(frozen=True)
class Branch:
    """One participant of a TCC: what it holds, makes final, and gives back, all under one key.

    The key is `<xid>/<branch id>` with the xid `<tenant>/<order>`: business ids, the same in every
    run. A Try answers with what it holds or a refusal. A Confirm must not be able to refuse; the
    one that can, a provider's capture, is the `pivot`. A Cancel may come before its Try.
    """

    name: str
    key: str
    try_: Callable[[], Awaitable[object]]
    confirm: Callable[[], Awaitable[object]]
    cancel: Callable[[], Awaitable[object]]
    pivot: bool = False

    @property
    def xid(self) -> str:
        """What the branches of one transaction share."""
        return "/".join(self.key.split("/", 2)[:2])

    @property
    def branch_id(self) -> str:
        """What tells it from the others."""
        return (*self.key.split("/", 2), "", "")[2]


class Patience(Protocol):
    """Who sees a step done that must not be given up."""

    async def must(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T:
        """Run a step whose answer is needed, until it has one."""

    async def see_done(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T | None:
        """Run a step until it is done; None if somebody did it by hand."""


@dataclass
class Parking:
    """Tries a step that has failed again after a while, for ever; the alarm is a meter and a log.

    `parked` are those that wait now, by key. A flow with people behind it has a desk instead
    (workflows/repair.py), where they can step in.
    """

    again_after: timedelta = PARKED_RETRY
    parked: dict[str, ParkedStep] = field(default_factory=dict)

    async def must(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T:
        """Run the step until it succeeds."""
        while isinstance(done := await run_or_park(name, key, run), ParkedStep):
            self.parked[key] = done
            workflow.logger.error("parked %s (%s): %s", name, key, done.error)
            meter = workflow.metric_meter()
            counter = meter.create_counter(
                "everycent_parked_steps", "Steps that did not succeed within their budget."
            )
            counter.add(1, {"step": name, "error_class": done.error_class})
            await workflow.sleep(self.again_after)
        self.parked.pop(key, None)
        return done

    async def see_done(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T | None:
        """Run the step until it succeeds: here is nobody who could do it by hand."""
        return await self.must(name, key, run)


@dataclass(frozen=True)
class Wanted:
    """What is to be decided; `reason` says why not, `refusal` is the pivot's, if it refused."""

    commit: bool
    reason: str = ""
    refusal: Any = None


@dataclass(frozen=True)
class Ending:
    """How a TCC ended: with every branch confirmed, or with every branch cancelled."""

    committed: bool
    reason: str = ""
    answers: tuple[object, ...] = ()  # Of the Tries, in the order of the branches, if all held.


class Tcc:
    """One transaction over branches; its decision stands in a row that `decide` writes.

    `decide` moves the row by a guarded write and answers whether it says commit: who loses the race
    adopts what the winner wrote. `close` notes there that all is done. Raises ApplicationError of
    type InvalidRequest if a branch has no xid or branch id of its own, if the branches are of two
    transactions, or if two are pivots.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        decide: Callable[[Wanted], Awaitable[bool]],
        *,
        is_refusal: Callable[[object], bool],
        close: Callable[[bool], Awaitable[object]] | None = None,
        within: timedelta | None = None,
        patience: Patience | None = None,
    ) -> None:
        _check(branches)
        self._branches = branches
        self._write_decision = decide
        self._close = close
        self._is_refusal = is_refusal
        self._within = within
        self._patience = patience or Parking()
        self._cancelled = ""

    async def run(self) -> Ending:
        """Drive the transaction to its one end; a cancellation counts until it is decided."""
        return await uninterrupted(self._run(), on_cancel=self._note_cancellation)

    async def _run(self) -> Ending:
        answers, wanted = await self._try_all()
        committed = await self._decide(wanted)
        if committed and (refusal := await self._confirm_pivot()) is not None:
            wanted = Wanted(commit=False, reason=str(refusal), refusal=refusal)
            committed = await self._decide(wanted)
        if committed:
            await self._all("confirm", [b for b in self._branches if not b.pivot])
        else:
            await self._all("cancel", self._branches)
        if (close := self._close) is not None:
            key = f"{self._branches[0].xid}/close"
            await self._patience.must("close", key, lambda: close(committed))
        if committed:
            return Ending(committed=True, answers=answers)
        return Ending(committed=False, reason=wanted.reason)

    async def _try_all(self) -> tuple[tuple[object, ...], Wanted]:
        tries = [branch.try_() for branch in self._branches]
        try:
            answers = await at_once(
                tries,
                is_enough=self._is_refusal,
                is_over=lambda: bool(self._cancelled),
                within=self._within,
            )
        except TimeoutError:
            return (), Wanted(commit=False, reason=f"not held within {self._within}")
        except FailureError as failure:
            return (), Wanted(commit=False, reason=": ".join(what_went_wrong(failure)))
        refusal = next((answer for answer in answers if self._is_refusal(answer)), None)
        reason = self._cancelled or (str(refusal) if refusal is not None else "")
        return tuple(answers), Wanted(commit=not reason, reason=reason)

    async def _decide(self, wanted: Wanted) -> bool:
        key = f"{self._branches[0].xid}/decide"
        return await self._patience.must("decide", key, lambda: self._write_decision(wanted))

    async def _confirm_pivot(self) -> object | None:
        """Confirm the branch that can refuse, alone and first; return its refusal if it does."""
        for branch in self._branches:
            if branch.pivot:
                answer = await self._patience.must(
                    f"confirm {branch.name}", branch.key, branch.confirm
                )
                return answer if self._is_refusal(answer) else None
        return None

    async def _all(self, what: str, branches: Sequence[Branch]) -> None:
        """Confirm, or cancel, all of them side by side: none waits for another that fails."""
        await asyncio.gather(
            *(
                self._patience.see_done(
                    f"{what} {branch.name}",
                    branch.key,
                    branch.confirm if what == "confirm" else branch.cancel,
                )
                for branch in branches
            )
        )

    def _note_cancellation(self) -> None:
        self._cancelled = workflow.cancellation_reason() or "cancelled in Temporal"


async def at_once(
    tries: Sequence[Awaitable[T]],
    *,
    is_enough: Callable[[T], bool] = lambda answer: False,
    is_over: Callable[[], bool] = lambda: False,
    within: timedelta | None = None,
) -> list[T]:
    """Run Tries side by side and return their answers in order.

    The first that raises, or whose answer `is_enough`, or `is_over`, ends the waiting: what is
    under way then is not asked any more, and its Cancel finds out what became of it. An error is
    raised; otherwise the answers that are there are returned. Raises TimeoutError after `within`.
    """
    tasks = [asyncio.ensure_future(each) for each in tries]
    for task in tasks:
        task.add_done_callback(forget)

    def ends(task: "asyncio.Future[T]") -> bool:
        return task.done() and (task.exception() is not None or is_enough(task.result()))

    await workflow.wait_condition(
        lambda: is_over() or any(map(ends, tasks)) or all(task.done() for task in tasks),
        timeout=within,
        timeout_summary="every branch holds",
    )
    return [task.result() for task in tasks if task.done()]


def forget(task: "asyncio.Future[Any]") -> None:
    """Look at the outcome that nobody awaits, so that it is not reported as lost."""
    if not task.cancelled():
        task.exception()


def _check(branches: Sequence[Branch]) -> None:
    keys = [branch.key for branch in branches]
    pivots = [branch.name for branch in branches if branch.pivot]
    problem = (
        "a transaction needs a branch"
        if not branches
        else f"no xid and branch id in {bad[0]!r}: a key is <tenant>/<order>/<branch>"
        if (bad := [key for key in keys if len(key.split("/")) < 3 or not all(key.split("/"))])
        else f"branches of two transactions: {', '.join(keys)}"
        if len({branch.xid for branch in branches}) > 1
        else f"two branches under one key: {', '.join(keys)}"
        if len(set(keys)) < len(keys)
        else f"two pivots, {' and '.join(pivots)}: only one Confirm may be able to refuse"
        if len(pivots) > 1
        else ""
    )
    if problem:
        raise ApplicationError(problem, type="InvalidRequest", non_retryable=True)
