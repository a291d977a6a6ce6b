"""What a person asks of messages is an activity of whoever has the database."""

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.messages import MessageActivities
from everycent.database.engine import Database
from everycent.domain.messaging import Replayed, ReplayMessages
from everycent.settings import ServiceName
from tests.conftest import NOON
from workers.composition import messages_of


def test_a_worker_of_all_services_has_each_activity_once(
    databases: dict[ServiceName, Database],
) -> None:
    """Red when: an activity of that name is made for each service: no such worker would start."""
    found = [activity._Definition.must_from_callable(each) for each in messages_of(databases)]
    names = [str(each.name) for each in found]
    assert sorted(names) == sorted(set(names))
    assert {"messages.replay", "choreography.start"} <= set(names)


async def test_a_service_replays_its_own_messages_alone(
    databases: dict[ServiceName, Database],
) -> None:
    replays = MessageActivities({"ledger": databases["ledger"]})
    asked = ReplayMessages(service="ledger", keys=("nobody/knows/it",), at=NOON)
    assert await replays.replay(asked) == Replayed()
    with pytest.raises(ApplicationError, match="no messages of points"):
        await replays.replay(asked.model_copy(update={"service": "points"}))
