"""A choreographed order without an end has an owner: its messages; sweeper and audit know that."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import text

from everycent.database import sweep_reads
from everycent.database.engine import Database
from everycent.domain.sweep_questions import Unfinished
from everycent.proof.audit import OWNER, audit
from everycent.proof.report import RuleResult, RuleState
from everycent.settings import ServiceName, Settings
from tests.messages.conftest import Shop


class NoRuns:
    """No workflow runs here."""

    async def living(self, workflow_ids: Sequence[str]) -> set[str]:
        assert not workflow_ids, "nobody asks Temporal about an order that messages drive"
        return set()


async def owner_rule(shop: Shop, settings: Settings) -> RuleResult:
    report = await audit(settings, tenant=shop.tenant, reread_seconds=0, drivers=NoRuns())
    assert [r.name for r in report.rules if r.state is RuleState.BROKEN and r.name != OWNER] == []
    return next(rule for rule in report.rules if rule.name == OWNER)


async def test_an_order_on_its_way_is_owned_and_one_whose_messages_are_gone_is_not(
    shop: Shop, settings: Settings, owners: dict[ServiceName, Database]
) -> None:
    """At every hop; then somebody deletes its messages behind our back.

    Red when: the audit asks nobody about such an order, or takes it for one of a workflow.
    """
    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    shop.down = {"ledger"}
    await shop.settle()
    assert (await shop.row(order)).decision == "COMMITTING"
    assert (await owner_rule(shop, settings)).state is RuleState.HELD
    for database in owners.values():
        async with database.transaction() as tx:
            await tx.execute(text("TRUNCATE outbox, inbox"))
    lost = await owner_rule(shop, settings)
    assert (lost.state, lost.first_offender) == (RuleState.BROKEN, f"{shop.tenant}/o-1")


async def test_an_open_order_waits_for_its_customer_and_the_scan(
    shop: Shop, settings: Settings
) -> None:
    await shop.stock(5)
    await shop.start(shop.by_card(token="tok_declined"))
    await shop.unfinished()
    assert (await owner_rule(shop, settings)).state is RuleState.HELD


async def test_the_sweeper_takes_up_no_order_that_messages_drive(shop: Shop) -> None:
    """It would drive it a second time, by a workflow.

    Red when: unfinished orders are asked for whoever drives them.
    """
    await shop.stock(5)
    await shop.start(shop.by_card(token="tok_declined"))
    await shop.settle()
    asked = Unfinished(tenant=shop.tenant, before=shop.clock() + timedelta(days=1))
    async with shop.databases["order"].transaction() as tx:
        assert (await sweep_reads.unfinished(tx, asked)).standings == ()
