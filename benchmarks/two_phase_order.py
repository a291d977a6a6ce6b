"""The order by two-phase commit over the services' databases, out of their own steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from benchmarks.protocol_order import TENANT, wanted
from everycent import clock
from everycent.database import account, inventory, ledger, order, points
from everycent.domain import order_steps as ask
from everycent.domain.events import OrderTold
from everycent.domain.order import (
    BalancePayment,
    CloseOrder,
    Decide,
    Decision,
    OpenOrder,
    OrderResult,
    OrderStatus,
    PlaceOrder,
)
from everycent.domain.outcome import Refusal
from everycent.errors import EverycentError
from everycent.settings import ServiceName
from examples.two_phase_commit import TwoPhase

BRANCHES: tuple[ServiceName, ...] = ("order", "inventory", "account", "ledger", "points")


@dataclass
class TwoPhases:
    """The services' own databases and steps, held together by PREPARE TRANSACTION."""

    coordinator: TwoPhase
    name: ClassVar = "two-phase commit"
    platform: ClassVar = False
    files: ClassVar = ("examples/two_phase_commit.py", "benchmarks/two_phase_order.py")

    @classmethod
    def over(cls, engines: Mapping[str, AsyncEngine]) -> "TwoPhases":
        """Coordinate over these databases; the decisions lie beside the orders."""
        return cls(TwoPhase(engines["order"], engines))

    async def begin(self, order_id: str) -> None:
        """Sell it."""
        works = Works(wanted(order_id), clock.now())
        decision = await self.coordinator.run(
            f"{TENANT}/{order_id}", {name: getattr(works, name) for name in BRANCHES}
        )
        assert decision == "COMMIT", order_id


@dataclass
class Works:
    """What each database does in its branch, by the very functions that the steps call."""

    wanted: PlaceOrder
    at: datetime

    @property
    def told(self) -> OrderTold:
        """The order as every service is told of it."""
        payment = self.wanted.payment
        assert isinstance(payment, BalancePayment)
        return OrderTold(
            order=self.wanted,
            opened_on=self.at.date(),
            window_ends_at=self.at,
            attempts=(payment,),
            attempt=payment.request_id,
        )

    async def order(self, tx: AsyncConnection) -> None:
        """Open the order, decide it and close it."""
        ids = {"tenant": TENANT, "order_id": self.wanted.order_id, "at": self.at}
        run = "two-phase commit"
        opening = OpenOrder(order=self.wanted, at=self.at, driver=run, run=run)
        _accepted(await order.open_order(tx, [opening]))
        decide = Decide(to=Decision.COMMITTING, run=run, attempt="first", **ids)
        _accepted(await order.decide(tx, [decide]))
        _accepted(await order.close_order(tx, [CloseOrder(result=self._result(), **ids)]))

    async def inventory(self, tx: AsyncConnection) -> None:
        """Hold the units and sell them."""
        _accepted(await inventory.reserve_stock(tx, [ask.hold_stock(self.told, self.at)]))
        _accepted(await inventory.commit_stock(tx, [ask.sell_stock(self.told, self.at)]))

    async def account(self, tx: AsyncConnection) -> None:
        """Freeze the amount and take it."""
        payment: Any = self.wanted.payment
        hold = ask.hold_balance(self.told, payment, self.at)
        _accepted(await account.freeze_balance(tx, [hold]))
        debit = ask.debit_balance(self.told, payment, self.at)
        _accepted(await account.debit_balance(tx, [debit]))

    async def ledger(self, tx: AsyncConnection) -> None:
        """Book the sale."""
        _accepted(await ledger.post_transfer(tx, [ask.book_sale(self.told, self.at)]))

    async def points(self, tx: AsyncConnection) -> None:
        """Grant what the order earns."""
        _accepted(await points.grant_points(tx, [ask.earn_points(self.told, self.at)]))

    def _result(self) -> OrderResult:
        return OrderResult(
            tenant=TENANT,
            order_id=self.wanted.order_id,
            status=OrderStatus.CONFIRMED,
            decision=Decision.COMMITTED,
            total_minor=self.wanted.total_minor,
            captured_minor=self.wanted.due_minor,
            points_earned=self.wanted.points_earned,
        )


def _accepted(answers: Any) -> None:
    for answer in answers:
        assert not isinstance(answer, EverycentError | Refusal), answer
