"""Whether somebody drives an order: its workflow lives in Temporal, if only paused."""

from collections.abc import Sequence
from typing import Protocol

from temporalio.client import Client

from everycent.gateways.runs import describe_runs, list_open

_FEW = 100
_PAGE = 1000


class Drivers(Protocol):
    """Who can say whether a driver lives."""

    async def living(self, workflow_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that live now."""
        ...


class TemporalDrivers:
    """Asks Temporal. A list shows a change late, so what it does not show is asked one by one."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def living(self, workflow_ids: Sequence[str]) -> set[str]:
        """Return those of the ids that live now; the list spares most of many questions."""
        wanted = set(workflow_ids)
        listed = await self._listed(wanted) if len(wanted) > _FEW else set()
        runs = await describe_runs(self._client, sorted(wanted - listed))
        return listed | {run.workflow_id for run in runs if run.lives}

    async def _listed(self, wanted: set[str]) -> set[str]:
        found: set[str] = set()
        after: str | None = ""
        while after is not None:
            page = await list_open(self._client, "", limit=_PAGE, after=after)
            found |= wanted.intersection(page.workflow_ids)
            after = page.next
        return found
