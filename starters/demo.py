"""The demo: a stack in a temporary folder, orders that end in every way, and the audit behind them.

Nothing is scripted but what happens to the orders: how they ended, and what moved, is read back
from the services.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from everycent.database.reads import OrderFile, Reader, reading
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    OrderLine,
    OrderStatus,
    Payment,
    PayOrder,
    PlaceOrder,
    RedirectPayment,
)
from everycent.errors import Unknown
from everycent.settings import Settings
from everycent.stack.embedded import EmbeddedStack
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.client import connect

Story = Callable[["Scene", PlaceOrder], Awaitable[None]]
TENANT = "demo"
PATIENCE_SECONDS = 60.0
GOOD_CARD = "tok_ok"
VICTIMS = ("worker-workflows", "worker-inventory")


@dataclass(frozen=True)
class Told:
    """One order of the demo: what happened to it, and all that the services know about it."""

    title: str
    expected: OrderStatus
    file: OrderFile

    @property
    def as_expected(self) -> bool:
        """Whether the order ended as the story wants it."""
        return self.file.order.status is self.expected


@dataclass(frozen=True)
class Scene:
    """Where a story plays."""

    stack: EmbeddedStack
    reader: Reader
    checkouts: Checkouts
    bookings: Bookings
    say: Callable[[str], None]


class Demo:
    """Runs it all once; `show` gets the orders and the settings while the stack still runs."""

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        show: Callable[[list[Told], Settings], Awaitable[bool]],
        keep: bool = False,
    ) -> None:
        self._say = say
        self._show = show
        self._keep = keep

    def run(self) -> bool:
        """Sell, show and clean up; True if every order ended as it should and `show` agrees."""
        began = time.monotonic()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with tempfile.TemporaryDirectory(prefix="everycent-demo-") as folder:
            self._say("starting PostgreSQL, Temporal, the payment simulator and 7 workers …")
            with EmbeddedStack(Path(folder) / "data") as stack:
                self._say(f"ready after {time.monotonic() - began:.0f} s, selling …")
                ok = asyncio.run(self._play(stack))
                if self._keep:
                    self._say("it stays up until Ctrl-C")
                    signal.pause()
                self._say("stopping …")
        self._say(f"done after {time.monotonic() - began:.0f} s, nothing is left running")
        return ok

    async def _play(self, stack: EmbeddedStack) -> bool:
        settings = stack.settings
        client = await connect(settings)
        async with reading(settings) as reader:
            scene = Scene(stack, reader, Checkouts(client, reader), Bookings(client), self._say)
            await _fill_the_shop(scene.bookings)
            told = list(await asyncio.gather(*(_tell(scene, *story) for story in STORIES)))
            told.append(await _tell(scene, *LAST_STORY))
            return await self._show(told, settings) and all(each.as_expected for each in told)


async def _fill_the_shop(bookings: Bookings) -> None:
    await bookings.receive_stock(TENANT, "LAMP", 100, request="demo")
    await bookings.receive_stock(TENANT, "RARE", 1, request="demo")
    await bookings.deposit(TENANT, "ada", 10_000, "USD", request="demo")
    await bookings.grant_points(TENANT, "bob", 500, request="demo")


async def _tell(
    scene: Scene, title: str, expected: OrderStatus, story: Story, order: PlaceOrder
) -> Told:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await story(scene, order)
        await scene.checkouts.wait(order.tenant, order.order_id)
    file = await scene.reader.order_file(order.tenant, order.order_id)
    assert file is not None, f"{order.order_id} was sold and has no row"
    scene.say(f"  {order.order_id}: {file.order.status}")
    return Told(title, expected, file)


# -- what happens to the orders


async def _just_sell(scene: Scene, order: PlaceOrder) -> None:
    await scene.checkouts.place(order)


async def _pay_on_the_page(scene: Scene, order: PlaceOrder) -> None:
    """Place the order and pay it as the customer does: by the button of the provider's page."""
    placement = await scene.checkouts.place(order)
    assert placement.redirect_url, f"{order.order_id} has no page to pay on"
    async with httpx.AsyncClient(timeout=10, trust_env=False) as browser:
        (await browser.post(placement.redirect_url)).raise_for_status()


