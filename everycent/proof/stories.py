"""Every way in which an order can go: what happens to it, and how it has to end.

A story is told to any world: real time or simulated, one order or hundreds side by side. It ends
when nothing more is done to the order; how the order ended is in its row soon after.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from temporalio.service import RPCError

from everycent.database import inventory
from everycent.domain.inventory import ReleaseStock
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    OrderLine,
    OrderResult,
    OrderStatus,
    Payment,
    PayOrder,
    Placement,
    PlaceOrder,
    RedirectPayment,
    RepairOrder,
)
from everycent.proof.world import Hook, World
from everycent.settings import ServiceName
from workers.queues import WORKFLOWS
from workflows.checkout import Checkout

MINUTE = 60.0
LOOK_SECONDS = 0.02
PATIENCE_SECONDS = 60.0
TYPED_AGAIN = 3
T = TypeVar("T")
# What every shop has: a customer with an account and points, one with nothing, goods.
RICH, POOR, SKU, CURRENCY = "ada", "bob", "LAMP", "EUR"
GOOD_CARD = "tok_ok"


@dataclass(frozen=True)
class Scene:
    """One order in one world, and what people do with it."""

    world: World
    order: PlaceOrder

    @property
    def xid(self) -> str:
        """Return `<tenant>/<order>`."""
        return f"{self.order.tenant}/{self.order.order_id}"

    def arm(
        self,
        activity_name: str,
        error: str | None = None,
        *,
        hook: Hook | None = None,
        after: bool = False,
    ) -> None:
        """Let something happen once to an activity of the order."""
        self.world.trouble.arm(self.xid, activity_name, error, hook=hook, after=after)

    async def place(self) -> Placement:
        """Hand the order in."""
        return await _typed_again(lambda: self.world.checkouts.place(self.order))

    async def cancel(self) -> None:
        """Say that the customer does not want it any more."""
        order, word = self.order, CancelOrder()
        await _typed_again(lambda: self.world.checkouts.cancel(order.tenant, order.order_id, word))

    async def pay(self, payment: Payment) -> None:
        """Name another payment."""
        order, word = self.order, PayOrder(payment=payment)
        await _typed_again(lambda: self.world.checkouts.pay(order.tenant, order.order_id, word))

    async def pay_on_page(self) -> None:
        """Press the button of the provider's page."""
        query = {"reference": f"{self.xid}/*"}
        listed = await self.world.provider.get("/admin/intents", params=query)
        [intent] = listed.json()["data"]
        url = f"/v1/intents/{intent['id']}/customer_pays"
        (await self.world.provider.post(url)).raise_for_status()

    async def provider_fault(self, kind: str, operation: str) -> None:
        """Let the provider fail once in an operation on this order."""
        rule = {"kind": kind, "operation": operation, "reference": f"{self.xid}/*", "times": 1}
        (await self.world.provider.post("/admin/faults", json=rule)).raise_for_status()

    async def parked_case(self) -> str:
        """Wait until a step of the order is parked and return the key of its case."""
        sql = (
            "SELECT case_key FROM repair_case"
            " WHERE tenant = :tenant AND order_id = :order_id AND state = 'OPEN'"
        )
        names = {"tenant": self.order.tenant, "order_id": self.order.order_id}
        return str((await self._row("order", sql, **names))["case_key"])

    async def declined(self, request_id: str) -> None:
        """Wait until a payment is declined: the next one would replace it untried."""
        key = self.order.step_key("pay", request_id)
        await self._row(
            "payment",
            # The last one may be cancelled already, with all that its order had.
            "SELECT 1 FROM payment WHERE key = :key AND try_answer ->> 'kind' = 'payment_declined'",
            key=key,
        )

    async def _row(self, service: ServiceName, sql: str, **names: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (rows := await self.world.reader.rows(service, sql, **names)):
                await asyncio.sleep(LOOK_SECONDS)
        return rows[0]

    async def repair(self, **word: Any) -> None:
        """Give an operator's word on the parked step."""
        request = RepairOrder(case_key=await self.parked_case(), by="ada", **word)
        await self.world.later(5 * MINUTE)
        await self.world.checkouts.repair(self.order.tenant, self.order.order_id, request)


async def _typed_again(command: Callable[[], Awaitable[T]]) -> T:
    """Do what people do whose command was not answered: the same once more."""
    for _ in range(TYPED_AGAIN):
        with contextlib.suppress(RPCError):
            return await command()
    return await command()


Play = Callable[[Scene], Awaitable[object]]


@dataclass(frozen=True)
class Story:
    """One way: its name, how it ends, what happens, and in what the order differs from usual."""

    name: str
    status: OrderStatus
    play: Play
    changes: Mapping[str, Any] = field(default_factory=dict)
    units: int = 1
    amount_minor: int = 2933
    expires: bool = False
    refunds: bool = False  # Money was taken, and all of it went back.

    def is_end(self, result: OrderResult) -> bool:
        """Tell whether the order ended as the story has it."""
        refunded = result.refunded_minor == result.captured_minor > 0
        return (result.status, refunded) == (self.status, self.refunds)

    def order(self, world: World, tenant: str, order_id: str, **more: Any) -> PlaceOrder:
        """Return the order that this happens to; `more` are fields of it."""
        usual: dict[str, Any] = {
            "tenant": tenant,
            "order_id": order_id,
            "customer": RICH,
            "currency": CURRENCY,
            "lines": (OrderLine(sku=SKU, units=self.units, amount_minor=self.amount_minor),),
            "payment": card(),
            "payment_window_seconds": world.short_window_seconds if self.expires else 86_400,
        }
        return PlaceOrder(**{**usual, **more, **self.changes})


def card(token: str = GOOD_CARD, request_id: str = "first") -> CardPayment:
    """Return a payment by card."""
    return CardPayment(card_token=token, request_id=request_id)


async def tell(story: Story, scene: Scene) -> None:
    """Play the story and wait for its end; raises AssertionError if it ends otherwise."""
    await story.play(scene)
    order = scene.order
    result = await scene.world.checkouts.wait(order.tenant, order.order_id)
    assert story.is_end(result), f"{scene.xid} ({story.name}) ended as {result}"


async def fill_shop(world: World, tenant: str, *, units: int = 1_000) -> None:
    """Bring in what the stories need."""
    await world.receive_stock(tenant, SKU, units, request="first")
    await world.deposit(tenant, RICH, 10_000_000, CURRENCY, request="first")
    await world.grant_points(tenant, RICH, 1_000_000, request="first")


# -- what happens


async def _just_place(scene: Scene) -> None:
    await scene.place()


async def _pay_on_page(scene: Scene) -> None:
    await scene.place()
    await scene.world.later(4 * MINUTE)
    await scene.pay_on_page()


async def _take_another_card(scene: Scene) -> None:
    await scene.place()
    await scene.world.later(3 * MINUTE)
    await scene.pay(card(request_id="second"))


async def _be_declined_again(scene: Scene) -> None:
    await scene.place()
    for request_id in ("second", "third"):
        await scene.world.later(2 * MINUTE)
        await scene.pay(card("tok_declined", request_id))
        await scene.declined(request_id)


async def _lose_provider_answers(scene: Scene) -> None:
    await scene.provider_fault("server_error", "confirm")
    await scene.provider_fault("server_error", "capture")
    await scene.place()


async def _lose_replies(scene: Scene) -> None:
    for name in (
        "order.open_order", "inventory.reserve_stock", "payment.authorise", "order.decide",
        "payment.capture", "inventory.commit_stock", "ledger.post_transfer", "order.close_order",
    ):  # fmt: skip
        scene.arm(name, "Transient", after=True)
    await scene.place()


async def _refuse_capture(scene: Scene) -> None:
    await scene.provider_fault("decline", "capture")
    await scene.place()


async def _fail_to_reserve(scene: Scene) -> None:
    scene.arm("inventory.reserve_stock", "Bug", after=True)
    await scene.place()


async def _cancel(scene: Scene) -> None:
    await scene.place()
    await scene.world.later(4 * MINUTE)
    await scene.cancel()


async def _cancel_during(scene: Scene) -> None:
    scene.arm("payment.authorise", hook=scene.cancel)
    await scene.place()


async def _cancel_in_temporal(scene: Scene) -> None:
    await scene.place()
    await scene.world.later(4 * MINUTE)
    await scene.world.client.get_workflow_handle(scene.order.workflow_id()).cancel()


async def _lose_stock(scene: Scene) -> None:
    async def release_by_mistake() -> None:
        at = scene.world.now()
        request = ReleaseStock(
            key=scene.order.step_key("reserve"), at=at, opened_on=at.date(), reason="by mistake"
        )
        async with scene.world.databases["inventory"].transaction() as tx:
            await inventory.release_stock(tx, [request])

    scene.arm("inventory.commit_stock", hook=release_by_mistake)
    await scene.place()


async def _pay_too_late(scene: Scene) -> None:
    scene.arm("payment.void", hook=scene.pay_on_page)
    await scene.place()


async def _repair(scene: Scene) -> None:
    scene.arm("ledger.post_transfer", "Bug")
    await scene.place()
    await scene.repair()


async def _park_for_hours(scene: Scene) -> None:
    """Let the pivot fail twice, an hour apart, while nobody does a thing."""
    for _ in range(2):
        scene.arm("payment.capture", "Bug")
    await scene.place()


async def _settle_by_hand(scene: Scene) -> None:
    await scene.provider_fault("decline", "refund")
    scene.arm("payment.void", hook=scene.pay_on_page)
    await scene.place()
    await scene.cancel()
    await scene.repair(action="resolve", reason="sent by bank")


async def _lose_to_rival(scene: Scene) -> None:
    """Another run drives the order to its end while this one holds the stock."""

    async def rival_sells() -> None:
        rival = await scene.world.client.start_workflow(
            Checkout.run,
            scene.order,
            id=f"{scene.order.workflow_id()}/rival",
            task_queue=WORKFLOWS,
        )
        await rival.result()

    scene.arm("inventory.reserve_stock", hook=rival_sells)
    await scene.place()


async def _take_up(scene: Scene) -> None:
    """Its run is terminated, and placing it again finds the page that was open."""
    await scene.place()
    await scene.world.client.get_workflow_handle(scene.order.workflow_id()).terminate("on purpose")
    await scene.world.later(MINUTE)
    await scene.place()
    await scene.pay_on_page()


_S = OrderStatus
_PAGE = {"payment": RedirectPayment()}
_BALANCE = {"payment": BalancePayment(account=RICH)}
_DECLINED = {"payment": card("tok_declined")}
STORIES: tuple[Story, ...] = (
    Story("confirmed-by-card", _S.CONFIRMED, _just_place),
    Story("confirmed-by-redirect", _S.CONFIRMED, _pay_on_page, _PAGE),
    Story("confirmed-by-balance", _S.CONFIRMED, _just_place, _BALANCE),
    Story("confirmed-with-points", _S.CONFIRMED, _just_place, {"points": 933}),
    Story("confirmed-by-points-alone", _S.CONFIRMED, _just_place, {"points": 2933}),
    Story("confirmed-for-free", _S.CONFIRMED, _just_place, {"payment": None}, amount_minor=0),
    Story("confirmed-by-second-card", _S.CONFIRMED, _take_another_card, _DECLINED),
    Story("confirmed-after-leaving-the-page", _S.CONFIRMED, _take_another_card, _PAGE),
    Story("confirmed-after-lost-provider-answers", _S.CONFIRMED, _lose_provider_answers),
    Story("confirmed-after-lost-replies", _S.CONFIRMED, _lose_replies),
    Story("confirmed-by-another-driver", _S.CONFIRMED, _lose_to_rival),
    Story("confirmed-after-termination", _S.CONFIRMED, _take_up, _PAGE),
    Story("confirmed-after-repair", _S.CONFIRMED, _repair),
    Story("rejected-out-of-stock", _S.REJECTED, _just_place, units=1_000_000),
    Story("rejected-too-few-points", _S.REJECTED, _just_place, {"points": 1, "customer": POOR}),
    Story("rejected-after-three-cards", _S.REJECTED, _be_declined_again, _DECLINED),
    Story("rejected-at-capture", _S.REJECTED, _refuse_capture),
    Story("rejected-by-a-failed-step", _S.REJECTED, _fail_to_reserve),
    Story("cancelled-before-payment", _S.CANCELLED, _cancel, {**_PAGE, "points": 33}),
    Story("cancelled-during-payment", _S.CANCELLED, _cancel_during),
    Story("cancelled-in-temporal", _S.CANCELLED, _cancel_in_temporal, _PAGE),
    Story("cancelled-and-settled-by-hand", _S.CANCELLED, _settle_by_hand, _PAGE, refunds=True),
    Story("expired-on-the-page", _S.EXPIRED, _just_place, _PAGE, expires=True),
    Story("expired-after-a-declined-card", _S.EXPIRED, _just_place, _DECLINED, expires=True),
    Story(
        "expired-and-late-money-refunded",
        _S.EXPIRED,
        _pay_too_late,
        _PAGE,
        expires=True,
        refunds=True,
    ),
    Story("refunded-without-stock", _S.REFUNDED, _lose_stock, {"points": 33}, refunds=True),
    Story("refunded-to-the-balance", _S.REFUNDED, _lose_stock, _BALANCE, refunds=True),
)
# Where an hour need not be waited for. The time-skipping server stands still for ever once a run
# was terminated under one of its activities.
SIMULATED: tuple[Story, ...] = (
    *(story for story in STORIES if story.play is not _take_up),
    Story("confirmed-after-parked-hours", _S.CONFIRMED, _park_for_hours),
)
