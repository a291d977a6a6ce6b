"""The choreographed checkout for the sweep: its outcomes, brought about without a workflow."""

import asyncio
import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from everycent.database.message_reads import messages
from everycent.domain.mode import Mode
from everycent.domain.order import (
    BalancePayment,
    CardPayment,
    OrderStatus,
    PlaceOrder,
    WaitsFor,
)
from everycent.errors import EverycentError
from everycent.proof.sweep.checkout import (
    BAD,
    CUSTOMER,
    GOOD,
    ORDER_ID,
    POINTS,
    SHORT_WINDOW,
    CheckoutFlow,
    CheckoutScenario,
    release_by_mistake,
)
from everycent.proof.sweep.scenario import Scenario, Shop, State
from starters.choreographed import ChoreographedOrders

LOOK_SECONDS, SELDOM_SECONDS = 0.2, 5.0
DEAD_SECONDS = 2.0  # So often it is looked whether a message is dead: twelve boxes are asked.
_S = OrderStatus


def _orders(shop: Shop) -> ChoreographedOrders:
    return ChoreographedOrders(shop.client, shop.reader, together=shop.together)


# -- what customers do


async def _buy(shop: Shop, order: PlaceOrder) -> None:
    await _orders(shop).start(order)


async def _pay_with_others(shop: Shop, order: PlaceOrder, *tokens: str) -> None:
    await _buy(shop, order)
    for number, token in enumerate(tokens, start=2):
        if not await _wants_payment(shop, order):
            return
        payment = CardPayment(request_id=f"card-{number}", card_token=token)
        await _orders(shop).pay(order.tenant, order.order_id, payment)


async def _second_card(shop: Shop, order: PlaceOrder) -> None:
    await _pay_with_others(shop, order, GOOD)


async def _three_bad_cards(shop: Shop, order: PlaceOrder) -> None:
    await _pay_with_others(shop, order, BAD, BAD)


async def _change_the_mind(shop: Shop, order: PlaceOrder) -> None:
    await _buy(shop, order)
    await _orders(shop).cancel(order.tenant, order.order_id, "changed my mind")


async def _lose_the_stock(shop: Shop, order: PlaceOrder) -> None:
    """Have the stock released by mistake while another payment is waited for; then pay."""
    await _buy(shop, order)
    if await _wants_payment(shop, order):
        await release_by_mistake(shop, order)
        await _pay_with_others(shop, order, GOOD)


async def _wants_payment(shop: Shop, order: PlaceOrder) -> bool:
    """Wait until the order wants another payment, or is decided and wants none."""
    seconds = LOOK_SECONDS
    while True:
        view = await shop.reader.order(order.tenant, order.order_id)
        if view is not None and (view.decision != "OPEN" or view.waits_for is WaitsFor.PAYMENT):
            return view.decision == "OPEN"
        await asyncio.sleep(seconds)
        seconds = min(1.5 * seconds, SELDOM_SECONDS)


_CARD, _BAD_CARD = CardPayment(card_token=GOOD), CardPayment(card_token=BAD)
SCENARIOS: tuple[CheckoutScenario, ...] = tuple(
    replace(each, mode=Mode.CHOREOGRAPHED)
    for each in (
        CheckoutScenario("card", _S.CONFIRMED, _buy, _CARD),
        CheckoutScenario("balance", _S.CONFIRMED, _buy, BalancePayment(account=CUSTOMER)),
        CheckoutScenario("points", _S.CONFIRMED, _buy, _CARD, points=POINTS),
        CheckoutScenario("free", _S.CONFIRMED, _buy, None, amount_minor=0),
        CheckoutScenario("second card", _S.CONFIRMED, _second_card, _BAD_CARD),
        CheckoutScenario("out of stock", _S.REJECTED, _buy, _CARD, units=5),
        CheckoutScenario("declined", _S.REJECTED, _three_bad_cards, _BAD_CARD),
        CheckoutScenario(
            "capture refused", _S.REJECTED, _buy, CardPayment(card_token="tok_decline_capture")
        ),
        CheckoutScenario("cancelled", _S.CANCELLED, _change_the_mind, _BAD_CARD),
        CheckoutScenario("expired", _S.EXPIRED, _buy, _BAD_CARD, window_seconds=SHORT_WINDOW),
        CheckoutScenario("stock gone", _S.REFUNDED, _lose_the_stock, _BAD_CARD),
    )
)


@dataclass(frozen=True)
class ChoreographedFlow(CheckoutFlow):
    """The checkout that messages drive: no run to cancel, to repair or to take up."""

    name: str = "choreographed"
    scenarios: Sequence[Scenario] = field(default=SCENARIOS)
    _dead: "Dead" = field(default_factory=lambda: Dead(), compare=False)

    async def states(self, shop: Shop, tenants: Collection[str]) -> dict[str, State]:
        """Read the orders' rows; one with a dead message waits for an operator."""
        rows = await super().states(shop, tenants)
        dead = await self._dead.of(shop) if rows else set()
        return {
            tenant: State(state.status, parked=state.status is None and tenant in dead)
            for tenant, state in rows.items()
        }

    async def cancel(self, shop: Shop, tenant: str) -> None:
        """Cancel the order; one that has not come yet, or is over, stays as it is."""
        with contextlib.suppress(EverycentError):
            await _orders(shop).cancel(tenant, ORDER_ID, "cancelled here")

    async def repair(self, shop: Shop, tenant: str) -> None:
        """Have each dead message tried again."""
        for message in await messages(shop.reader, ["DEAD"], xid=self.order(tenant)):
            await _orders(shop).replay(message.service, (message.key,))

    async def take_up(self, shop: Shop, tenant: str) -> None:
        """Do nothing: no run can get stuck, as there is none."""


class Dead:
    """The tenants with a dead message, looked for once in a while."""

    def __init__(self) -> None:
        self._looked_at = 0.0
        self._tenants: set[str] = set()

    async def of(self, shop: Shop) -> set[str]:
        """Return them, as of a moment ago."""
        if time.monotonic() - self._looked_at > DEAD_SECONDS:
            found = await messages(shop.reader, ["DEAD"], limit=1000)
            self._tenants = {message.key.partition("/")[0] for message in found}
            self._looked_at = time.monotonic()
        return self._tenants


CHOREOGRAPHED = ChoreographedFlow()
