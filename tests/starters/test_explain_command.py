"""`everycent explain` on a whole stack: terminated, reset, deleted, and named in every way."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from everycent.domain.order import CancelOrder, PlaceOrder, RedirectPayment
from everycent.proof.explain import explain
from everycent.settings import Settings
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from tests.starters.conftest import CommandLine

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest.fixture(autouse=True)
async def stock(bookings: Bookings, tenant: str) -> None:
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")


@pytest.mark.requirement("AC20.5", "I16")
async def test_an_order_is_found_by_every_name_that_people_know_it_by(
    everycent: CommandLine, an_order: Callable[..., PlaceOrder], checkouts: Checkouts, tenant: str
) -> None:
    """Red when: only the order's own id finds it."""
    await checkouts.sell(an_order())
    shown = await everycent.json("order", "show", "o-1")
    names = (
        "o-1", f"{tenant}/o-1/pay/first", f"checkout/{tenant}/o-1", "first",
        shown["payments"][0]["provider_id"],
    )  # fmt: skip
    for name in names:
        done = await everycent("explain", name, "--json")
        assert done.exit_code == 0, (name, done.stderr)
        told = json.loads(done.stdout)
        assert (told["tenant"], told["order_id"], told["status"]) == (tenant, "o-1", "CONFIRMED")
    await checkouts.sell(an_order("o-2"))
    twice = await everycent("explain", "first")
    assert twice.exit_code == 2
    assert "first could be of these orders: o-1, o-2" in twice.stderr


@pytest.mark.requirement("I16")
async def test_data_goes_to_stdout_and_an_unknown_order_is_exit_code_2(
    everycent: CommandLine, tenant: str
) -> None:
    """Red when: talk is mixed with data, or an order that never came looks like one that did."""
    done = await everycent("explain", "never", "--json")
    assert (done.exit_code, json.loads(done.stdout)["found"]) == (2, False)
    assert done.stderr == f"error: there is no order never of tenant {tenant}\n"


@pytest.mark.requirement("AC20.5", "I16")
async def test_who_terminated_a_run_is_told_and_why(
    everycent: CommandLine,
    an_order: Callable[..., PlaceOrder],
    checkouts: Checkouts,
    client: Client,
    tenant: str,
) -> None:
    """Red when: acts of people in Temporal are left out of the story."""
    await checkouts.place(an_order(payment=RedirectPayment()))
    handle = client.get_workflow_handle(f"checkout/{tenant}/o-1")
    await handle.terminate(reason="a mistake")
    done = await everycent("explain", "o-1")
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert f"run 1 is terminated by {client.identity}: a mistake" in said
    assert f"waits nobody drives it: its run was terminated by {client.identity}: a mistake" in said
    await checkouts.take_up(tenant, "o-1")
    told = await everycent.json("explain", "o-1")
    assert [run["status"] for run in told["runs"]] == ["terminated", "running"]
    assert told["waits_for"] == "payment"
    await checkouts.cancel(tenant, "o-1", CancelOrder(reason="changed her mind"))
    said = " ".join((await everycent("explain", "o-1")).stdout.split())
    assert "> asked: cancel (changed her mind)" in said


@pytest.mark.requirement("AC20.5")
async def test_a_reset_is_told_once_and_repeats_no_line(
    an_order: Callable[..., PlaceOrder],
    checkouts: Checkouts,
    client: Client,
    live: Settings,
    tenant: str,
) -> None:
    """Red when: what a reset run has copied of the first run is told twice."""
    await checkouts.sell(an_order())
    handle = client.get_workflow_handle(f"checkout/{tenant}/o-1")
    first = await handle.describe()
    answer = await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=first.run_id),
            reason="a test",
            workflow_task_finish_event_id=4,
            request_id="r-1",
        )
    )
    await client.get_workflow_handle(handle.id, run_id=answer.run_id).result()
    told = await explain(live, tenant, "o-1")
    assert [run.run_id for run in told.runs] == [first.run_id, answer.run_id]
    said = [event.what for event in told.events]
    assert sum("reset to here as run 2" in what for what in said) == 1
    assert (said.count("run 1 begins"), said.count("run 2 begins")) == (1, 0)
    assert (said.count("hold the stock"), said.count("sell the stock")) == (1, 1)
    assert said.count("reservation reserve CONFIRMED 1 × LAMP") == 1


@pytest.mark.requirement("AC20.5")
async def test_an_order_deleted_from_temporal_is_told_by_the_services(
    an_order: Callable[..., PlaceOrder],
    checkouts: Checkouts,
    client: Client,
    live: Settings,
    tenant: str,
    until: Until,
) -> None:
    """Red when: without a history there is no story."""
    await checkouts.sell(an_order())
    handle = client.get_workflow_handle(f"checkout/{tenant}/o-1")
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id),
        )
    )

    async def gone() -> bool:
        try:
            await handle.describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await until(gone)
    told = await explain(live, tenant, "o-1")
    sources: set[Any] = {event.source for event in told.events}
    assert (told.runs, told.status, told.silent) == ((), "CONFIRMED", {})
    assert sources == {"order", "inventory", "payment", "points", "ledger", "provider"}
