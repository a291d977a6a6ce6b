"""The checkout as somebody may edit it without a thought for the orders in flight."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.domain.order import OrderResult, PlaceOrder, WaitsFor
    from workflows.checkout import Checkout


@workflow.defn(name="checkout")
class OneStepMore(Checkout):
    """It tells what the order waits for before the stock is held."""

    @workflow.run
    async def run(self, order: PlaceOrder) -> OrderResult:
        return await super().run(order)

    async def _reserve_stock(self) -> None:
        await self._steps.mark(WaitsFor.STOCK)
        await super()._reserve_stock()


@workflow.defn(name="checkout")
class PointsFirst(Checkout):
    """Two steps have changed places."""

    @workflow.run
    async def run(self, order: PlaceOrder) -> OrderResult:
        return await super().run(order)

    async def _reserve_stock(self) -> None:
        await super()._freeze_points()

    async def _freeze_points(self) -> None:
        await super()._reserve_stock()


@workflow.defn(name="checkout")
class NoWindow(Checkout):
    """The wait for the customer has lost its timer."""

    @workflow.run
    async def run(self, order: PlaceOrder) -> OrderResult:
        return await super().run(order)

    async def _payment(self, number: int) -> object:  # type: ignore[override]
        if number not in self._payments:
            await self._mark(WaitsFor.PAYMENT)
            await workflow.wait_condition(lambda: number in self._payments)
            await self._mark(WaitsFor.NOTHING)
        return self._payments[number]
