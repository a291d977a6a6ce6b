"""The decision row of a flow without an order's row, as `Tcc` wants it; a plan takes its steps."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.order import OrderActivities
    from everycent.domain.decision import BeginDecision, CloseDecision, DecisionStands, MoveDecision
    from everycent.domain.message import step_key
    from everycent.domain.order import Decision
    from everycent.domain.outcome import Refusal
    from workers.queues import finishes, tries
    from workflows.options import DATABASE_MUST, DATABASE_STEP
    from workflows.place import Place
    from workflows.steps import Step
    from workflows.tcc import Wanted

BEGIN = Step(
    "write the transaction down",
    OrderActivities.begin_decision,
    tries("order"),
    DATABASE_STEP,
    key="decision",
    irreversible="the row is the record of the transaction; closing it ends it",
)
DECIDE = Step(
    "decide",
    OrderActivities.move_decision,
    finishes("order"),
    DATABASE_MUST,
    key="decision",
    irreversible="the row decides; who loses adopts the winner's decision",
)
CLOSE = Step(
    "close the transaction",
    OrderActivities.close_decision,
    finishes("order"),
    DATABASE_MUST,
    key="decision",
    irreversible="the end of the transaction",
)


class FlowDecision:
    """The one decision of a transaction, in the order service's `decision` table."""

    def __init__(self, tenant: str, transaction: str) -> None:
        self._key = step_key(tenant, transaction, "decision")
        self._place = Place.of_this_run()

    async def begin(self) -> DecisionStands:
        """Write the transaction down before its first Try, or learn how far it has come."""
        return await self._place.start(BEGIN, BeginDecision(**self._told()))

    async def decide(self, wanted: Wanted) -> bool:
        """Move the decision and answer whether the row says commit, whoever has moved it."""
        refusal = wanted.refusal
        evidence = refusal.model_dump(mode="json") if isinstance(refusal, Refusal) else None
        to = Decision.COMMITTING if wanted.commit else Decision.ABORTING
        move = MoveDecision(to=to, reason=wanted.reason, pivot_refusal=evidence, **self._told())
        return (await self._place.start(DECIDE, move, summary=f"decide {to}")).commits

    async def close(self, committed: bool) -> DecisionStands:
        """Say that every branch has followed the decision."""
        return await self._place.start(CLOSE, CloseDecision(**self._told()))

    def _told(self) -> dict[str, object]:
        return {"key": self._key, "at": workflow.now(), "driver": workflow.info().workflow_id}
