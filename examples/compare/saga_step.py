"""The coupon as a step of a saga: an action and its compensation, nothing held in between."""

from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.kit import BranchRequest, Message, Participant, Refusal

TABLE = "CREATE TABLE coupon (code text PRIMARY KEY, free integer NOT NULL CHECK (free >= 0))"


class UseCoupon(BranchRequest):
    """Use a code once."""

    HASHED = ("code",)
    code: str


class CouponUsed(Message):
    """One use of the code is gone."""

    kind: Literal["coupon_used"] = "coupon_used"
    code: str


class CouponSpent(Refusal):
    """No use of the code is left, or there is no such code."""

    kind: Literal["coupon_spent"] = "coupon_spent"
    code: str


class CouponSteps(Participant[UseCoupon, CouponUsed]):
    """Uses of coupon codes."""

    name = "coupon"

    async def try_(self, tx: AsyncConnection, request: UseCoupon) -> CouponUsed | CouponSpent:
        """Use one, if there is one."""
        used = await _move(tx, request.code, "free = free - 1", "free > 0")
        return CouponUsed(code=request.code) if used else CouponSpent(code=request.code)

    async def cancel(self, tx: AsyncConnection, held: CouponUsed) -> None:
        """Put it back."""
        assert await _move(tx, held.code, "free = free + 1", "true")


async def _move(tx: AsyncConnection, code: str, change: str, guard: str) -> bool:
    statement = text(f"UPDATE coupon SET {change} WHERE code = :code AND {guard}")  # noqa: S608
    return (await tx.execute(statement, {"code": code})).rowcount == 1
