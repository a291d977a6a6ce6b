"""A flow with the coupons of `examples/coupons.py`, and its worker."""

from pydantic import BaseModel
from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.kit import Branches, NotDone, all_or_nothing, hold
    from examples.coupons import CouponHeld, Coupons

COUPON = hold(Coupons())


class Basket(BaseModel):
    """The codes that somebody wants to use, all or none."""

    codes: list[str]


@workflow.defn(name="redeem")
class Redeem:
    """Use every code of a basket, or none of them."""

    @workflow.run
    async def run(self, basket: Basket) -> list[str] | NotDone:
        """Hold each code; then all are used, or none is."""

        async def story(branches: Branches) -> list[str]:
            held: list[CouponHeld] = [
                await branches.take(COUPON, f"code-{n}", code=code)
                for n, code in enumerate(basket.codes)
            ]
            return [each.code for each in held]

        return await all_or_nothing(story)
