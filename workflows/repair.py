"""Steps that may not be given up: retried, then parked as a repair case, and never dropped."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from everycent.domain.order import CaseSettled, Parked, RepairAnswer, RepairOrder
    from workflows.options import PARKED_RETRY
    from workflows.saga import ParkedStep, run_or_park

T = TypeVar("T")
REFUSED = "Refused"  # The type of an error that stands for a stored refusal: no try changes it.


class Clerk(Protocol):
    """Who writes the cases down."""

    async def park(self, step: ParkedStep, proposals: tuple[str, ...]) -> Parked:
        """Open the step's case, or count one more failure of it."""

    async def settle(self, case_key: str, *, by: str, reason: str, by_hand: bool) -> CaseSettled:
        """Close the case."""


@dataclass
class Word:
    """An operator's word on a parked step, and what came of it."""

    request: RepairOrder
    answer: RepairAnswer | None = None


class RepairDesk:
    """The parked steps of one run, and what operators say about them.

    Nothing here fails the run: a case that cannot be written down is logged, the step stays parked.
    """

    def __init__(self, clerk: Clerk, *, on_change: Callable[[], Awaitable[None]]) -> None:
        self._clerk = clerk
        self._on_change = on_change  # Called when a step is parked, and when it is done at last.
        self.parked: dict[str, tuple[ParkedStep, tuple[str, ...]]] = {}
        self._words: dict[str, list[Word]] = {}  # Per step, those that wait for their turn.

    async def must(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T:
        """Run a step whose answer the flow needs: parked and tried again until it has one."""
        done = await run_or_park(name, key, run)
        if not isinstance(done, ParkedStep):
            return done
        answer: T = await self._until_done(done, needs_answer=True)
        return answer

    async def see_done(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T | None:
        """Run a step that a person can also do by hand; then the answer is None."""
        done = await run_or_park(name, key, run)
        return await self.repair(done) if isinstance(done, ParkedStep) else done

    async def repair(self, step: ParkedStep) -> Any:
        """Park a step that has failed and see it done, by another try or by hand."""
        return await self._until_done(step, needs_answer=False)

    async def instruct(self, request: RepairOrder) -> RepairAnswer:
        """Take an operator's word on a parked step and answer what came of it.

        Words are taken in turn, but one that says "done by hand" goes before any further try.
        """
        word = Word(request)
        self._words.setdefault(request.case_key, []).append(word)
        await workflow.wait_condition(lambda: word.answer is not None)
        assert word.answer is not None
        return word.answer

    def check(self, request: RepairOrder) -> None:
        """Refuse a word about a step that is not parked, or that the word cannot help."""
        if request.case_key not in self.parked:
            raise ApplicationError(f"{request.case_key} is not parked", type="NotParked")
        step, proposals = self.parked[request.case_key]
        if request.action not in proposals:
            raise ApplicationError(
                f"{step.name} can only be helped by: {', '.join(proposals)}", type="NotProposed"
            )

    async def _until_done(self, step: ParkedStep, *, needs_answer: bool) -> Any:
        word: Word | None = None
        while True:
            proposals = _proposals(step, needs_answer=needs_answer)
            settled_by_hand = await self._park(step, proposals)
            if settled_by_hand:
                return await self._done(step.key, None)
            if word is not None:
                word.answer = RepairAnswer(done=False, error=step.error)
            word = await self._next_word(step.key, proposals)
            if word.request.action == "resolve":
                await self._settle(word, by_hand=True)
                return await self._done(step.key, None)
            done = await run_or_park(step.name, step.key, step.run)
            if not isinstance(done, ParkedStep):
                await self._settle(word, by_hand=False)
                return await self._done(step.key, done)
            step = done

    async def _park(self, step: ParkedStep, proposals: tuple[str, ...]) -> bool:
        """Write the case down; True if a person had settled it by hand in an earlier run."""
        self.parked[step.key] = (step, proposals)
        workflow.logger.error("parked %s (%s): %s", step.name, step.key, step.error)
        counter = workflow.metric_meter().create_counter(
            "everycent_parked_steps", "Steps that did not succeed within their budget."
        )
        counter.add(1, {"step": step.name, "error_class": step.error_class})
        await self._on_change()
        parked = await say(f"case {step.key}", lambda: self._clerk.park(step, proposals))
        return parked is not None and parked.settled_by_hand and "resolve" in proposals

    async def _next_word(self, key: str, proposals: tuple[str, ...]) -> Word:
        """Wait for an operator; without one the step is tried again after a while, if it helps."""
        words = self._words.setdefault(key, [])
        try:
            await workflow.wait_condition(
                lambda: bool(words),
                timeout=PARKED_RETRY if "retry" in proposals else None,
                timeout_summary=f"repair {key}",
            )
        except TimeoutError:
            return Word(RepairOrder(case_key=key, by="everycent", reason="tried again by itself"))
        word = next((word for word in words if word.request.action == "resolve"), words[0])
        words.remove(word)
        return word

    async def _settle(self, word: Word, *, by_hand: bool) -> None:
        request = word.request
        reason = request.reason or "the step succeeded when it was tried again"
        await say(
            f"case {request.case_key}",
            lambda: self._clerk.settle(
                request.case_key, by=request.by, reason=reason, by_hand=by_hand
            ),
        )
        word.answer = RepairAnswer(done=True)

    async def _done(self, key: str, answer: Any) -> Any:
        del self.parked[key]
        for word in self._words.pop(key, []):
            word.answer = RepairAnswer(done=True)
        await self._on_change()
        return answer


async def say(what: str, tell: Callable[[], Awaitable[T]]) -> T | None:
    """Tell somebody something that the order does not depend on; what cannot be told is logged."""
    done = await run_or_park(what, what, tell)
    if isinstance(done, ParkedStep):
        workflow.logger.error("could not tell %s: %s", what, done.error)
        return None
    return done


def _proposals(step: ParkedStep, *, needs_answer: bool) -> tuple[str, ...]:
    """Return what can help: another try, unless a stored refusal answered; a person's own hand."""
    by_hand = () if needs_answer else ("resolve",)
    return by_hand if step.error_class == REFUSED and by_hand else ("retry", *by_hand)
