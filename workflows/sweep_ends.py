"""How a hold is ended: the steps of the flows, as the sweeper calls them."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.account import AccountActivities
    from activities.inventory import InventoryActivities
    from activities.payment import PaymentActivities
    from activities.points import PointsActivities
    from everycent.domain.account import DebitBalance, UnfreezeBalance
    from everycent.domain.inventory import CommitStock, ReleaseStock
    from everycent.domain.payment import CapturePayment, VoidPayment
    from everycent.domain.points import RedeemPoints, UnfreezePoints
    from everycent.domain.sweep import Act
    from workflows.options import DATABASE_STEP, PROVIDER_STEP, BeatingOptions, StepOptions

_PATIENCE = timedelta(minutes=5)  # A repair that gets no answer is tried again by the next pass.
LOOK = StepOptions(**DATABASE_STEP, schedule_to_close_timeout=_PATIENCE)
CALL = BeatingOptions(**PROVIDER_STEP, schedule_to_close_timeout=_PATIENCE)
EndHold = Callable[[dict[str, Any], str, str], Awaitable[Any]]  # What, why, and by which queue.


def _confirm(method: Any, request: Any, options: StepOptions) -> EndHold:
    async def step(base: dict[str, Any], _reason: str, queue: str) -> Any:
        return await workflow.execute_activity_method(
            method,
            request(**base),
            task_queue=queue,
            summary=f"confirm {base['key']}",
            **options,
        )

    return step


def _cancel(method: Any, request: Any, options: StepOptions) -> EndHold:
    async def step(base: dict[str, Any], reason: str, queue: str) -> Any:
        return await workflow.execute_activity_method(
            method,
            request(reason=reason, **base),
            task_queue=queue,
            summary=f"cancel {base['key']}",
            **options,
        )

    return step


_I, _A, _P, _N = InventoryActivities, AccountActivities, PaymentActivities, PointsActivities
ENDS: dict[tuple[str, Act], EndHold] = {
    ("reservation", Act.CONFIRM): _confirm(_I.commit_stock, CommitStock, LOOK),
    ("reservation", Act.CANCEL): _cancel(_I.release_stock, ReleaseStock, LOOK),
    ("balance_hold", Act.CONFIRM): _confirm(_A.debit_balance, DebitBalance, LOOK),
    ("balance_hold", Act.CANCEL): _cancel(_A.unfreeze_balance, UnfreezeBalance, LOOK),
    ("points_hold", Act.CONFIRM): _confirm(_N.redeem_points, RedeemPoints, LOOK),
    ("points_hold", Act.CANCEL): _cancel(_N.unfreeze_points, UnfreezePoints, LOOK),
    ("payment", Act.CONFIRM): _confirm(_P.capture, CapturePayment, CALL),
    ("payment", Act.CANCEL): _cancel(_P.void, VoidPayment, CALL),
}
