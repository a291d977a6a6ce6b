"""A TCC with the generic decision row, whose branches are a service behind a URL."""

import asyncio
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.domain.outcome import Refusal
    from everycent.domain.participant import BranchRequest, CancelBranch, ConfirmBranch
    from examples.seat_flow import SEAT, HoldSeat
    from workflows.flow_decision import FlowDecision
    from workflows.steps import Step
    from workflows.tcc import Branch, Tcc


def _start(step: Step[Any, Any], request: Any) -> asyncio.Task[Any]:
    return workflow.start_activity_method(
        step.activity, request, task_queue=step.queue, **step.options
    )


def _branch(xid: str, number: int, area: str, begun: list[asyncio.Task[Any]]) -> Branch:
    assert SEAT.confirm is not None
    assert SEAT.undo is not None
    confirm, cancel = SEAT.confirm, SEAT.undo
    named = (xid, "seat", f"{number}")

    def asked(kind: type[BranchRequest], **fields: Any) -> Any:
        day = workflow.info().workflow_start_time.date()
        return kind.of(*named, at=workflow.now(), opened_on=day, **fields)

    def try_() -> asyncio.Task[Any]:
        begun.append(_start(SEAT, asked(HoldSeat, area=area)))
        return begun[-1]

    return Branch(
        f"seat {number}",
        "/".join(named),
        try_=try_,
        confirm=lambda: _start(confirm, asked(ConfirmBranch)),
        cancel=lambda: _start(cancel, asked(CancelBranch)),
    )


@workflow.defn(name="party")
class Party:
    """A seat in each area, or none at all."""

    @workflow.run
    async def run(self, areas: list[str]) -> bool:
        """Try, decide in the row, confirm or cancel; wait for late Tries, for the server's sake.

        A server that skips time stands still for ever once a run has ended before its activities.
        """
        _, tenant, order_id = workflow.info().workflow_id.split("/")
        decision, begun = FlowDecision(tenant, order_id), list[asyncio.Task[Any]]()
        await decision.begin()
        tcc = Tcc(
            [_branch(f"{tenant}/{order_id}", n, area, begun) for n, area in enumerate(areas)],
            decision.decide,
            is_refusal=lambda answer: isinstance(answer, Refusal),
            close=decision.close,
        )
        ending = await tcc.run()
        await asyncio.gather(*begun, return_exceptions=True)
        return ending.committed
