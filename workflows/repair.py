"""Steps that may not be given up: retried, then parked as a repair case, and never dropped."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from everycent.domain.order import CaseSettled, Parked, RepairAnswer, RepairOrder
    from workflows.options import PARKED_RETRY
    from workflows.saga import ParkedStep, attempt

T = TypeVar("T")
RETRY = ("retry",)
RETRY_OR_RESOLVE = ("retry", "resolve")


class Clerk(Protocol):
    """Who writes the cases down."""

    async def park(self, step: ParkedStep, proposals: tuple[str, ...]) -> Parked:
        """Open the step's case, or count one more failure of it."""

    async def settle(self, case_key: str, *, by: str, reason: str, by_hand: bool) -> CaseSettled:
        """Close the case."""


class RepairDesk:
    """The parked steps of one run, and what operators say about them."""

    def __init__(self, clerk: Clerk, *, on_change: Callable[[], None] = lambda: None) -> None:
        self._clerk = clerk
        self._on_change = on_change  # Called when a step is parked, and when it is done at last.
        self.parked: dict[str, tuple[ParkedStep, tuple[str, ...]]] = {}
        self._orders: dict[str, RepairOrder] = {}
        self._answers: dict[str, list[RepairAnswer]] = {}

    async def must(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T:
        """Run a step whose answer the flow needs: parked and tried again until it has one."""
        done = await attempt(name, key, run)
        if not isinstance(done, ParkedStep):
            return done
        answer: T = await self._until_done(done, RETRY)
        return answer

    async def see_done(self, name: str, key: str, run: Callable[[], Awaitable[T]]) -> T | None:
        """Run a step that a person can also do by hand; then the answer is None."""
        done = await attempt(name, key, run)
        return await self.repair(done) if isinstance(done, ParkedStep) else done

    async def repair(self, step: ParkedStep) -> Any:
        """Park a step that has failed and see it done, by another try or by hand."""
        return await self._until_done(step, RETRY_OR_RESOLVE)

    async def instruct(self, request: RepairOrder) -> RepairAnswer:
        """Take an operator's word on a parked step and answer what came of it."""
        answers = self._answers.setdefault(request.case_key, [])
        heard = len(answers)
        self._orders.setdefault(request.case_key, request)
        await workflow.wait_condition(lambda: len(answers) > heard)
        return answers[heard]

    def check(self, request: RepairOrder) -> None:
        """Refuse a word about a step that is not parked, or that cannot be done by hand."""
        if request.case_key not in self.parked:
            raise ApplicationError(f"{request.case_key} is not parked", type="NotParked")
        if request.action not in self.parked[request.case_key][1]:
            raise ApplicationError(
                f"{request.case_key} can only be retried: the order needs its answer",
                type="NotResolvable",
            )

    async def _until_done(self, step: ParkedStep, proposals: tuple[str, ...]) -> Any:
        tried_again = False
        while True:
            settled_by_hand = await self._park(step, proposals)
            if settled_by_hand:
                return self._done(step.key, None)
            if tried_again:
                self._answer(step.key, RepairAnswer(done=False, error=step.error))
            order = await self._next_order(step.key)
            if order.action == "resolve":
                await self._settle(order, by_hand=True)
                return self._done(step.key, None)
            done = await attempt(step.name, step.key, step.run)
            if not isinstance(done, ParkedStep):
                await self._settle(order, by_hand=False)
                return self._done(step.key, done)
            step, tried_again = done, True

    async def _park(self, step: ParkedStep, proposals: tuple[str, ...]) -> bool:
        """Write the case down; True if a person had settled it by hand in an earlier run."""
        self.parked[step.key] = (step, proposals)
        self._on_change()
        workflow.logger.error("parked %s (%s): %s", step.name, step.key, step.error)
        counter = workflow.metric_meter().create_counter(
            "everycent_parked_steps", "Steps that did not succeed within their budget."
        )
        counter.add(1, {"step": step.name, "error_class": step.error_class})
        parked = await self._clerk.park(step, proposals)
        return parked.settled_by_hand and "resolve" in proposals

    async def _next_order(self, key: str) -> RepairOrder:
        """Wait for an operator; without one the step is tried again after a while."""
        try:
            await workflow.wait_condition(
                lambda: key in self._orders, timeout=PARKED_RETRY, timeout_summary=f"repair {key}"
            )
        except TimeoutError:
            return RepairOrder(case_key=key, by="everycent", reason="tried again by itself")
        return self._orders.pop(key)

    async def _settle(self, order: RepairOrder, *, by_hand: bool) -> None:
        reason = order.reason or "the step succeeded when it was tried again"
        await self._clerk.settle(order.case_key, by=order.by, reason=reason, by_hand=by_hand)

    def _done(self, key: str, answer: Any) -> Any:
        del self.parked[key]
        self._on_change()
        self._answer(key, RepairAnswer(done=True))
        return answer

    def _answer(self, key: str, answer: RepairAnswer) -> None:
        self._orders.pop(key, None)
        self._answers.setdefault(key, []).append(answer)
