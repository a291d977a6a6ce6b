"""How a flow calls participants: each is a step with its Confirm and its Cancel, undone as a saga.

It stands alone, as the saga does: it knows no flow and no service of ours, and imports what lies
beside it as siblings, so that a user's workflow takes it out of our wheel.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, Protocol, Self, TypeAlias, TypeVar

from temporalio import activity, workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from pydantic import JsonValue, ValidationError

    from everycent.domain.message import Message, StepRequest, step_key
    from everycent.domain.outcome import Refusal
    from everycent.domain.participant import (
        CancelBranch,
        Cancelled,
        ConfirmBranch,
        Confirmed,
    )
    from everycent.errors import AlreadyConfirmed, InvalidRequest, NotConfirmable

    from .options import DATABASE_MUST, DATABASE_STEP, PARKED_RETRY, StepOptions
    from .saga import ParkedStep, run_or_park, uninterrupted
    from .steps import Step

T = TypeVar("T")
Called: TypeAlias = tuple[str, Any, Any]  # An activity's name in Temporal, its request and answer.


class Declared(Protocol):
    """What a flow has to know of a participant: its names, and the types of its Try."""

    @property
    def name(self) -> str:
        """The third part of the key of its branches."""

    @property
    def service(self) -> str:
        """Whose queues it shares; empty: it has its own."""

    @property
    def request(self) -> Any:
        """The type of its Try's request."""

    @property
    def answers(self) -> Any:
        """The type of its Try's answers."""


def hold(
    participant: Declared,
    *,
    options: StepOptions = DATABASE_STEP,
    finish: StepOptions = DATABASE_MUST,
) -> Step[Any, Any]:
    """Return the step that tries a branch of the participant, with its Confirm and its Cancel."""
    name = participant.name
    return served(
        name,
        participant.service or name,
        tries=(f"{name}.try", participant.request, participant.answers),
        confirms=(f"{name}.confirm", ConfirmBranch, Confirmed),
        cancels=(f"{name}.cancel", CancelBranch, Cancelled),
        options=options,
        finish=finish,
    )


def served(
    name: str,
    service: str,
    *,
    tries: Called,
    confirms: Called,
    cancels: Called,
    options: StepOptions = DATABASE_STEP,
    finish: StepOptions = DATABASE_MUST,
) -> Step[Any, Any]:
    """Return a step whose activities are served on the two queues of a service."""
    queue = f"everycent-{service}"
    return Step(
        f"try {name}",
        stub(*tries),
        queue,
        options,
        key=name,
        holds=True,
        confirm=Step(f"confirm {name}", stub(*confirms), f"{queue}-finish", finish, key=name),
        undo=Step(f"cancel {name}", stub(*cancels), f"{queue}-finish", finish, key=name),
    )


