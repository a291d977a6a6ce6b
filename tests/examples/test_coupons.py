"""A user's participant in three functions: its promises, its races, and its flow on Temporal."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import WorkflowFailureError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from everycent.kit import NotDone, Trial, assert_participant, participant_workers
from examples.coupon_flow import Basket, Redeem
from examples.coupons import TABLE, Coupons, UseCoupon
from tests.examples.conftest import MakeService

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
async def coupons(service: MakeService) -> AsyncEngine:
    return await service([TABLE])


async def _stock(engine: AsyncEngine, code: str, free: int) -> None:
    async with engine.begin() as tx:
        await tx.execute(
            text("INSERT INTO coupon (code, free) VALUES (:code, :free)"),
            {"code": code, "free": free},
        )


async def _parts(engine: AsyncEngine, code: str) -> tuple[int, int, int]:
    async with engine.connect() as tx:
        row = (
            await tx.execute(
                text("SELECT free, held, used FROM coupon WHERE code = :c"), {"c": code}
            )
        ).one()
    return row.free, row.held, row.used


@pytest.mark.requirement("AC14.1", "AC14.3", "AC6.3", "AC12.1", "AC13.2", "AC13.3", "I6")
async def test_three_functions_without_a_word_on_repeats_keep_every_promise(
    coupons: AsyncEngine,
) -> None:
    """Red when: a Cancel of the platform leaves no tombstone, or a repeat calls the user again."""
    await _stock(coupons, "SPRING", 1000)
    request = UseCoupon.of("shop/o-1", "coupon", at=NOON, code="SPRING")
    await assert_participant(Trial(Coupons(), coupons, request))


@pytest.fixture
async def running(
    flows: WorkflowEnvironment, coupons: AsyncEngine
) -> AsyncIterator[WorkflowEnvironment]:
    dsn = coupons.url.render_as_string(hide_password=False)
    async with participant_workers(flows.client, dsn, [Coupons()]) as workers:
        flow = Worker(
            flows.client,
            task_queue="redeem",
            workflows=[Redeem],
            workflow_runner=SandboxedWorkflowRunner(),
        )
        async with workers[0], workers[1], flow:
            yield flows


async def _redeem(env: WorkflowEnvironment, *codes: str, id_: str = "") -> Any:
    id_ = id_ or f"redeem/shop/o-{uuid.uuid4().hex[:8]}"
    return await env.client.execute_workflow(
        Redeem.run, Basket(codes=list(codes)), id=id_, task_queue="redeem"
    )


@pytest.mark.requirement("AC14.1", "AC6.1")
async def test_a_flow_with_a_users_participant_uses_every_code_or_none(
    running: WorkflowEnvironment, coupons: AsyncEngine
) -> None:
    """Red when: the flow does not cancel what was held before a refusal, or confirms nothing."""
    for code, free in (("ONE", 1), ("TWO", 2), ("THREE", 3)):
        await _stock(coupons, code, free)
    assert await _redeem(running, "ONE", "TWO") == ["ONE", "TWO"]
    refused = await _redeem(running, "TWO", "THREE", "ONE")
    assert refused == NotDone(step="try coupon", refusal={"kind": "coupon_spent", "code": "ONE"})
    assert await _parts(coupons, "ONE") == (0, 0, 1)
    assert await _parts(coupons, "TWO") == (1, 0, 1)
    assert await _parts(coupons, "THREE") == (3, 0, 0)


@pytest.mark.requirement("AC6.1")
async def test_a_run_whose_id_is_no_xid_is_refused(running: WorkflowEnvironment) -> None:
    """Red when: a run makes up an xid where its id has none."""
    with pytest.raises(WorkflowFailureError) as failed:
        await _redeem(running, "ONE", id_=f"redeem-{uuid.uuid4().hex}")
    assert "is not <flow>/<tenant>/<order>" in str(failed.value.cause)
