"""Modes from the command line: switched and taken back while orders run, each in its own mode."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client
from typer.testing import Result

from everycent.database.reads import Reader
from everycent.domain.mode import Mode
from everycent.domain.order import CardPayment, OrderStatus, PlaceOrder
from starters.bookings import Bookings

MakeOrder = Callable[..., PlaceOrder]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
BAD, GOOD = CardPayment(card_token="tok_declined"), ("--card", "tok_ok")


class CommandLine(Protocol):
    """See conftest.py."""

    tenant: str

    async def __call__(
        self, *words: str, given: str | None = None, shop: bool = True
    ) -> Result: ...

    async def json(self, *words: str, shop: bool = True) -> Any: ...

    async def place(self, order: PlaceOrder, *words: str) -> Result: ...


@pytest.mark.requirement("AC9.4", "AC2.1")
async def test_an_order_ends_in_the_mode_that_it_began_in_whatever_is_switched_meanwhile(
    everycent: CommandLine,
    an_order: MakeOrder,
    bookings: Bookings,
    client: Client,
    reader: Reader,
    tenant: str,
) -> None:
    """Five orders wait for another card, of TCC and of the mixed mode; then come sagas again.

    Placed again, terminated and placed again, terminated and swept, reset to their first task: each
    ends in its own mode, and an order that comes now is a saga.

    Red when: the starter routes an order that has a row, or the run believes its input.
    """
    await bookings.receive_stock(tenant, "LAMP", 50, request="first")
    names = ("waits", "placed-again", "taken-up", "swept", "reset")
    modes = dict(zip(names, (Mode.TCC, Mode.TCC, Mode.MIXED, Mode.MIXED, Mode.MIXED), strict=True))
    orders = {name: an_order(name, payment=BAD) for name in names}
    for mode in (Mode.TCC, Mode.MIXED):
        assert (await everycent("route", "set", mode)).exit_code == 0
        for order in (orders[name] for name in names if modes[name] is mode):
            await everycent.place(order)
    for _ in range(2):
        assert (await everycent("route", "rollback")).exit_code == 0

    await everycent.place(orders["placed-again"])
    for name in ("taken-up", "swept"):
        await client.get_workflow_handle(orders[name].workflow_id()).terminate("by the test")
    await everycent.place(orders["taken-up"])
    swept = await everycent("sweeper", "--once", "--grace", "0")
    assert swept.exit_code == 0, swept.output
    await _reset(client, orders["reset"])
    for name in names:
        paid = await everycent("order", "pay", name, *GOOD)
        assert paid.exit_code == 0, (name, paid.output)
        assert await _modes(client, reader, orders[name]) == (modes[name], modes[name]), name
    new = an_order("new")
    await everycent.place(new)
    assert await _modes(client, reader, new) == (Mode.SAGA, Mode.SAGA)


async def _reset(client: Client, order: PlaceOrder) -> None:
    """Begin the order's run anew, as `temporal workflow reset --type FirstWorkflowTask` does."""
    handle = client.get_workflow_handle(order.workflow_id())
    point = None
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            point = point or event.event_id
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id),
            reason="a test",
            workflow_task_finish_event_id=point or 0,
            request_id=handle.id,
        )
    )


async def _modes(client: Client, reader: Reader, order: PlaceOrder) -> tuple[Mode, Mode]:
    """Return the mode in the order's row, and the one that its last run went by.

    But for the saga the payment's Try is asked for in the same task as the stock's; and in the
    mixed mode no run grants points.
    """
    view = await reader.order(order.tenant, order.order_id)
    assert view is not None
    assert view.status is OrderStatus.CONFIRMED
    handle = client.get_workflow_handle(order.workflow_id())
    tasks: dict[str, int] = {}
    async for event in handle.fetch_history_events():
        asked = event.activity_task_scheduled_event_attributes
        tasks.setdefault(asked.activity_type.name, asked.workflow_task_completed_event_id)
    at_once = tasks["inventory.reserve_stock"] == tasks["payment.authorise"]
    held = Mode.TCC if "points.grant_points" in tasks else Mode.MIXED
    return view.mode, held if at_once else Mode.SAGA


@pytest.mark.requirement("AC9.4", "AC19.4")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "magic"), "mode: Input should be 'saga', 'tcc'"),
        (("set", "choreographed"), "checkout has no mode choreographed; it has: saga, tcc, mixed"),
        (("set", "tcc", "--percentage", "101"), "percentage: Input should be less than"),
        (("set", "tcc", "--percentage", "-1"), "percentage: Input should be greater than"),
        (("set", "tcc", "--percentage", "5", "--rest", "tcc"), "both the mode and the rest"),
        (("set", "tcc", "--flow", "cooking"), "there is no flow cooking"),
        (("rollback",), "no rule to be taken back"),
    ],
)
async def test_a_switch_that_makes_no_sense_is_refused_with_the_reason(
    everycent: CommandLine, words: tuple[str, ...], says: str
) -> None:
    """Exit code 2, one line, and no rule.

    Red when: the check is left out of the starter or of the request.
    """
    done = await everycent("route", *words)
    assert done.exit_code == 2
    assert says in done.output
    rules = await everycent.json("route", "list", shop=False)
    assert [rule for rule in rules if rule["tenant"] == everycent.tenant] == []


async def test_the_same_switch_typed_again_is_one_rule(everycent: CommandLine) -> None:
    for _ in range(2):
        set_ = await everycent.json("route", "set", "tcc", "--percentage", "30", "--request", "a")
        assert (set_["number"], set_["mode"], set_["rest"]) == (1, "tcc", "saga")
    listed = await everycent("route", "list", shop=False)
    assert "tcc for 30 %, saga for the others" in listed.stdout


@pytest.mark.requirement("AC9.5")
async def test_a_shadow_run_tells_what_the_other_mode_would_begin_and_begins_nothing(
    everycent: CommandLine, an_order: MakeOrder, bookings: Bookings, reader: Reader, tenant: str
) -> None:
    """Of two sagas one was out of stock: in TCC its card would have been authorised and voided.

    Red when: a branch that was never begun is left out of the other mode's plan.
    """
    await bookings.receive_stock(tenant, "LAMP", 1, request="first")
    await everycent.place(an_order("sold"))
    await everycent.place(an_order("none-left"))
    told = {each["order_id"]: each for each in await everycent.json("route", "shadow", "tcc")}
    assert told["sold"]["more"] == []
    assert told["none-left"]["more"] == ["payment"]
    assert told["none-left"]["then"]["decision"] == "ABORTED"
    listed = await everycent("route", "shadow", "tcc")
    assert "2 orders: 1 differ, 0 cannot be told" in listed.stdout
    keys = {"low": f"{tenant}/none-left/", "high": f"{tenant}/none-left0"}
    sql = "SELECT 1 FROM payment WHERE key BETWEEN :low AND :high AND request_hash IS NOT NULL"
    assert await reader.rows("payment", sql, **keys) == []
    in_mixed = {each["order_id"]: each for each in await everycent.json("route", "shadow", "mixed")}
    assert in_mixed == told  # Its core is a TCC.
    refused = await everycent("route", "shadow", "choreographed")
    assert (refused.exit_code, "has no mode choreographed" in refused.output) == (2, True)
