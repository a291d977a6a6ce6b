"""An order that is answered once it is written down, and what becomes of it afterwards."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from temporalio.client import Client
from temporalio.service import RPCError

from everycent.database.reads import Reader
from everycent.domain.order import PlaceOrder
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from tests.starters.conftest import CommandLine

MakeOrder = Callable[..., PlaceOrder]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
AT_ONCE = ("sweeper", "--once", "--grace", "0", "--hold-grace", "0", "--json")
NEVER_BEGUN = "accepted order that no run has begun"


@pytest.fixture(autouse=True)
async def ten_lamps(bookings: Bookings, tenant: str) -> None:
    await bookings.receive_stock(tenant, "LAMP", 10, request="first")


async def status_of(reader: Reader, order: PlaceOrder) -> str:
    view = await reader.order(order.tenant, order.order_id)
    return "absent" if view is None else view.status


@pytest.mark.requirement("AC15.7")
async def test_an_accepted_order_is_answered_at_once_and_ends_by_itself(
    everycent: CommandLine, an_order: MakeOrder, checkouts: Checkouts
) -> None:
    """Red when: the answer waits for the Try, a Try that fails later keeps something or hides why,
    or accepting twice, or then placing, makes two orders of one."""
    for _ in range(2):
        taken = await everycent.place(an_order("sold"), "--accept", "--json")
        assert taken.exit_code == 0, taken.stderr
        assert json.loads(taken.stdout)["order_id"] == "sold"
    sold = await checkouts.wait(everycent.tenant, "sold")
    assert (sold.status, sold.captured_minor) == ("CONFIRMED", 2_999)
    again = await everycent.place(an_order("sold"), "--accept", "--json")
    assert json.loads(again.stdout)["captured_minor"] == 2_999
    other = await everycent.place(an_order("sold", units=2), "--accept")
    assert other.exit_code == 2
    assert "lines" in other.stderr

    short = await everycent.place(an_order("short", units=11), "--accept", "--json")
    assert (short.exit_code, json.loads(short.stdout)["status"]) == (0, "PENDING")
    refused = await checkouts.wait(everycent.tenant, "short")
    assert (refused.status, refused.captured_minor) == ("REJECTED", 0)
    assert "LAMP" in refused.reason
    [stock] = await everycent.json("stock", "show", "LAMP")
    assert (stock["held"], stock["sold"]) == (0, 1)


@pytest.mark.requirement("AC15.7")
async def test_a_starter_killed_between_the_row_and_the_run_loses_no_order(
    everycent: CommandLine,
    an_order: MakeOrder,
    client: Client,
    reader: Reader,
    checkouts: Checkouts,
    until: Until,
) -> None:
    """Red when: the run is started before the row is answered, or no scan takes the row up."""
    order = an_order("killed")
    async with _stuck_in_its_answer(everycent, order) as starter:

        async def written() -> bool:
            assert starter.returncode is None, "it has answered into a full pipe"
            return await status_of(reader, order) == "PENDING"

        await until(written)
        starter.send_signal(signal.SIGKILL)
        assert await starter.wait() == -signal.SIGKILL
    with pytest.raises(RPCError, match="not found"):
        await client.get_workflow_handle(order.workflow_id()).describe()
    done = await everycent(*AT_ONCE)
    [finding] = json.loads(done.stdout)["findings"]
    assert (finding["kind"], finding["act"], finding["repaired"]) == (NEVER_BEGUN, "take up", True)
    assert (await checkouts.wait(everycent.tenant, "killed")).status == "CONFIRMED"
    placed = await everycent.place(order, "--json")
    assert json.loads(placed.stdout)["captured_minor"] == 2_999
    [stock] = await everycent.json("stock", "show", "LAMP")
    assert (stock["held"], stock["sold"]) == (0, 1)


@pytest.mark.requirement("AC15.7")
async def test_many_accepted_orders_are_no_sign_of_a_wrong_temporal(
    everycent: CommandLine, an_order: MakeOrder, checkouts: Checkouts, reader: Reader, until: Until
) -> None:
    """Red when: the pass stops itself because Temporal rightly knows none of them, or the last
    ones, for which the stock is too short, keep some of it."""
    orders = [an_order(f"o-{number}") for number in range(9)]
    orders.append(an_order("o-9", units=2))
    await asyncio.gather(*(checkouts.accept(order) for order in orders))
    assert {await status_of(reader, order) for order in orders} == {"PENDING"}
    done = await everycent(*AT_ONCE)
    report = json.loads(done.stdout)
    assert (report["stopped"], len(report["findings"])) == ("", 10)
    ended = [(await checkouts.wait(o.tenant, o.order_id)).status for o in orders]
    assert sorted(ended) == ["CONFIRMED"] * 9 + ["REJECTED"]
    [stock] = await everycent.json("stock", "show", "LAMP")
    assert (stock["held"], stock["free"] + stock["sold"]) == (0, 10)


@contextlib.asynccontextmanager
async def _stuck_in_its_answer(
    everycent: CommandLine, order: PlaceOrder
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `order place --accept` with a pipe that is full: it stands before its answer is out."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b" " * 4096)
        os.set_blocking(writing, True)
        starter = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "everycent", "order", "place", "-", "--accept", "--json",
            "--data-dir", str(everycent.folder), stdin=asyncio.subprocess.PIPE, stdout=writing,
        )  # fmt: skip
        assert starter.stdin is not None
        starter.stdin.write(order.model_dump_json().encode())
        starter.stdin.close()
        try:
            yield starter
        finally:
            if starter.returncode is None:
                starter.kill()
                await starter.wait()
    finally:
        os.close(reading)
        os.close(writing)
