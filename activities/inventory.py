"""The inventory service's activities; their guarantees: see `everycent.database.inventory`."""

from temporalio import activity

from activities.boundary import errors_for_temporal
from activities.coalescer import Coalescer
from everycent.database import inventory
from everycent.database.engine import Database
from everycent.domain.inventory import (
    CommitStock,
    ReceiveStock,
    ReleaseStock,
    ReserveAnswer,
    ReserveStock,
    SetStock,
    StockBooked,
    StockCommitted,
    StockReleased,
)


class InventoryActivities:
    """Stock: Try, Confirm and Cancel of a reservation, and bookings in and out."""

    def __init__(self, database: Database) -> None:
        self._reserve: Coalescer[ReserveStock, ReserveAnswer] = Coalescer(
            database, inventory.reserve_stock
        )
        self._commit = Coalescer(database, inventory.commit_stock)
        self._release = Coalescer(database, inventory.release_stock)
        self._receive = Coalescer(database, inventory.receive_stock)
        self._set = Coalescer(database, inventory.set_stock)

    @activity.defn(name="inventory.reserve_stock")
    async def reserve_stock(self, request: ReserveStock) -> ReserveAnswer:
        """Try: hold the units of every line, all or none."""
        with errors_for_temporal():
            return await self._reserve.join(request)

    @activity.defn(name="inventory.commit_stock")
    async def commit_stock(self, request: CommitStock) -> StockCommitted:
        """Confirm: what is held is sold."""
        with errors_for_temporal():
            return await self._commit.join(request)

    @activity.defn(name="inventory.release_stock")
    async def release_stock(self, request: ReleaseStock) -> StockReleased:
        """Cancel: what is held is free again."""
        with errors_for_temporal():
            return await self._release.join(request)

    @activity.defn(name="inventory.receive_stock")
    async def receive_stock(self, request: ReceiveStock) -> StockBooked:
        """Book arrived units in."""
        with errors_for_temporal():
            return await self._receive.join(request)

    @activity.defn(name="inventory.set_stock")
    async def set_stock(self, request: SetStock) -> StockBooked:
        """Bring the free units of a SKU to a level."""
        with errors_for_temporal():
            return await self._set.join(request)
