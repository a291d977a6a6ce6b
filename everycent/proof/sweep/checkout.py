"""The checkout's outcomes for the sweep."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

from temporalio.client import WorkflowUpdateStage
from temporalio.common import ActivityIDConflictPolicy, SearchAttributeKey
from temporalio.service import RPCError

from activities.inventory import InventoryActivities
from everycent import clock
from everycent.domain.inventory import ReleaseStock
from everycent.domain.mode import Mode
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    OrderLine,
    OrderStatus,
    Payment,
    PayOrder,
    Placement,
    PlaceOrder,
    RedirectPayment,
    RepairOrder,
    WaitsFor,
)
from everycent.domain.sweep import Sweep
from everycent.errors import InvalidRequest
from everycent.proof.audit import audit
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.explain import explain
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.report import RuleState
from everycent.proof.sweep.scenario import Audited, Scenario, Shop, State, SweptFlow
from everycent.proof.timeline_text import as_text
from starters.sweeping import sweep_now
from workers.queues import TOGETHER, finishes
from workflows.catalog import MODES
from workflows.checkout import Checkout
from workflows.options import DATABASE_STEP

ORDER_ID, CUSTOMER, CURRENCY, SKU = "o", "ada", "EUR", "LAMP"
PRICE_MINOR, POINTS = 2933, 300
GOOD, BAD = "tok_ok", "tok_declined"
SHORT_WINDOW = 6  # Seconds in which a run gets to its page, as a rule.
LONG_WINDOW = 30  # The same for one that did not: then the machine is busy, or a fault is awaited.
LOOK_SECONDS, SELDOM_SECONDS = 0.2, 5.0
MARK_SECONDS = 20.0  # So long after an order waits for a payment its row may take to say so.
PROBLEMS = SearchAttributeKey.for_keyword_list("TemporalReportedProblems")  # The server's own.
_S = OrderStatus
Play = Callable[[Shop, PlaceOrder], Awaitable[None]]


@dataclass(frozen=True)
class CheckoutScenario:
    """One way in which a checkout ends: the order, and what its customer does."""

    name: str
    usual: str
    play_order: Play
    payment: Payment | None
    given_up: frozenset[str] = frozenset({_S.REJECTED})
    forgotten: frozenset[str] = frozenset()
    amount_minor: int = PRICE_MINOR
    points: int = 0
    units: int = 1
    window_seconds: int = 900
    mode: Mode = Mode.SAGA

    def order(self, tenant: str) -> PlaceOrder:
        """Return what is ordered."""
        line = OrderLine(sku=SKU, units=self.units, amount_minor=self.amount_minor)
        return PlaceOrder(
            tenant=tenant,
            order_id=ORDER_ID,
            customer=CUSTOMER,
            currency=CURRENCY,
            lines=(line,),
            payment=self.payment,
            points=self.points,
            payment_window_seconds=self.window_seconds,
            mode=self.mode,
        )

    def patient(self) -> "CheckoutScenario":
        """Return the outcome with a window in which a run gets to its page on any machine."""
        return replace(self, window_seconds=max(self.window_seconds, LONG_WINDOW))

    async def prepare(self, shop: Shop, tenant: str) -> None:
        """Put stock on the shelf, and money and points where the order takes them from."""
        await shop.bookings.receive_stock(tenant, SKU, 3, request="sweep")
        if isinstance(self.payment, BalancePayment):
            await shop.bookings.deposit(tenant, CUSTOMER, 10_000, CURRENCY, request="sweep")
        if self.points:
            await shop.bookings.grant_points(tenant, CUSTOMER, self.points, request="sweep")

    async def play(self, shop: Shop, tenant: str) -> None:
        """Do what the customer does."""
        await self.play_order(shop, self.order(tenant))


# -- what customers do


async def _buy(shop: Shop, order: PlaceOrder) -> None:
    await shop.checkouts.place(order)


async def _pay_on_page(shop: Shop, order: PlaceOrder) -> None:
    placement = await shop.checkouts.place(order)
    await _press_the_button(shop, placement)


async def _pay_with_others(shop: Shop, order: PlaceOrder, *tokens: str) -> None:
    await shop.checkouts.place(order)
    for number, token in enumerate(tokens, start=2):
        await _until_payment_is_wanted(shop, order)
        payment = CardPayment(request_id=f"card-{number}", card_token=token)
        with contextlib.suppress(InvalidRequest):  # It was decided meanwhile.
            await shop.checkouts.pay(order.tenant, order.order_id, PayOrder(payment=payment))


async def _second_card(shop: Shop, order: PlaceOrder) -> None:
    await _pay_with_others(shop, order, GOOD)


async def _three_bad_cards(shop: Shop, order: PlaceOrder) -> None:
    await _pay_with_others(shop, order, BAD, BAD)


async def _change_the_mind(shop: Shop, order: PlaceOrder) -> None:
    await shop.checkouts.place(order)
    with contextlib.suppress(InvalidRequest):
        await shop.checkouts.cancel(order.tenant, order.order_id, CancelOrder())


async def _pay_too_late(shop: Shop, order: PlaceOrder) -> None:
    """Pay on the page after the window, just before the provider has heard of the void."""
    rule = {"kind": "hold", "operation": "cancel", "times": 1, "seconds": 5}
    reference = {"reference": f"{order.tenant}/*"}
    (await shop.provider.post("/admin/faults", json=rule | reference)).raise_for_status()
    placement = await shop.checkouts.place(order)
    await _until(lambda: _is_decided(shop, order))
    await _press_the_button(shop, placement)


async def _lose_the_stock(shop: Shop, order: PlaceOrder) -> None:
    """Have the stock released by mistake while the customer is on the page; then pay."""
    placement = await shop.checkouts.place(order)
    await release_by_mistake(shop, order)
    await _press_the_button(shop, placement)


async def release_by_mistake(shop: Shop, order: PlaceOrder) -> None:
    """Release the order's stock behind its back; doing it again changes nothing."""
    now, key = clock.now(), order.step_key("reserve")
    await shop.client.execute_activity_method(
        InventoryActivities.release_stock,
        ReleaseStock(key=key, at=now, opened_on=now.date(), reason="by mistake"),
        id=f"mistake/{key}",
        task_queue=TOGETHER if shop.together else finishes("inventory"),
        id_conflict_policy=ActivityIDConflictPolicy.USE_EXISTING,
        **DATABASE_STEP,
    )


