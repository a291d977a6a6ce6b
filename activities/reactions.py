"""How a participant reacts to an order's events: the steps of the saga, asked for by messages.

A reaction is a few steps. The last one that is a database's runs in the transaction that also notes
that the message was consumed and writes down what is told about it; those before it, and every talk
with the provider, come first. Each is safe to be repeated under its own key.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import Database
from everycent.domain.choreography import after
from everycent.domain.events import (
    STEP_REPORTED,
    EventType,
    OrderTold,
    StepReported,
    event_of,
    told_by,
)
from everycent.domain.messaging import Envelope, Event, inboxes
from everycent.domain.outcome import Refusal, told
from everycent.errors import Bug, EverycentError, InvalidRequest, NotConfirmable, NothingTried

Asked = Sequence[tuple[str | None, Any]]  # Requests, each with its request id if it is repeated.
Answers = dict[tuple[str, str | None], Any]
Run = Callable[[AsyncConnection, Sequence[Any]], Awaitable[Sequence[Any]]]
Talk = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]


@dataclass(frozen=True)
class Step:
    """One step of a reaction: what it asks, and who does it: the database, or a `talk` outside.

    `holds`: a Try, whose refusal or failure is told to the order. `may_refuse`: a Confirm whose
    refusal the order has an answer to; any other refusal stops the message. `reports` is False for
    what only goes along with another step.
    """

    operation: str
    ask: Callable[[OrderTold, datetime, Answers], Asked]
    run: Run | None = None
    talk: Talk | None = None
    holds: bool = False
    may_refuse: bool = False
    reports: bool = True
    gave: Callable[[Any], tuple[int, int]] = field(default=lambda answer: (0, 0))


class OrderReaction:
    """What a service does about one type of event of an order.

    `passes_on` is the event that hands a hold on to the next holder.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        steps: Sequence[Step],
        *,
        now: Callable[[], datetime],
        passes_on: EventType | None = None,
    ) -> None:
        self._now = now
        self._service = service
        self._database = database
        self._first = steps if steps[-1].run is None else steps[:-1]
        self._last = None if steps[-1].run is None else steps[-1]
        self._steps = steps
        self._passes_on = passes_on

    async def prepare(self, messages: Sequence[Envelope]) -> Sequence[Answers]:
        """Run all steps but the one that goes with the message itself."""
        answers: list[Answers] = [{} for _ in messages]
        tolds = [told_by(message, OrderTold) for message in messages]
        for step in self._first:
            if step.talk is not None:
                await _run(step, step.talk, self._now(), tolds, answers)
                continue
            async with self._database.transaction() as tx:
                await _run(step, _within(step, tx), self._now(), tolds, answers)
        return answers

    async def apply(
        self, tx: AsyncConnection, messages: Sequence[Envelope], prepared: Sequence[Any]
    ) -> Sequence[Event]:
        """Run the last step; return what is told about all of them."""
        answers: list[Answers] = list(prepared)
        tolds = [told_by(message, OrderTold) for message in messages]
        at = self._now()
        if self._last is not None:
            await _run(self._last, _within(self._last, tx), at, tolds, answers)
        return [
            event
            for said, got in zip(tolds, answers, strict=True)
            for event in self._told(said, got, at)
        ]

    def _told(self, said: OrderTold, answers: Answers, at: datetime) -> list[Event]:
        return [
            self._after(step, request, answer, said, at)
            for step in self._steps
            if step.reports
            for (operation, request), answer in answers.items()
            if operation == step.operation
        ]

    def _after(
        self, step: Step, request: str | None, answer: Any, said: OrderTold, at: datetime
    ) -> Event:
        """Hand a hold on to the next holder, or report to the order."""
        refused = isinstance(answer, Refusal | EverycentError)
        following = after(self._service, said.order) if self._passes_on else "order"
        if following != "order" and self._passes_on and not refused:
            return event_of(
                self._passes_on,
                said,
                key=said.order.step_key(self._passes_on.name),
                opened_on=said.opened_on,
                at=at,
                to=inboxes(following),
            )
        return _report(step, request, answer, said, at)


def _report(step: Step, request: str | None, answer: Any, said: OrderTold, at: datetime) -> Event:
    order = said.order
    captured, refunded = step.gave(answer)
    report = StepReported(
        tenant=order.tenant,
        order_id=order.order_id,
        operation=step.operation,
        request=said.attempt if request is None and step.holds else request,
        refused=isinstance(answer, Refusal | EverycentError),
        reason=_reason(answer, order.currency),
        answer=answer.model_dump(mode="json") if isinstance(answer, BaseModel) else {},
        captured_minor=captured,
        refunded_minor=refunded,
    )
    parts = ("reported", step.operation.replace(" ", "-"), *((request,) if request else ()))
    return event_of(
        STEP_REPORTED,
        report,
        key=order.step_key("/".join(parts)),
        opened_on=said.opened_on,
        at=at,
        to=inboxes("order"),
    )


def _reason(answer: Any, currency: str) -> str:
    if isinstance(answer, Refusal):
        return told(answer, currency)
    return f"{type(answer).__name__}: {answer}" if isinstance(answer, EverycentError) else ""


def _within(step: Step, tx: AsyncConnection) -> Talk:
    run = step.run
    assert run is not None, f"{step.operation} runs in no database"

    async def talk(requests: Sequence[Any]) -> Sequence[Any]:
        return await run(tx, requests)

    return talk


async def _run(
    step: Step,
    run: Talk,
    at: datetime,
    tolds: Sequence[OrderTold],
    answers: Sequence[Answers],
) -> None:
    """Ask for a step of all orders in one batch, and note each answer with its order."""
    asked = [
        (got, request_id, request)
        for said, got in zip(tolds, answers, strict=True)
        for request_id, request in step.ask(said, at, got)
    ]
    if not asked:
        return
    answered = await run([request for _, _, request in asked])
    for (got, request_id, _), answer in zip(asked, answered, strict=True):
        got[(step.operation, request_id)] = _accepted(step, answer)


def _accepted(step: Step, answer: Any) -> Any:
    """Return an answer that the order has to hear; raise what only a repetition or a person ends.

    A Try that failed for good is told like a refusal: the order ends, and what it holds is undone.
    """
    if isinstance(answer, EverycentError):
        final = isinstance(answer, Bug | InvalidRequest) and step.holds
        gone = isinstance(answer, NothingTried | NotConfirmable) and step.may_refuse
        if not final and not gone:
            raise answer
    elif isinstance(answer, Refusal) and not step.holds and not step.may_refuse:
        raise Bug(f"{step.operation} was refused: {answer.model_dump(mode='json')}")
    return answer


Reactions = Mapping[str, OrderReaction]
