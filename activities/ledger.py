"""The ledger service's activities; what they guarantee is said in `everycent.database.ledger`."""

from temporalio import activity

from activities.boundary import errors_for_temporal
from activities.coalescer import Coalescer
from everycent.database import ledger
from everycent.database.engine import Database
from everycent.domain.ledger import (
    HoldAnswer,
    HoldTransfer,
    OpenAccount,
    OpenAnswer,
    PostAnswer,
    PostTransfer,
    ReverseAnswer,
    ReverseTransfer,
    SettleTransfer,
    TransferPosted,
    TransferVoided,
    VoidTransfer,
)


class LedgerActivities:
    """Double entry: transfers in one step or as Try, Confirm, Cancel; reversals and accounts."""

    def __init__(self, database: Database) -> None:
        self._post: Coalescer[PostTransfer, PostAnswer] = Coalescer(database, ledger.post_transfer)
        self._hold: Coalescer[HoldTransfer, HoldAnswer] = Coalescer(database, ledger.hold_transfer)
        self._settle = Coalescer(database, ledger.settle_transfer)
        self._void = Coalescer(database, ledger.void_transfer)
        self._reverse: Coalescer[ReverseTransfer, ReverseAnswer] = Coalescer(
            database, ledger.reverse_transfer
        )
        self._open: Coalescer[OpenAccount, OpenAnswer] = Coalescer(database, ledger.open_account)

    @activity.defn(name="ledger.post_transfer")
    async def post_transfer(self, request: PostTransfer) -> PostAnswer:
        """Post the entries, all or none."""
        with errors_for_temporal():
            return await self._post.join(request)

    @activity.defn(name="ledger.hold_transfer")
    async def hold_transfer(self, request: HoldTransfer) -> HoldAnswer:
        """Try: make the entries pending, all or none."""
        with errors_for_temporal():
            return await self._hold.join(request)

    @activity.defn(name="ledger.settle_transfer")
    async def settle_transfer(self, request: SettleTransfer) -> TransferPosted:
        """Confirm: what is pending is posted."""
        with errors_for_temporal():
            return await self._settle.join(request)

    @activity.defn(name="ledger.void_transfer")
    async def void_transfer(self, request: VoidTransfer) -> TransferVoided:
        """Cancel: what is pending is dropped."""
        with errors_for_temporal():
            return await self._void.join(request)

    @activity.defn(name="ledger.reverse_transfer")
    async def reverse_transfer(self, request: ReverseTransfer) -> ReverseAnswer:
        """Post the opposite of a posted transfer, once."""
        with errors_for_temporal():
            return await self._reverse.join(request)

    @activity.defn(name="ledger.open_account")
    async def open_account(self, request: OpenAccount) -> OpenAnswer:
        """Give an account its kind and limit."""
        with errors_for_temporal():
            return await self._open.join(request)
