"""A participant behind a URL, in Node: its promises over HTTP, and a flow with it."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from everycent.database.engine import assert_no_transaction
from everycent.domain.participant import CancelBranch, ConfirmBranch
from everycent.errors import AlreadyCancelled, Bug, Unknown, Unreachable
from everycent.kit import BrokenPromise, NotDone, UrlParticipant, url_workers
from everycent.proof.conformance_url import assert_url_participant
from everycent.stack.postgres import PostgresServer
from examples.seat_flow import SEATS, Evening, HoldSeat, SeatHeld
from tests.examples.node_service import Seats, installed, serving

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
EVERYCENT = Path(sys.executable).with_name("everycent")


def seat_at(http: httpx.AsyncClient, **more: Any) -> UrlParticipant:
    return UrlParticipant(SEATS, http, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(Path(tmp_path_factory.mktemp("example")))


@pytest.fixture
async def seats(place: Path, unsynced: PostgresServer) -> AsyncIterator[Seats]:
    async with serving(place, unsynced) as running:
        yield running


@pytest.fixture
async def http(seats: Seats) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=seats.url, trust_env=False) as client:
        yield client


def requests(order: str = "o-1") -> tuple[HoldSeat, ConfirmBranch, CancelBranch]:
    branch = (f"t/{order}", "seat")
    return (
        HoldSeat.of(*branch, at=NOON, area="stalls"),
        ConfirmBranch.of(*branch, at=NOON),
        CancelBranch.of(*branch, at=NOON),
    )


@pytest.mark.requirement("AC14.3", "AC6.1", "T12", "I6")
@pytest.mark.timeout(180)
async def test_the_command_finds_every_promise_kept(seats: Seats) -> None:
    """`everycent conformance URL`, on the service that the document shows.

    Red when: the service forgets a header, an answer, or which Try was cancelled.
    """
    words = ("conformance", seats.url, "--name", "seat", "--request", '{"area": "stalls"}')
    process = await asyncio.create_subprocess_exec(
        EVERYCENT, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    told, wrong = await process.communicate()
    assert process.returncode == 0, wrong.decode()
    assert "every promise is kept" in told.decode()
    assert "not looked at" not in told.decode()


NO_TOMBSTONE = """
CREATE OR REPLACE FUNCTION fence_tombstone(
    its_key text, its_day date, its_time timestamptz, its_reason text,
    OUT verdict text, OUT answer jsonb
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT f.try_answer INTO answer FROM fence AS f WHERE f.key = its_key AND f.state = 'TRIED';
    verdict := CASE WHEN answer IS NULL THEN 'repeat' ELSE 'proceed' END;
    answer := coalesce(answer, jsonb_build_object('outcome', 'cancelled'));
END $$"""


@pytest.mark.requirement("AC14.3")
async def test_a_service_without_a_tombstone_is_told_so(seats: Seats) -> None:
    """Red when: the trial does not try a Try after its Cancel."""
    async with seats.engine.begin() as tx:
        await tx.execute(text(NO_TOMBSTONE))
    with pytest.raises(BrokenPromise, match="a late Try after its Cancel is refused"):
        await assert_url_participant(seats.url, {"area": "stalls"}, name="seat", at=NOON)


async def test_its_errors_are_ours_and_a_call_inside_a_transaction_is_refused(
    seats: Seats, http: httpx.AsyncClient
) -> None:
    tried, confirm, cancel = requests()
    seat = seat_at(http)
    assert (await seat.cancel(cancel)).held is False
    with pytest.raises(AlreadyCancelled):
        await seat.try_(tried)
    assert (await seat.look_up(tried.key)).state == "cancelled"

    def in_a_transaction() -> None:
        raise Bug("inside")

    with pytest.raises(Bug, match="inside"):
        await seat_at(http, guard=in_a_transaction).confirm(confirm)
    assert_no_transaction()


@pytest.mark.requirement("T12")
async def test_a_call_that_is_too_late_is_unknown_and_the_same_call_settles_it(
    seats: Seats, http: httpx.AsyncClient
) -> None:
    """The row of the area is locked: the service answers only after our deadline.

    Red when: a time-out is taken for a no, or the repeat holds a second seat.
    """
    tried, _, _ = requests()
    async with seats.engine.connect() as holder:
        await holder.execute(text("SELECT FROM seats FOR UPDATE"))
        with pytest.raises(Unknown):
            await seat_at(http, deadline_seconds=2).try_(tried)
        await holder.rollback()
    assert await seat_at(http).try_(tried) == SeatHeld(area="stalls")
    assert await seats.parts() == (999, 1, 0)


async def test_a_service_that_is_down_has_surely_done_nothing(
    seats: Seats, http: httpx.AsyncClient
) -> None:
    seats.process.kill()
    await seats.process.wait()
    with pytest.raises(Unreachable):
        await seat_at(http).try_(requests()[0])


@pytest.mark.requirement("AC14.1")
async def test_a_flow_holds_and_buys_seats_of_a_service_in_another_language(
    flows: WorkflowEnvironment, seats: Seats, http: httpx.AsyncClient
) -> None:
    """Red when: what was held before a refusal is not given back over HTTP."""
    workers = url_workers(flows.client, [seat_at(http, guard=assert_no_transaction)])
    flow = Worker(
        flows.client,
        task_queue="evenings",
        workflows=[Evening],
        workflow_runner=SandboxedWorkflowRunner(),
    )

    async def go(*areas: str) -> int | NotDone:
        ended: int | NotDone = await flows.client.execute_workflow(
            Evening.run,
            list(areas),
            id=f"evening/t/{uuid.uuid4().hex[:8]}",
            task_queue="evenings",
        )
        return ended

    async with workers[0], workers[1], flow:
        assert await go("stalls", "stalls") == 2
        refused = await go("stalls", "balcony")
    assert refused == NotDone(step="try seat", refusal={"kind": "sold_out", "area": "balcony"})
    assert await seats.parts() == (998, 0, 2)
