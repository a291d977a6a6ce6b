"""The points service's activities; what they guarantee is said in `everycent.database.points`."""

from temporalio import activity

from activities.boundary import errors_for_temporal
from activities.coalescer import Coalescer
from everycent.database import points
from everycent.database.engine import Database
from everycent.domain.points import (
    FreezePoints,
    FreezePointsAnswer,
    GrantPoints,
    PointsGranted,
    PointsRedeemed,
    PointsRestored,
    PointsRevoked,
    PointsUnfrozen,
    RedeemPoints,
    RestorePoints,
    RevokePoints,
    UnfreezePoints,
)


class PointsActivities:
    """Points: Try, Confirm and Cancel of a redemption, and points given and taken back."""

    def __init__(self, database: Database) -> None:
        self._freeze: Coalescer[FreezePoints, FreezePointsAnswer] = Coalescer(
            database, points.freeze_points
        )
        self._redeem = Coalescer(database, points.redeem_points)
        self._unfreeze = Coalescer(database, points.unfreeze_points)
        self._grant = Coalescer(database, points.grant_points)
        self._restore = Coalescer(database, points.restore_points)
        self._revoke = Coalescer(database, points.revoke_points)

    @activity.defn(name="points.freeze_points")
    async def freeze_points(self, request: FreezePoints) -> FreezePointsAnswer:
        """Try: freeze points that are to pay a part of an order."""
        with errors_for_temporal():
            return await self._freeze.join(request)

    @activity.defn(name="points.redeem_points")
    async def redeem_points(self, request: RedeemPoints) -> PointsRedeemed:
        """Confirm: what is frozen is spent."""
        with errors_for_temporal():
            return await self._redeem.join(request)

    @activity.defn(name="points.unfreeze_points")
    async def unfreeze_points(self, request: UnfreezePoints) -> PointsUnfrozen:
        """Cancel: what is frozen is the customer's again."""
        with errors_for_temporal():
            return await self._unfreeze.join(request)

    @activity.defn(name="points.grant_points")
    async def grant_points(self, request: GrantPoints) -> PointsGranted:
        """Give the points that an order earned."""
        with errors_for_temporal():
            return await self._grant.join(request)

    @activity.defn(name="points.restore_points")
    async def restore_points(self, request: RestorePoints) -> PointsRestored:
        """Give redeemed points back."""
        with errors_for_temporal():
            return await self._restore.join(request)

    @activity.defn(name="points.revoke_points")
    async def revoke_points(self, request: RevokePoints) -> PointsRevoked:
        """Take earned points back; what is spent becomes debt."""
        with errors_for_temporal():
            return await self._revoke.join(request)