def stub(name: str, request: Any, answer: Any) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return what stands for an activity of another process: its name and types, no body."""

    async def called(self, request):  # type: ignore[no-untyped-def]
        raise NotImplementedError(f"{name} runs in its own worker")

    called.__annotations__ = {"request": request, "return": answer}
    return activity.defn(name=name)(called)


class Refused(Exception):
    """A branch said no; `all_or_nothing` takes back what was done before it."""

    def __init__(self, step: str, refusal: Refusal) -> None:
        super().__init__(f"{step}: {refusal!r}")
        self.step = step
        self.refusal = refusal


class NotDone(Message):
    """A flow that took everything back: which step stopped it, and with what facts or error."""

    kind: Literal["not_done"] = "not_done"
    step: str
    refusal: dict[str, JsonValue] | None = None
    error: str | None = None


@dataclass(frozen=True)
class _Taken:
    step: Step[Any, Any]
    request: StepRequest

    async def confirm(self) -> ParkedStep | None:
        return await self._until_done(self.step.confirm)

    async def cancel(self) -> ParkedStep | None:
        return await self._until_done(self.step.undo)

    async def _until_done(self, ending: Step[Any, Any] | None) -> ParkedStep | None:
        """Confirm or cancel without end; return why not where another run decided otherwise."""
        assert ending is not None, "a step that is taken has both"
        key, opened_on = self.request.key, self.request.opened_on
        while True:
            request = _request_of(ending)(
                key=key, at=workflow.now(), opened_on=opened_on, reason="taken back"
            )
            done = await run_or_park(ending.name, key, lambda: _call(ending, request))  # noqa: B023
            if not isinstance(done, ParkedStep):
                return None
            if done.error_class in (AlreadyConfirmed.__name__, NotConfirmable.__name__):
                return done
            workflow.set_current_details(f"{done.name} waits for repair: {done.error}")
            await workflow.sleep(PARKED_RETRY, summary=f"until {done.name} is tried again")


@dataclass
class Branches:
    """The branches of one run's transaction, in the order in which they were taken."""

    xid: str
    opened_on: date
    _taken: list[_Taken] = field(default_factory=list)

    @classmethod
    def of_this_run(cls) -> Self:
        """Take the xid from the workflow's id, `<flow>/<tenant>/<order>`: no run has another."""
        info = workflow.info()
        parts = info.workflow_id.split("/")
        if len(parts) != 3:
            raise _invalid(f"the workflow id {info.workflow_id} is not <flow>/<tenant>/<order>")
        return cls("/".join(parts[1:]), info.workflow_start_time.date())

    async def take(self, step: Step[Any, Any], request_id: str | None = None, **fields: Any) -> Any:
        """Try a branch and return what it holds; its Cancel is registered before it begins.

        `request_id` tells several branches of one participant apart; `fields` are those of its
        request. Raises Refused where it says no.
        """
        try:
            tenant, order_id = self.xid.split("/")
            key = step_key(tenant, order_id, step.key, request_id)
            base = {"key": key, "at": workflow.now(), "opened_on": self.opened_on}
            request = _request_of(step).model_validate({**base, **fields})
        except ValidationError as error:
            raise _invalid(f"{step.name}: {error}") from error
        self._taken.append(_Taken(step, request))
        answer = await _call(step, request)
        if isinstance(answer, Refusal):
            raise Refused(step.name, answer)
        return answer

    async def confirm(self) -> bool:
        """Confirm every branch; False, and nothing confirmed, where another run cancelled them.

        The row of the first branch is the decision of them all: it is confirmed, or cancelled,
        before any other, so that two runs of one xid cannot end differently (design rule 7).
        """
        if self._taken and await self._taken[0].confirm():
            return False
        await asyncio.gather(*(each.confirm() for each in self._taken[1:]))
        return True

    async def cancel(self) -> bool:
        """Take everything back; False, and nothing undone, where another run confirmed it.

        The first branch goes first, it decides; the others newest first.
        """
        if self._taken and await self._taken[0].cancel():
            return False
        for each in reversed(self._taken[1:]):
            await each.cancel()
        return True


async def all_or_nothing(story: Callable[[Branches], Awaitable[T]]) -> T | NotDone:
    """Tell a story of branches to its end, or take all of it back and say what stopped it.

    A cancellation of the run takes all back and goes on as one. What does not succeed within its
    budget is tried again each hour, for ever, and the run says so; nothing is dropped.
    """
    branches = Branches.of_this_run()
    try:
        done = await story(branches)
    except (Refused, FailureError, asyncio.CancelledError) as stopped:
        if await uninterrupted(branches.cancel()):
            if isinstance(stopped, Refused | ActivityError) and not is_cancelled_exception(stopped):
                return _not_done(stopped)
            raise
        # Another run of this xid had confirmed it all: its answers are stored, so is this one's.
        branches = Branches.of_this_run()
        done = await uninterrupted(story(branches))
    if await uninterrupted(branches.confirm()):
        return done
    await uninterrupted(branches.cancel())
    return NotDone(step="confirm", error="another run of this transaction took it back")


def _request_of(step: Step[Any, Any]) -> Any:
    return step.activity.__annotations__["request"]


async def _call(step: Step[Any, Any], request: StepRequest) -> Any:
    return await workflow.execute_activity_method(
        step.activity, request, task_queue=step.queue, summary=step.name, **step.options
    )


def _not_done(stopped: Refused | ActivityError) -> NotDone:
    if isinstance(stopped, Refused):
        return NotDone(step=stopped.step, refusal=stopped.refusal.model_dump(mode="json"))
    return NotDone(step=stopped.activity_type, error=str(stopped.cause or stopped))


def _invalid(text: str) -> ApplicationError:
    return ApplicationError(text, type=InvalidRequest.__name__, non_retryable=True)
