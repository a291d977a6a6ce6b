"""Many activity calls, one batch, one transaction; here every batch is still of one."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import Database
from everycent.domain.fence import unwrap
from everycent.errors import EverycentError

R = TypeVar("R")
A = TypeVar("A")
Operation = Callable[[AsyncConnection, Sequence[R]], Awaitable[list[A | EverycentError]]]


class Coalescer(Generic[R, A]):
    """One operation of one database; callers join it and each gets its own answer."""

    def __init__(self, database: Database, operation: Operation[R, A]) -> None:
        self._database = database
        self._operation = operation

    async def join(self, request: R) -> A:
        """Run the operation for this request in a transaction and return its answer, or raise."""
        async with self._database.transaction() as tx:
            [answer] = await self._operation(tx, [request])
        return unwrap(answer)