async def _press_the_button(shop: Shop, placement: Placement) -> None:
    if placement.redirect_url:
        (await shop.provider.post(placement.redirect_url)).raise_for_status()


async def _until_payment_is_wanted(shop: Shop, order: PlaceOrder) -> None:
    """Read the row until it says so; that it does may be what the fault has prevented."""

    async def is_wanted() -> bool:
        view = await shop.reader.order(order.tenant, order.order_id)
        decided = view is not None and view.decision != "OPEN"
        return decided or (view is not None and view.waits_for is WaitsFor.PAYMENT)

    try:
        async with asyncio.timeout(MARK_SECONDS):
            await _until(is_wanted)
    except TimeoutError:
        await shop.checkouts.place(order)  # The run itself answers when it is.


async def _is_decided(shop: Shop, order: PlaceOrder) -> bool:
    view = await shop.reader.order(order.tenant, order.order_id)
    return view is not None and view.decision != "OPEN"


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, ever less often: a run that waits for a time-out is asked for long."""
    seconds = LOOK_SECONDS
    while not await condition():
        await asyncio.sleep(seconds)
        seconds = min(1.5 * seconds, SELDOM_SECONDS)


_CARD, _PAGE = CardPayment(card_token=GOOD), RedirectPayment()
SCENARIOS: tuple[CheckoutScenario, ...] = (
    CheckoutScenario("card", _S.CONFIRMED, _buy, _CARD),
    CheckoutScenario("redirect", _S.CONFIRMED, _pay_on_page, _PAGE),
    CheckoutScenario("balance", _S.CONFIRMED, _buy, BalancePayment(account=CUSTOMER)),
    CheckoutScenario("points", _S.CONFIRMED, _buy, _CARD, points=POINTS),
    CheckoutScenario("free", _S.CONFIRMED, _buy, None, amount_minor=0),
    CheckoutScenario(
        "second card", _S.CONFIRMED, _second_card, CardPayment(card_token=BAD)
    ),
    CheckoutScenario("out of stock", _S.REJECTED, _buy, _CARD, units=5),
    CheckoutScenario(
        "declined", _S.REJECTED, _three_bad_cards, CardPayment(card_token=BAD)
    ),
    CheckoutScenario(
        "capture refused", _S.REJECTED, _buy, CardPayment(card_token="tok_decline_capture")
    ),
    CheckoutScenario("cancelled", _S.CANCELLED, _change_the_mind, _PAGE),
    CheckoutScenario("expired", _S.EXPIRED, _buy, _PAGE, window_seconds=SHORT_WINDOW),
    CheckoutScenario("late payment", _S.EXPIRED, _pay_too_late, _PAGE, window_seconds=SHORT_WINDOW),
    # A run that has forgotten its hold finds at once that it was released, and nobody has paid yet.
    CheckoutScenario(
        "stock gone", _S.REFUNDED, _lose_the_stock, _PAGE, forgotten=frozenset({_S.REJECTED})
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CheckoutFlow:
    """The checkout, as the sweep sees it."""

    name: str = "checkout"
    scenarios: Sequence[Scenario] = field(default=SCENARIOS)

    def order(self, tenant: str) -> str:
        """Return the order of a run."""
        return f"{tenant}/{ORDER_ID}"

    async def states(self, shop: Shop, tenants: Collection[str]) -> dict[str, State]:
        """Read the orders' rows."""
        rows = await shop.reader.rows(
            "order",
            "SELECT tenant, status, waits_for, result IS NOT NULL AS final FROM shop_order"
            " WHERE tenant = ANY(:tenants)",
            tenants=list(tenants),
        )
        return {
            row["tenant"]: State(
                status=row["status"] if row["final"] else None,
                parked=row["waits_for"] == WaitsFor.REPAIR and not row["final"],
            )
            for row in rows
        }

    async def cancel(self, shop: Shop, tenant: str) -> None:
        """Send the cancellation; the run answers it once the order is decided."""
        handle = shop.client.get_workflow_handle(f"{self.name}/{self.order(tenant)}")
        with contextlib.suppress(RPCError):
            await handle.start_update(
                Checkout.cancel, CancelOrder(), wait_for_stage=WorkflowUpdateStage.ACCEPTED
            )

    async def repair(self, shop: Shop, tenant: str) -> None:
        """Have each parked step tried again."""
        for case in await shop.reader.cases(tenant):
            request = RepairOrder(case_key=case.case_key, by="sweep", reason="the fault is over")
            with contextlib.suppress(InvalidRequest):
                await shop.checkouts.repair(tenant, ORDER_ID, request)

    async def take_up(self, shop: Shop, tenant: str) -> None:
        """Have the sweeper look after the order if Temporal reports that its run's tasks fail."""
        handle = shop.client.get_workflow_handle(f"{self.name}/{self.order(tenant)}")
        told = (await handle.describe()).typed_search_attributes
        if told.get(PROBLEMS):
            wanted = Sweep(tenant=tenant, **_at_once(shop))
            await sweep_now(shop.client, wanted, workflow_id=f"sweeper/{tenant}")

    async def after_restore(self, shop: Shop) -> None:
        """Let the sweeper find what runs did in the time that Temporal has lost."""
        # Nothing moves any more.
        await sweep_now(shop.client, Sweep(hold_grace_seconds=0, **_at_once(shop)))

    async def audit(self, shop: Shop, tenants: Collection[str]) -> Audited:
        """Audit everything at once, and shop by shop to find who broke what."""
        drivers, books = TemporalDrivers(shop.client), SimulatorBooks(shop.provider)
        whole = await audit(shop.settings, drivers=drivers, provider=books)
        rows = sum(rule.rows_looked_at for rule in whole.rules)
        broken: dict[str, list[str]] = {}
        if not whole.ok or whole.orders_moving:
            for tenant in sorted(tenants):
                report = await audit(shop.settings, tenant=tenant, drivers=drivers, provider=books)
                broken[tenant] = [
                    f"{rule.name}: {rule.first_offender} {rule.detail}"
                    for rule in report.rules
                    if rule.state is RuleState.BROKEN
                ]
        return Audited({tenant: found for tenant, found in broken.items() if found}, rows)

    async def tell(self, shop: Shop, tenant: str) -> str:
        """Tell the order's whole story; the one place where a red cell is explained."""
        story = await explain(
            shop.settings, tenant, ORDER_ID, client=shop.client, provider=shop.provider
        )
        return "\n".join(as_text(story))


def _at_once(shop: Shop) -> "_AtOnce":
    """Return what lets a pass of the sweeper repair whatever it finds, without delay."""
    return _AtOnce(
        together=shop.together,
        grace_seconds=0,
        limit=1000,
        money_limit_minor=10**9,
        unknown_limit=1000,
    )


class _AtOnce(TypedDict):
    together: bool
    grace_seconds: int
    limit: int
    money_limit_minor: int
    unknown_limit: int


def in_mode(mode: Mode) -> CheckoutFlow:
    """Return the checkout with every order in a mode."""
    return CheckoutFlow(scenarios=tuple(replace(each, mode=mode) for each in SCENARIOS))


# By the name that is given to the sweep.
FLOWS: Mapping[str, SweptFlow] = {
    "checkout" if mode is Mode.SAGA else f"checkout-{mode}": in_mode(mode)
    for mode in MODES[Checkout]
}
