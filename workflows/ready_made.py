"""The resources that everycent serves by itself, as steps of a user's flow: balance, stock, points.

Their workers are those of `everycent up` (or `everycent worker account | inventory | points`). What
a user counts herself, coupons or quotas, is `everycent.database.counted`.
"""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.domain.account import (
        BalanceDebited,
        BalanceUnfrozen,
        DebitBalance,
        FreezeAnswer,
        FreezeBalance,
        UnfreezeBalance,
    )
    from everycent.domain.inventory import (
        CommitStock,
        ReleaseStock,
        ReserveAnswer,
        ReserveStock,
        StockCommitted,
        StockReleased,
    )
    from everycent.domain.points import (
        FreezePoints,
        FreezePointsAnswer,
        PointsRedeemed,
        PointsUnfrozen,
        RedeemPoints,
        UnfreezePoints,
    )

    from .branches import served

BALANCE = served(
    "balance",
    "account",
    tries=("account.freeze_balance", FreezeBalance, FreezeAnswer),
    confirms=("account.debit_balance", DebitBalance, BalanceDebited),
    cancels=("account.unfreeze_balance", UnfreezeBalance, BalanceUnfrozen),
)
STOCK = served(
    "stock",
    "inventory",
    tries=("inventory.reserve_stock", ReserveStock, ReserveAnswer),
    confirms=("inventory.commit_stock", CommitStock, StockCommitted),
    cancels=("inventory.release_stock", ReleaseStock, StockReleased),
)
POINTS = served(
    "points",
    "points",
    tries=("points.freeze_points", FreezePoints, FreezePointsAnswer),
    confirms=("points.redeem_points", RedeemPoints, PointsRedeemed),
    cancels=("points.unfreeze_points", UnfreezePoints, PointsUnfrozen),
)
