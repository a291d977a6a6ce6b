"""The examples that the documents show: their promises, their lines, their types, their flow."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from everycent.kit import NotDone, Steps, Trial, assert_participant, participant_workers
from everycent.proof.conformance_participant import ORDERS, Orders
from examples import lines
from examples.compare import saga_step, tcc_by_hand
from examples.trip import PARTICIPANTS, BookTrip
from tests.examples.conftest import MakeService

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class ByHand:
    """The three functions written by hand, each in a transaction of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def try_(self, call: tcc_by_hand.Call) -> Any:
        async with self.engine.begin() as tx:
            return await tcc_by_hand.try_(tx, call)

    async def confirm(self, call: tcc_by_hand.Call) -> Any:
        async with self.engine.begin() as tx:
            return await tcc_by_hand.confirm(tx, call)

    async def cancel(self, call: tcc_by_hand.Call) -> Any:
        async with self.engine.begin() as tx:
            return await tcc_by_hand.cancel(tx, call)

    def requests(self, number: int) -> Steps:
        call = tcc_by_hand.Call(f"shop/o-{number}", "coupon", "SPRING")
        return Steps(call, call, call)

    async def state(self) -> Mapping[str, int]:
        async with self.engine.connect() as tx:
            row = (await tx.execute(text("SELECT free, held, used FROM coupon"))).one()
        return dict(row._mapping)


@pytest.mark.requirement("AC14.5")
async def test_what_is_compared_keeps_the_same_promises(service: MakeService) -> None:
    """By hand in all orders of calls; the saga's step in the whole conformance.

    Red when: one of the two leaves out a trap that the others pay lines for.
    """
    engine = await service(tcc_by_hand.TABLES)
    async with engine.begin() as tx:
        await tx.execute(text("INSERT INTO coupon (code, free) VALUES ('SPRING', 1000)"))
    orders = Orders(ByHand(engine))
    await orders.learn()
    for order in ORDERS:
        await orders.one_after_the_other(order)
        await orders.all_at_once(order)

    engine = await service([saga_step.TABLE])
    async with engine.begin() as tx:
        await tx.execute(text("INSERT INTO coupon VALUES ('SPRING', 1000)"))
    request = saga_step.UseCoupon.of("shop/o-1", "coupon", at=NOON, code="SPRING")
    await assert_participant(Trial(saga_step.CouponSteps(), engine, request))


@pytest.mark.requirement("AC14.5")
def test_the_document_shows_the_lines_as_they_are_counted_today() -> None:
    """Red when: an example grows, and docs/participants.md still tells the old figures."""
    assert lines.table() in (ROOT / "docs" / "participants.md").read_text()
    counted = [
        len(lines.code_lines((lines.FOLDER / file).read_text())) for _, file in lines.VARIANTS
    ]
    assert counted == sorted(counted, reverse=True)


@pytest.mark.requirement("AC14.5")
def test_the_saga_of_the_readme_has_thirty_lines_and_the_right_types(tmp_path: Path) -> None:
    """Taken out of the README as it stands, it is the example that is run below.

    Red when: the README's saga is longer than 30 lines, differs from the example, or mistypes.
    """
    readme = (ROOT / "README.md").read_text()
    [block] = re.findall(r"```python\n(\"\"\"A trip:.*?)```", readme, re.DOTALL)
    assert len(block.splitlines()) <= 30
    assert block == (ROOT / "examples" / "trip.py").read_text()
    (tmp_path / "readme_trip.py").write_text(block)
    typed = subprocess.run(
        [Path(sys.executable).with_name("mypy"), "--strict", "--config-file", "",
         "--cache-dir", ROOT / ".mypy_cache" / "readme", "readme_trip.py"],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert typed.returncode == 0, typed.stdout + typed.stderr


@pytest.mark.requirement("AC14.5", "AC14.2")
async def test_the_saga_of_the_readme_takes_all_or_nothing(
    flows: WorkflowEnvironment, service: MakeService
) -> None:
    """Red when: its undo leaves a room or a flight taken."""
    engine = await service(table for each in PARTICIPANTS for table in each.tables())
    async with engine.begin() as tx:
        for each, units in zip(PARTICIPANTS, (2, 2, 1), strict=True):
            await each.allow(tx, "shop", "PARIS", units)
    flow = Worker(
        flows.client,
        task_queue="trip",
        workflows=[BookTrip],
        workflow_runner=SandboxedWorkflowRunner(),
    )

    async def book(order: str) -> str | NotDone:
        ended: str | NotDone = await flows.client.execute_workflow(
            BookTrip.run, "PARIS", id=f"trip/shop/{order}", task_queue="trip"
        )
        return ended

    dsn = engine.url.render_as_string(hide_password=False)
    async with (
        participant_workers(flows.client, dsn, PARTICIPANTS) as (tries, finishes),
        flow,
        tries,
        finishes,
    ):
        assert await book("o-1") == "to PARIS"
        refused = await book("o-2")
    assert isinstance(refused, NotDone)
    assert refused.step == "try car"
    async with engine.connect() as tx:
        for table, wanted in (("room", (1, 0, 1)), ("flight", (1, 0, 1)), ("car", (0, 0, 1))):
            row = (await tx.execute(text(f"SELECT free, held, used FROM {table}_counter"))).one()
            assert tuple(row) == wanted
