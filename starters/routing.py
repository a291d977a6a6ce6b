"""Which mode a new order gets, and how that is switched while orders run."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import ValidationError
from temporalio.client import Client

from activities.order import OrderActivities
from everycent.database.reads import Reader
from everycent.database.routing import ALL_RULES, STANDING, route
from everycent.domain.message import Message, problems_of
from everycent.domain.mode import Mode
from everycent.domain.routing import (
    RollBackRoute,
    Route,
    RouteAnswer,
    RouteRefused,
    SetRoute,
    choose,
)
from everycent.errors import InvalidRequest
from starters.alone import run_alone
from workers.queues import TOGETHER, finishes
from workers.registration import mode_problems
from workflows.catalog import FLOWS, MODES, PLANS, name_of

M = TypeVar("M", bound=Message)
C = TypeVar("C", SetRoute, RollBackRoute)
FLOW = "checkout"


async def mode_of_new(reader: Reader, flow: str, tenant: str, order_id: str) -> Mode:
    """Return the mode in which an order that nobody has begun is to begin."""
    rows = await reader.rows("order", STANDING, flow=flow, tenant=tenant)
    return choose([route(row) for row in rows], tenant, order_id)


class Routing:
    """The routing rules of a system: read with the reader's role, written by the order service."""

    def __init__(self, client: Client, reader: Reader, *, together: bool = False) -> None:
        self._client = client
        self._reader = reader
        self._queue = TOGETHER if together else finishes("order")

    async def rules(self, flow: str = FLOW) -> list[Route]:
        """Return every rule that a flow ever had, by tenant, the oldest first."""
        return [route(row) for row in await self._reader.rows("order", ALL_RULES, flow=flow)]

    async def set(self, request: SetRoute) -> Route:
        """Switch coming orders to a mode. Raises InvalidRequest with the reason if that is wrong.

        Orders that have begun keep the mode in their rows.
        """
        for mode in {request.mode, request.rest or Mode.SAGA}:
            if problem := why_not(request.flow, mode):
                raise InvalidRequest(problem)
        return await self._change(OrderActivities.set_route, request)

    async def roll_back(self, request: RollBackRoute) -> Route:
        """Go back to the rule before. Raises InvalidRequest if there is none to be taken back."""
        return await self._change(OrderActivities.roll_back_route, request)

    async def _change(
        self, method: Callable[[OrderActivities, C], Awaitable[RouteAnswer]], request: C
    ) -> Route:
        """Run the switch as an activity by itself; typed twice with one id, it happens once."""
        answer: RouteAnswer = await run_alone(
            self._client,
            method,
            request,
            queue=self._queue,
            activity_id=f"route/{request.flow}/{request.tenant}/{request.request_id}",
        )
        if isinstance(answer, RouteRefused):
            raise InvalidRequest(answer.reason)
        return answer


def checked(kind: type[M], **told: object) -> M:
    """Read what a person typed. Raises InvalidRequest with one line that names what is wrong."""
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise InvalidRequest(problems_of(error)) from error


def mode_named(text: str, flow: str = FLOW) -> Mode:
    """Read a mode that a person typed. Raises InvalidRequest if the flow cannot run in it."""
    if text not in tuple(Mode):
        raise InvalidRequest(f"there is no mode {text}; there are: {', '.join(Mode)}")
    if problem := why_not(flow, Mode(text)):
        raise InvalidRequest(problem)
    return Mode(text)


def why_not(flow_name: str, mode: Mode) -> str:
    """Say why a flow cannot run in a mode; an empty text if it can."""
    flow = next((flow for flow in FLOWS if name_of(flow) == flow_name), None)
    if flow is None:
        return f"there is no flow {flow_name}; there are: {', '.join(map(name_of, FLOWS))}"
    problems = list(mode_problems(flow_name, PLANS[flow], mode))
    if problems:
        return problems[0]
    if mode not in MODES[flow]:
        return f"{flow_name} has no mode {mode}; it has: {', '.join(MODES[flow])}"
    return ""
