"""A pass again and again: at once while it moves something, else when woken or after a while."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from everycent.database.wake import Wake
from everycent.errors import EverycentError

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Loop:
    """What is done again and again, and what wakes it."""

    name: str
    run_pass: Callable[[], Awaitable[int]]
    wake: Wake
    poll_seconds: float = POLL_SECONDS

    async def run(self) -> None:
        """Go on for ever; a pass that fails is tried again after a while, nothing is lost by it."""
        try:
            while True:
                if not await self._moved():
                    await self.wake.wait(self.poll_seconds)
        finally:
            await self.wake.close()

    async def _moved(self) -> bool:
        try:
            return await self.run_pass() > 0
        except (EverycentError, DBAPIError) as error:
            logger.warning("%s failed and will go on: %s: %s", self.name, type(error), error)
            return False


@contextlib.asynccontextmanager
async def running(loops: Sequence[Loop]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run loops side by side until the end; a pass that is cut off is done again by the next."""
    tasks = [asyncio.create_task(loop.run(), name=loop.name) for loop in loops]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
