"""`everycent explain` on a whole stack: terminated, reset, deleted, and named in every way."""

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.payment import PaymentActivities
from everycent import clock
from everycent.domain.order import CancelOrder, CardPayment, PlaceOrder, RedirectPayment
from everycent.domain.payment import Refunded, RefundPayment
from everycent.proof.explain import explain
from everycent.proof.timeline_text import as_text
from everycent.settings import Settings
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from tests.starters.conftest import CommandLine
from workers.queues import finishes

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest.fixture(autouse=True)
async def stock(bookings: Bookings, tenant: str) -> None:
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")


@pytest.mark.requirement("AC20.5", "I16")
async def test_every_name_that_people_know_an_order_by_tells_the_same_story(
    everycent: CommandLine, an_order: Callable[..., PlaceOrder], checkouts: Checkouts, tenant: str
) -> None:
    """Red when: only the order's own id finds it, or another name finds less of its story."""
    await checkouts.sell(an_order())
    shown = await everycent.json("order", "show", "o-1")
    names = (
        "o-1", f"{tenant}/o-1", f"{tenant}/o-1/pay/first", f"checkout/{tenant}/o-1", "first",
        shown["payments"][0]["provider_id"],
    )  # fmt: skip
    stories = []
    for name in names:
        done = await everycent("explain", name, "--json")
        assert done.exit_code == 0, (name, done.stderr)
        stories.append(json.loads(done.stdout))
    first = stories[0]
    assert (first["tenant"], first["order_id"], first["status"]) == (tenant, "o-1", "CONFIRMED")
    assert len(first["events"]) > 20
    assert all(story == first for story in stories)


@pytest.mark.requirement("AC20.5")
async def test_a_refund_is_found_by_its_id_at_the_provider(
    everycent: CommandLine,
    an_order: Callable[..., PlaceOrder],
    checkouts: Checkouts,
    client: Client,
    tenant: str,
) -> None:
    """Red when: a refund's id leads nowhere, or only within the shop of `--tenant`."""
    await checkouts.sell(an_order())
    at = clock.now()
    request = RefundPayment(
        key=f"{tenant}/o-1/refund/r-1", at=at, opened_on=at.date(), amount_minor=100,
        payment_key=f"{tenant}/o-1/pay/first", currency="USD",
    )  # fmt: skip
    refund = await client.execute_activity_method(
        PaymentActivities.refund, request, id=request.key, task_queue=finishes("payment"),
        start_to_close_timeout=timedelta(seconds=30),
    )  # fmt: skip
    assert isinstance(refund, Refunded)
    done = await everycent("explain", refund.provider_refund_id, "--json", shop=False)
    assert (json.loads(done.stdout)["tenant"], json.loads(done.stdout)["order_id"]) == (
        tenant,
        "o-1",
    )


@pytest.mark.requirement("AC20.5")
async def test_a_name_of_several_orders_lists_them_as_they_can_be_typed(
    everycent: CommandLine, an_order: Callable[..., PlaceOrder], checkouts: Checkouts, tenant: str
) -> None:
    """Red when: one of them is taken, be it the one whose own id it is."""
    await checkouts.sell(an_order())
    other = CardPayment(card_token="tok_ok", request_id="other")
    await checkouts.sell(an_order("first", payment=other))
    twice = await everycent("explain", "first")
    assert (twice.exit_code, twice.stdout) == (2, "")
    assert f"first could be of these orders: {tenant}/first, {tenant}/o-1;" in twice.stderr
    told = await everycent.json("explain", f"{tenant}/first")
    assert told["order_id"] == "first"


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


@pytest.mark.requirement("I16")
@pytest.mark.parametrize(
    ("temporal", "why"),
    [
        ({"address": "127.0.0.1:1"}, "Temporal does not answer at 127.0.0.1:1"),
        ({"namespace": "elsewhere"}, "Namespace elsewhere is not found."),
    ],
)
async def test_without_temporal_the_databases_are_told_and_what_is_missing_is_said(
    an_order: Callable[..., PlaceOrder],
    checkouts: Checkouts,
    live: Settings,
    tenant: str,
    temporal: dict[str, str],
    why: str,
) -> None:
    """Red when: it fails, blames the order, or takes an order for one that nobody drives."""
    await checkouts.place(an_order(payment=RedirectPayment()))
    place = live.temporal.model_copy(update=temporal)
    told = await explain(live.model_copy(update={"temporal": place}), tenant, "o-1")
    assert {event.source for event in told.events} == {"order", "inventory", "payment", "provider"}
    assert told.why == "Temporal does not answer: whether anybody drives it is not known"
    text = "\n".join(as_text(told))
    assert f"workflow checkout/{tenant}/o-1: its runs are not known" in text
    assert f"silent  temporal: {why}" in text
    assert "missing the runs with their steps and attempts" in text
    assert "missing a look at the invariants" in text
    await checkouts.cancel(tenant, "o-1", CancelOrder())


@pytest.mark.requirement("I16")
async def test_of_an_order_that_nobody_who_answers_knows_the_exit_code_is_4(
    tenant: str, tmp_path: Path, live: Settings
) -> None:
    """Red when: a shop whose database is down is told that its order never came."""
    folder = tmp_path / "settings"
    folder.mkdir()
    read = {**live.read, "order": "postgresql+asyncpg://nobody:x@127.0.0.1:1/nothing"}
    (folder / "reader.toml").write_text(
        "[read]\n" + "".join(f'{name} = "{dsn}"\n' for name, dsn in read.items())
    )
    elsewhere = CommandLine(tmp_path, tenant)
    done = await elsewhere("explain", "never", "--json")
    assert (done.exit_code, json.loads(done.stdout)["found"]) == (4, False)
    assert done.stderr.endswith(
        f"error: nothing found of order never of tenant {tenant},"
        " and no answer from order, provider, temporal\n"
    )