async def _take_another_card(scene: Scene, order: PlaceOrder) -> None:
    await scene.checkouts.place(order)
    second = CardPayment(request_id="second", card_token=GOOD_CARD)
    await scene.checkouts.pay(order.tenant, order.order_id, PayOrder(payment=second))


async def _change_the_mind(scene: Scene, order: PlaceOrder) -> None:
    await scene.checkouts.place(order)
    await scene.checkouts.cancel(order.tenant, order.order_id, CancelOrder())


async def _kill_workers(scene: Scene, order: PlaceOrder) -> None:
    """Kill the workers that the order needs next; the supervisor restarts them."""
    placing = asyncio.ensure_future(scene.checkouts.place(order))
    await _until(lambda: _is_paying(scene.reader, order))
    before = scene.stack.processes
    for name in VICTIMS:
        pid = before[name].pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            scene.say(f"  {order.order_id}: killed {name} (kill -9 {pid}) while the card is asked")
    await placing
    after = scene.stack.processes
    restarts = ", ".join(f"{name} is pid {after[name].pid} now" for name in VICTIMS)
    scene.say(f"  {order.order_id}: {restarts}")


async def _is_paying(reader: Reader, order: PlaceOrder) -> bool:
    file = await reader.order_file(order.tenant, order.order_id)
    return file is not None and bool(file.payments)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        if time.monotonic() > deadline:
            raise Unknown("the order did not come as far as its payment")
        await asyncio.sleep(0.05)


def _order(
    order_id: str,
    payment: Payment | None,
    *,
    customer: str = "ada",
    sku: str = "LAMP",
    units: int = 1,
    amount_minor: int = 2_999,
    points: int = 0,
    window_seconds: int = 900,
) -> PlaceOrder:
    return PlaceOrder(
        tenant=TENANT,
        order_id=order_id,
        customer=customer,
        currency="USD",
        lines=(OrderLine(sku=sku, units=units, amount_minor=amount_minor),),
        payment=payment,
        points=points,
        payment_window_seconds=window_seconds,
    )


def _card(token: str = GOOD_CARD) -> CardPayment:
    return CardPayment(card_token=token)


_S = OrderStatus
STORIES: tuple[tuple[str, OrderStatus, Story, PlaceOrder], ...] = (
    ("paid by card", _S.CONFIRMED, _just_sell, _order("card", _card(), units=2)),
    (
        "paid from the stored balance",
        _S.CONFIRMED,
        _just_sell,
        _order("balance", BalancePayment(account="ada")),
    ),
    (
        "500 points pay a part, a card the rest",
        _S.CONFIRMED,
        _just_sell,
        _order("points", _card(), customer="bob", points=500),
    ),
    ("costs nothing", _S.CONFIRMED, _just_sell, _order("free", None, amount_minor=0)),
    (
        "the customer pays on the provider's page",
        _S.CONFIRMED,
        _pay_on_the_page,
        _order("redirect", RedirectPayment()),
    ),
    ("out of stock", _S.REJECTED, _just_sell, _order("sold-out", _card(), sku="RARE", units=2)),
    (
        "card declined, then paid by another",
        _S.CONFIRMED,
        _take_another_card,
        _order("two-cards", _card("tok_declined")),
    ),
    (
        "the customer cancels",
        _S.CANCELLED,
        _change_the_mind,
        _order("cancelled", RedirectPayment()),
    ),
    (
        "not paid within 4 seconds",
        _S.EXPIRED,
        _just_sell,
        _order("expired", RedirectPayment(), window_seconds=4),
    ),
    (
        "the provider did it and never answered",
        _S.CONFIRMED,
        _just_sell,
        _order("no-answer", _card("tok_timeout_after")),
    ),
    (
        "the provider is down when it is asked",
        _S.CONFIRMED,
        _just_sell,
        _order("outage", _card("tok_down")),
    ),
)
LAST_STORY: tuple[str, OrderStatus, Story, PlaceOrder] = (
    "two workers killed (-9) in the middle",
    _S.CONFIRMED,
    _kill_workers,
    _order("killed", _card("tok_delay"), units=3),
)
