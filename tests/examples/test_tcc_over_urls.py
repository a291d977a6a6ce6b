"""A TCC over a service behind a URL, with the generic decision row, while the service dies.

Every call of a branch (its Try, its Confirm, its Cancel) meets every fault: the service's process
is killed before the call or after its commit, and the call comes once more when all is over.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.order import OrderActivities
from everycent.database.engine import Database, assert_no_transaction
from everycent.kit import UrlParticipant, url_workers
from everycent.settings import ServiceName
from everycent.stack.postgres import PostgresServer
from examples.seat_flow import SEATS
from tests.examples.node_service import NODE, Seats, installed, serving
from tests.examples.party_flow import Party
from workers.composition import activities_of
from workers.queues import finishes, tries

DEEDS = ("killed before", "killed after", "late")
# Two seats of an area that has them; and one beside an area that has none.
STORIES: Mapping[str, tuple[list[str], tuple[str, str]]] = {
    "all": (["stalls", "stalls"], ("try", "confirm")),
    "none": (["stalls", "balcony"], ("try", "cancel")),
}
CELLS = [(story, op, deed) for story, (_, ops) in STORIES.items() for op in ops for deed in DEEDS]


@dataclass
class Line(httpx.AsyncBaseTransport):
    """The way to the service; the first call of an operation by branch 0 meets the deed."""

    service: "Service"
    operation: str = ""
    deed: str = ""
    struck: bool = False
    kept: httpx.Request | None = None
    inner: httpx.AsyncHTTPTransport = field(default_factory=httpx.AsyncHTTPTransport)

    def expect(self, operation: str, deed: str) -> None:
        self.operation, self.deed, self.struck, self.kept = operation, deed, False, None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_it = request.url.path == f"/{self.operation}"
        is_it = is_it and request.headers.get("everycent-branch") == "seat/0"
        if not is_it or self.struck:
            return await self.inner.handle_async_request(request)
        self.struck = True
        if self.deed == "late":
            self.kept = httpx.Request(
                request.method, request.url, headers=request.headers, content=request.content
            )
            raise httpx.ReadTimeout("it is still on its way", request=request)
        if self.deed == "killed after":
            answer = await self.inner.handle_async_request(request)
            await answer.aread()
            assert answer.status_code == 200
        await self.service.die()
        raise httpx.ReadError("the service died", request=request)

    async def deliver_late(self) -> dict[str, Any]:
        """Let the call that was kept arrive now, behind everything else."""
        assert self.kept is not None, "nothing was kept"
        answer = await self.inner.handle_async_request(self.kept)
        await answer.aread()
        said: dict[str, Any] = answer.json()
        return said


@dataclass
class Service:
    """The service's process, which is killed and comes back at the same address."""

    place: Path
    seats: Seats

    async def die(self) -> None:
        """Kill it; it comes back at once, on the same port and the same database."""
        process, url = self.seats.process, httpx.URL(self.seats.url)
        process.kill()
        await process.wait()
        dsn = self.seats.engine.url.set(drivername="postgresql")
        self.seats.process = await asyncio.create_subprocess_exec(
            str(NODE), "seats.js", str(url.port), cwd=self.place, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "DSN": dsn.render_as_string(hide_password=False)},
        )  # fmt: skip
        assert self.seats.process.stdout is not None
        await self.seats.process.stdout.readline()

    async def states(self, xid: str) -> set[str]:
        async with self.seats.engine.connect() as tx:
            query = text("SELECT state FROM fence WHERE key LIKE :xid || '/%'")
            return set((await tx.execute(query, {"xid": xid})).scalars())


@asynccontextmanager
async def served(place: Path, seats: Seats) -> AsyncIterator[Service]:
    """Watch over the service; end the process that is the last one."""
    service = Service(place, seats)
    try:
        yield service
    finally:
        seats.process.kill()
        await seats.process.wait()


@asynccontextmanager
async def working(
    flows: WorkflowEnvironment, databases: dict[ServiceName, Database], line: Line
) -> AsyncIterator[None]:
    """Run the flow, the order service for the decision's row, and the way to the participant."""
    client, order = flows.client, activities_of(OrderActivities(databases["order"]))
    url = line.service.seats.url
    async with httpx.AsyncClient(base_url=url, transport=line, trust_env=False) as http:
        seat = UrlParticipant(SEATS, http, guard=assert_no_transaction)
        lanes = url_workers(client, [seat])
        runner = SandboxedWorkflowRunner()
        flow = Worker(client, task_queue="parties", workflows=[Party], workflow_runner=runner)
        async with (
            flow, lanes[0], lanes[1],
            Worker(client, task_queue=tries("order"), activities=order),
            Worker(client, task_queue=finishes("order"), activities=order),
        ):  # fmt: skip
            yield


@pytest.mark.requirement("AC6.1", "AC6.4", "AC6.6", "AC14.3", "T12", "I4", "I6")
@pytest.mark.timeout(600)
async def test_no_fault_of_a_service_behind_a_url_leaves_a_transaction_mixed(
    flows: WorkflowEnvironment,
    databases: dict[ServiceName, Database],
    unsynced: PostgresServer,
    tmp_path: Path,
) -> None:
    """Red when: a Cancel of the service leaves no tombstone, or a lost answer is taken for a no."""
    place = installed(tmp_path)
    async with serving(place, unsynced) as seats, served(place, seats) as service:
        line, sold = Line(service), 0
        async with working(flows, databases, line):
            for story, operation, deed in CELLS:
                told = f"{story}: {operation} {deed}"
                areas, _ = STORIES[story]
                line.expect(operation, deed)
                xid = f"party/{uuid.uuid4().hex[:12]}"
                committed = await flows.client.execute_workflow(
                    Party.run, areas, id=f"party/{xid}", task_queue="parties"
                )
                assert line.struck, told
                assert committed is (story == "all"), told
                late = await line.deliver_late() if deed == "late" else {}
                if operation == "try" and late and not committed:
                    assert late["error"] == "AlreadyCancelled", told
                sold += 2 * committed
                assert await line.service.states(xid) == _all(committed=committed), told
                assert await seats.parts() == (1000 - sold, 0, sold), told
                assert await _decision(databases, xid) == _decided(committed=committed), told


def _all(*, committed: bool) -> set[str]:
    return {"CONFIRMED"} if committed else {"CANCELLED"}


def _decided(*, committed: bool) -> str:
    return "COMMITTED" if committed else "ABORTED"


async def _decision(databases: dict[ServiceName, Database], xid: str) -> str:
    async with databases["order"].transaction() as tx:
        query = text("SELECT decision FROM decision WHERE key = :key")
        return str(await tx.scalar(query, {"key": f"{xid}/decision"}))
