"""Single steps outside of an order: goods, money and points that come in; once per request id.

Each runs as a Temporal activity of its own in its service's worker: starters write to no database.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio.client import Client

from activities.account import AccountActivities
from activities.inventory import InventoryActivities
from activities.order import OrderActivities
from activities.points import PointsActivities
from everycent import clock
from everycent.domain.account import BalanceCredited, Deposit
from everycent.domain.inventory import ReceiveStock, SetStock, StockBooked
from everycent.domain.message import step_key
from everycent.domain.order import CaseSettled, SettleCase
from everycent.domain.points import GrantPoints, PointsGranted
from everycent.domain.reconciliation import NoteBreaks, Noted
from everycent.errors import EverycentError, InvalidRequest, KeyReused
from starters.alone import run_alone
from workers.queues import TOGETHER, finishes, tries

T = TypeVar("T")


class Bookings:
    """Bookings of a shop. The key's second part is `~` and what is booked: no order of a shop."""

    def __init__(self, client: Client, *, together: bool = False) -> None:
        self._client = client
        self._together = together

    async def set_stock(self, tenant: str, sku: str, units: int, *, request: str) -> StockBooked:
        """Bring the free units of a SKU to a level."""
        step = self._step(tenant, f"~stock/{sku}", "set", request)
        return await self._run(
            InventoryActivities.set_stock,
            SetStock(sku=sku, free_units=units, **step),
            tries("inventory"),
        )

    async def receive_stock(
        self, tenant: str, sku: str, units: int, *, request: str
    ) -> StockBooked:
        """Book units in that arrived."""
        step = self._step(tenant, f"~stock/{sku}", "receive", request)
        return await self._run(
            InventoryActivities.receive_stock,
            ReceiveStock(sku=sku, units=units, **step),
            tries("inventory"),
        )

    async def deposit(
        self, tenant: str, account: str, amount_minor: int, currency: str, *, request: str
    ) -> BalanceCredited:
        """Put money into an account; a new one is opened."""
        step = self._step(tenant, f"~account/{account}", "deposit", request)
        return await self._run(
            AccountActivities.deposit,
            Deposit(account=account, amount_minor=amount_minor, currency=currency, **step),
            tries("account"),
        )

    async def grant_points(
        self, tenant: str, customer: str, points: int, *, request: str
    ) -> PointsGranted:
        """Give a customer points."""
        step = self._step(tenant, f"~customer/{customer}", "grant", request)
        return await self._run(
            PointsActivities.grant_points,
            GrantPoints(customer=customer, points=points, **step),
            tries("points"),
        )

    async def settle_case(
        self,
        tenant: str,
        order_id: str,
        case_key: str,
        *,
        by: str,
        reason: str,
        by_hand: bool = True,
    ) -> CaseSettled:
        """Take a parked step as done by hand, when no run of its order lives that could be told."""
        request = SettleCase(
            tenant=tenant,
            order_id=order_id,
            at=clock.now(),
            case_key=case_key,
            by=by,
            reason=reason,
            by_hand=by_hand,
        )
        return await self._run(
            OrderActivities.settle_case,
            request,
            finishes("order"),
            activity_id=f"settle/{case_key}",
        )

    async def note_breaks(self, request: NoteBreaks) -> Noted:
        """Write one part of what a reconciliation found down."""
        return await self._run(OrderActivities.note_breaks, request, finishes("order"))

    def _step(self, tenant: str, thing: str, step: str, request: str) -> dict[str, Any]:
        now = clock.now()
        return {"key": step_key(tenant, thing, step, request), "at": now, "opened_on": now.date()}

    async def _run(
        self,
        method: Callable[[Any, Any], Awaitable[T]],
        request: Any,
        queue: str,
        *,
        activity_id: str | None = None,
    ) -> T:
        """Run one activity by itself; whoever books the same at the same time gets its answer."""
        try:
            return await run_alone(
                self._client,
                method,
                request,
                queue=TOGETHER if self._together else queue,
                activity_id=activity_id or request.key,
            )
        except EverycentError as error:
            ours = InvalidRequest if isinstance(error, KeyReused) else type(error)  # Typed by hand.
            raise ours(f"{queue} did not book it: {error}") from error
