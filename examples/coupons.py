"""A participant in three functions: a coupon code with so many uses. It knows of no repeats."""

from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.kit import BranchRequest, Message, Participant, Refusal

TABLE = """
CREATE TABLE coupon (
    code text PRIMARY KEY,
    free integer NOT NULL CHECK (free >= 0),
    held integer NOT NULL DEFAULT 0 CHECK (held >= 0),
    used integer NOT NULL DEFAULT 0
)"""


class UseCoupon(BranchRequest):
    """Use a code once."""

    HASHED = ("code",)
    code: str


class CouponHeld(Message):
    """One use of the code is set aside."""

    kind: Literal["coupon_held"] = "coupon_held"
    code: str


class CouponSpent(Refusal):
    """No use of the code is left, or there is no such code."""

    kind: Literal["coupon_spent"] = "coupon_spent"
    code: str


class Coupons(Participant[UseCoupon, CouponHeld]):
    """Uses of coupon codes."""

    name = "coupon"

    async def try_(self, tx: AsyncConnection, request: UseCoupon) -> CouponHeld | CouponSpent:
        """Set one use aside, if there is one."""
        taken = await _move(tx, request.code, "free = free - 1, held = held + 1", "free > 0")
        return CouponHeld(code=request.code) if taken else CouponSpent(code=request.code)

    async def confirm(self, tx: AsyncConnection, held: CouponHeld) -> None:
        """Use what was set aside."""
        assert await _move(tx, held.code, "held = held - 1, used = used + 1", "held > 0")

    async def cancel(self, tx: AsyncConnection, held: CouponHeld) -> None:
        """Put it back."""
        assert await _move(tx, held.code, "held = held - 1, free = free + 1", "held > 0")

    def row(self, wanted: UseCoupon | CouponHeld) -> str:
        """Return the code: a batch takes the rows of codes in their order."""
        return wanted.code


async def _move(tx: AsyncConnection, code: str, change: str, guard: str) -> bool:
    statement = text(f"UPDATE coupon SET {change} WHERE code = :code AND {guard}")  # noqa: S608
    return (await tx.execute(statement, {"code": code})).rowcount == 1
