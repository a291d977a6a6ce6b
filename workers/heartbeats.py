"""Tells Temporal while a long attempt is under way that its process lives.

An attempt that waits for another company has minutes. Without a sign of life the server would wait
so long for one whose worker was killed; with it, it tries again within the heartbeat time-out.
"""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

BEATS = 4  # In each heartbeat time-out. An attempt that is over before the first costs nothing.


class Heartbeats(Interceptor):
    """Beats for each attempt whose options have a heartbeat time-out."""

    def __init__(self) -> None:
        self._given_up: set[asyncio.Future[Any]] = set()

    def intercept_activity(
        self,
        next: ActivityInboundInterceptor,  # noqa: A002
    ) -> ActivityInboundInterceptor:
        """Put ourselves before the activity."""
        return _Beating(next, self._given_up)


class _Beating(ActivityInboundInterceptor):
    def __init__(
        self, inner: ActivityInboundInterceptor, given_up: "set[asyncio.Future[Any]]"
    ) -> None:
        super().__init__(inner)
        self._given_up = given_up

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Run the attempt, and beat beside it.

        Who beats is told when the server has given the attempt up. It goes on to its end all the
        same, as one without a heartbeat does: broken off, it would leave a call without its answer.
        """
        limit = activity.info().heartbeat_timeout
        if not limit:
            return await self.next.execute_activity(input)
        attempt = asyncio.ensure_future(self.next.execute_activity(input))
        beating = asyncio.create_task(_beat(limit / BEATS))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if not attempt.done():
                self._given_up.add(attempt)
                attempt.add_done_callback(self._forget)
            raise
        finally:
            beating.cancel()

    def _forget(self, attempt: "asyncio.Future[Any]") -> None:
        self._given_up.discard(attempt)
        with contextlib.suppress(asyncio.CancelledError):
            attempt.exception()  # It has been asked for, so nobody complains that it never was.


async def _beat(every: timedelta) -> None:
    while True:
        await asyncio.sleep(every.total_seconds())
        activity.heartbeat()
