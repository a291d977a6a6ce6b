"""The lanes of participants behind URLs: the same activities, and no database of ours."""

from collections.abc import Sequence
from typing import Any

from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, Worker

from everycent.domain.participant import CancelBranch, ConfirmBranch
from everycent.gateways.url_participant import UrlParticipant

from .participant import CANCEL, CONFIRM, GRACE, TRY, activity_of, lanes_of, one_service


def url_workers(
    client: Client, participants: Sequence[UrlParticipant], *, calls_at_once: int = 20
) -> list[Worker]:
    """Build the two workers of one service behind URLs, each with so many calls at once."""
    made: tuple[list[Any], list[Any]] = ([], [])
    for each in participants:
        made[0].append(activity_of(each.name, TRY, each.request, each.try_))
        made[1].append(activity_of(each.name, CONFIRM, ConfirmBranch, each.confirm))
        made[1].append(activity_of(each.name, CANCEL, CancelBranch, each.cancel))
    return [
        Worker(
            client,
            task_queue=queue,
            activities=activities,
            max_concurrent_activities=calls_at_once,
            activity_task_poller_behavior=PollerBehaviorAutoscaling(),
            graceful_shutdown_timeout=GRACE,
        )
        for queue, activities in zip(lanes_of(one_service(participants)), made, strict=True)
    ]
