"""The account service's activities; what they guarantee is said in `everycent.database.account`."""

from temporalio import activity

from activities.boundary import errors_for_temporal
from activities.coalescer import Coalescer
from everycent.database import account
from everycent.database.engine import Database
from everycent.domain.account import (
    BalanceCredited,
    BalanceDebited,
    BalanceUnfrozen,
    CreditAnswer,
    CreditBalance,
    DebitBalance,
    Deposit,
    FreezeAnswer,
    FreezeBalance,
    UnfreezeBalance,
)


class AccountActivities:
    """Stored balance: Try, Confirm and Cancel of a hold, deposits and refunds."""

    def __init__(self, database: Database) -> None:
        self._freeze: Coalescer[FreezeBalance, FreezeAnswer] = Coalescer(
            database, account.freeze_balance
        )
        self._debit = Coalescer(database, account.debit_balance)
        self._unfreeze = Coalescer(database, account.unfreeze_balance)
        self._deposit = Coalescer(database, account.deposit)
        self._credit: Coalescer[CreditBalance, CreditAnswer] = Coalescer(
            database, account.credit_balance
        )

    @activity.defn(name="account.freeze_balance")
    async def freeze_balance(self, request: FreezeBalance) -> FreezeAnswer:
        """Try: freeze the amount."""
        with errors_for_temporal():
            return await self._freeze.join(request)

    @activity.defn(name="account.debit_balance")
    async def debit_balance(self, request: DebitBalance) -> BalanceDebited:
        """Confirm: what is frozen is spent."""
        with errors_for_temporal():
            return await self._debit.join(request)

    @activity.defn(name="account.unfreeze_balance")
    async def unfreeze_balance(self, request: UnfreezeBalance) -> BalanceUnfrozen:
        """Cancel: what is frozen is available again."""
        with errors_for_temporal():
            return await self._unfreeze.join(request)

    @activity.defn(name="account.deposit")
    async def deposit(self, request: Deposit) -> BalanceCredited:
        """Put money into an account."""
        with errors_for_temporal():
            return await self._deposit.join(request)

    @activity.defn(name="account.credit_balance")
    async def credit_balance(self, request: CreditBalance) -> CreditAnswer:
        """Pay a debited amount back."""
        with errors_for_temporal():
            return await self._credit.join(request)
