"""What a user can do wrong in a participant, and what may happen to a right one."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from activities.participant import finish_activities, try_activities
from everycent.database.engine import Database
from everycent.errors import AlreadyCancelled, InvalidRequest
from everycent.kit import (
    Branches,
    BranchRequest,
    CancelBranch,
    ConfirmBranch,
    Counted,
    Message,
    NotDone,
    Participant,
    TakeUnits,
    UnitsHeld,
    all_or_nothing,
    hold,
    one_by_one,
    participant_workers,
)
from everycent.settings import PoolSettings
from tests.examples.conftest import MakeService
from workflows.options import StepOptions

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ROOMS = Counted("room")


@pytest.fixture
async def rooms(service: MakeService) -> AsyncEngine:
    engine = await service(ROOMS.tables())
    async with engine.begin() as tx:
        await ROOMS.allow(tx, "t", "PARIS", 10)
    return engine


async def numbers(engine: AsyncEngine) -> tuple[int, int, int, int]:
    """Return free, held and used rooms, and the rows of the fence."""
    async with engine.connect() as tx:
        row = (await tx.execute(text("SELECT free, held, used FROM room_counter"))).one()
        rows = (await tx.execute(text("SELECT count(*) FROM fence"))).scalar_one()
    return row.free, row.held, row.used, rows


def a_room(order: str = "o-1", request: str | None = None, units: int = 1) -> TakeUnits:
    return TakeUnits.of(f"t/{order}", "room", request, at=NOON, item="PARIS", units=units)


class Careless(Counted):
    """Does its work, and then the wrong thing."""

    def __init__(self, then: Any) -> None:
        super().__init__("room")
        self._then = then

    async def try_all(self, tx: AsyncConnection, requests: Any) -> Any:
        answers = await super().try_all(tx, requests)
        return await self._then(tx, answers)


async def _fails(tx: AsyncConnection, answers: Any) -> Any:
    await tx.execute(text("UPDATE room_counter SET free = -1"))


async def _ends_it(tx: AsyncConnection, answers: Any) -> Any:
    await tx.rollback()
    return answers


async def _answers_nothing(tx: AsyncConnection, answers: Any) -> Any:
    return {}


async def _answers_nonsense(tx: AsyncConnection, answers: Any) -> Any:
    return dict.fromkeys(answers, "held")


@pytest.mark.requirement("AC13.1")
@pytest.mark.parametrize("then", [_fails, _ends_it, _answers_nothing, _answers_nonsense])
async def test_what_goes_wrong_in_a_users_function_leaves_neither_work_nor_fence(
    rooms: AsyncEngine, then: Any
) -> None:
    """Then the right participant does the same request as if it had never come.

    Red when: the fence commits apart from the work, or a wrong answer is stored.
    """
    with pytest.raises(Exception, match=r"adds_up|ended|answered"):
        await one_by_one(rooms.begin, Careless(then).tries)(a_room())
    assert await numbers(rooms) == (10, 0, 0, 0)
    assert await one_by_one(rooms.begin, ROOMS.tries)(a_room()) == UnitsHeld(item="PARIS", units=1)


@pytest.mark.requirement("AC13.4")
async def test_an_xid_has_as_many_branches_as_it_likes_in_one_database(rooms: AsyncEngine) -> None:
    """Two of one participant and one without a request id; each has an end of its own.

    Red when: the key of the fence is the xid alone.
    """
    async with rooms.begin() as tx:
        branches = [a_room(), a_room(request="second"), a_room(request="third")]
        held = await ROOMS.tries(tx, branches)
        assert held == [UnitsHeld(item="PARIS", units=1)] * 3
        await ROOMS.confirms(tx, [ConfirmBranch.of("t/o-1", "room", "second", at=NOON)])
        await ROOMS.cancels(tx, [CancelBranch.of("t/o-1", "room", "third", at=NOON)])
    assert await numbers(rooms) == (8, 1, 1, 3)


@pytest.mark.requirement("AC12.5")
async def test_what_a_cancel_says_of_the_amount_has_no_effect(rooms: AsyncEngine) -> None:
    """Red when: a Confirm or Cancel reads what moves from its own request."""
    await one_by_one(rooms.begin, ROOMS.tries)(a_room(units=2))
    base = {"key": "t/o-1/room", "at": NOON, "opened_on": NOON.date()}
    tampered = CancelBranch.model_validate({**base, "units": 9, "item": "ROME"})
    await one_by_one(rooms.begin, ROOMS.cancels)(tampered)
    assert await numbers(rooms) == (10, 0, 0, 1)


@pytest.mark.requirement("AC6.1")
@pytest.mark.parametrize("key", ["room", "t/room", "t/o-1", "t//room", "t/o 1/room", "t/o-1/room/"])
def test_a_call_without_xid_and_branch_is_refused(key: str) -> None:
    """Red when: a key of fewer parts, or with an empty one, is let through."""
    for kind in (TakeUnits, ConfirmBranch, CancelBranch):
        with pytest.raises(ValidationError):
            kind.model_validate({"key": key, "at": NOON, "opened_on": NOON.date(), "item": "A"})


class Ask(BranchRequest):
    HASHED = ("item",)
    item: str


class AskAnything(BranchRequest):
    item: str


class Yes(Message):
    kind: Literal["yes"] = "yes"


class AlsoYes(Message):
    kind: Literal["yes"] = "yes"


def _participant(request: Any, answer: Any) -> type[Participant[Any, Any]]:
    async def try_(self: Any, tx: AsyncConnection, request: Any) -> Any:
        raise NotImplementedError

    try_.__annotations__ = {"tx": AsyncConnection, "request": request, "return": answer}
    return type("Wrong", (Participant,), {"name": "wrong", "try_": try_})


@pytest.mark.parametrize(
    ("request_type", "answer", "why"),
    [
        (str, Yes, "a request that is a BranchRequest"),
        (AskAnything, Yes, "names no field"),
        (Ask, str, "answers that are Messages"),
        (Ask, Yes | AlsoYes, "of its own"),
    ],
)
def test_a_participant_whose_rows_could_not_be_told_apart_is_not_made(
    request_type: Any, answer: Any, why: str
) -> None:
    with pytest.raises(TypeError, match=why):
        _participant(request_type, answer)()


async def test_a_worker_looks_at_its_database_before_it_takes_work(
    flows: WorkflowEnvironment, rooms: AsyncEngine
) -> None:
    """No fence, another isolation, two participants of one name, a service of ours."""
    dsn = rooms.url.render_as_string(hide_password=False)

    async def said(*participants: Counted) -> str:
        with pytest.raises(InvalidRequest) as refused:
            async with participant_workers(flows.client, dsn, participants):
                pass
        return str(refused.value)

    assert "two participants have one name" in await said(ROOMS, Counted("room"))
    assert "one service" in await said(ROOMS, Counted("car"))
    assert "everycent's own" in await said(Counted("room", service="order"))
    async with rooms.begin() as tx:
        await tx.execute(text("ALTER TABLE fence RENAME TO elsewhere"))
    assert "no table fence" in await said(ROOMS)
    async with rooms.begin() as tx:
        name = rooms.url.database
        await tx.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        )
    assert "READ COMMITTED" in await said(ROOMS)


class Asleep(Interceptor):
    """Keeps every Try from its database until it may wake, as a process does that stands still."""

    def __init__(self) -> None:
        self.may_wake = asyncio.Event()
        self.ended: list[Any] = []

    def intercept_activity(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
    ) -> ActivityInboundInterceptor:
        asleep = self

        class Sleeping(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                await asyncio.shield(asleep.may_wake.wait())
                said: Any = await asyncio.gather(
                    self.next.execute_activity(input), return_exceptions=True
                )
                asleep.ended += said
                return said[0]

        return Sleeping(next)


ONCE = StepOptions(
    start_to_close_timeout=timedelta(seconds=2), retry_policy=RetryPolicy(maximum_attempts=1)
)
ROOM = hold(ROOMS, options=ONCE)


@workflow.defn(name="nap", sandboxed=False)
class Nap:
    @workflow.run
    async def run(self) -> str | NotDone:
        async def story(branches: Branches) -> str:
            await branches.take(ROOM, item="PARIS")
            return "slept"

        return await all_or_nothing(story)


@pytest.mark.requirement("AC13.6", "AC13.3", "T12")
async def test_a_try_that_wakes_after_its_cancel_is_refused(
    flows: WorkflowEnvironment, rooms: AsyncEngine
) -> None:
    """A zombie: Temporal has given the attempt up and the flow has taken it back.

    Red when: the Cancel of what was never tried leaves no tombstone.
    """
    asleep = Asleep()
    database = Database(rooms.url.render_as_string(hide_password=False), PoolSettings(size=4))
    tries = Worker(
        flows.client,
        task_queue="everycent-room",
        activities=try_activities(database, [ROOMS]),
        interceptors=[asleep],
    )
    finishes = Worker(
        flows.client,
        task_queue="everycent-room-finish",
        activities=finish_activities(database, [ROOMS]),
    )
    flow = Worker(flows.client, task_queue="naps", workflows=[Nap])
    async with tries, finishes, flow:
        ended = await flows.client.execute_workflow(Nap.run, id="nap/t/o-1", task_queue="naps")
        assert isinstance(ended, NotDone)
        assert await numbers(rooms) == (10, 0, 0, 1)
        asleep.may_wake.set()
        async with asyncio.timeout(30):
            while not asleep.ended:
                await asyncio.sleep(0.02)
    [woken] = asleep.ended
    assert getattr(woken, "type", None) == AlreadyCancelled.__name__, woken
    assert await numbers(rooms) == (10, 0, 0, 1)
    await database.close()
