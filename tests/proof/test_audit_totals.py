"""What the audit adds up, beside what it finds broken."""

from everycent import clock
from everycent.database import points
from everycent.database.engine import Database
from everycent.domain.points import GrantPoints
from everycent.proof.audit import audit
from everycent.settings import ServiceName, Settings
from tests.workflows.conftest import Shop


async def test_points_of_a_step_with_a_request_of_its_own_are_counted(
    shop: Shop, databases: dict[ServiceName, Database], settings: Settings
) -> None:
    """Red when: the audit takes the last part of a key for its step."""
    await shop.receive(5)
    await shop.sell(shop.order())
    now = clock.now()
    key = f"{shop.tenant}/o-1/earn/again"
    again = GrantPoints(key=key, at=now, opened_on=now.date(), customer="c-1", points=7)
    async with databases["points"].transaction() as tx:
        await points.grant_points(tx, [again])
    assert (await audit(settings, tenant=shop.tenant)).totals.points_earned == 29 + 7
