"""Whether somebody drives an order: its workflow runs in Temporal."""

from collections.abc import Sequence
from typing import Protocol

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

_FEW = 100


class Drivers(Protocol):
    """Who can say whether a driver lives."""

    async def living(self, workflow_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that run now."""
        ...


class TemporalDrivers:
    """Asks Temporal. A list shows a change late, so what it does not show is asked one by one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def living(self, workflow_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that run now; the list spares most of many questions."""
        wanted = set(workflow_ids)
        listed = await self._listed(wanted) if len(wanted) > _FEW else set()
        described = {i for i in sorted(wanted - listed) if await self._runs(i)}
        return listed | described

    async def _listed(self, wanted: set[str]) -> set[str]:
        running = self._client.list_workflows("ExecutionStatus = 'Running'", page_size=1000)
        return {execution.id async for execution in running if execution.id in wanted}

    async def _runs(self, workflow_id: str) -> bool:
        try:
            found = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return found.status is WorkflowExecutionStatus.RUNNING
