"""The lanes of a service of participants: their activities, a pool and a worker for each lane.

It stands alone, as the saga does: no flow, queue or service of ours is known here, so that a user's
process imports it out of our wheel beside folders of her own.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

from pydantic import ValidationError
from sqlalchemy import text
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, Worker

from everycent.database.engine import Database
from everycent.database.participant import FENCE, Participant
from everycent.domain.participant import BranchRequest, CancelBranch, ConfirmBranch
from everycent.errors import InvalidRequest
from everycent.settings import SERVICES, PoolSettings

from .boundary import errors_for_temporal
from .coalescer import Coalescer

AnyParticipant = Participant[Any, Any]


class Named(Protocol):
    """What tells a participant, ours or behind a URL, from others."""

    name: str
    service: str


TRY, CONFIRM, CANCEL = "try", "confirm", "cancel"
GRACE = timedelta(seconds=15)


def activity_name(participant: str, operation: str) -> str:
    """Return an activity's name in Temporal: `coupon.try`."""
    return f"{participant}.{operation}"


def lanes_of(service: str) -> tuple[str, str]:
    """Return a service's two task queues: for Try, and for Confirm and Cancel."""
    return f"everycent-{service}", f"everycent-{service}-finish"


def service_of(participant: Named) -> str:
    """Return the service a participant belongs to: one of its own, unless it names another."""
    return participant.service or participant.name


def try_activities(database: Database, participants: Sequence[AnyParticipant]) -> list[Any]:
    """Return the Try of each participant as an activity."""
    return [
        activity_of(each.name, TRY, each.request, Coalescer(database, each.tries).join)
        for each in participants
    ]


def finish_activities(database: Database, participants: Sequence[AnyParticipant]) -> list[Any]:
    """Return the Confirm and the Cancel of each participant as activities."""
    made = []
    for each in participants:
        confirms = Coalescer(database, each.confirms).join
        cancels = Coalescer(database, each.cancels).join
        made.append(activity_of(each.name, CONFIRM, ConfirmBranch, confirms))
        made.append(activity_of(each.name, CANCEL, CancelBranch, cancels))
    return made


@contextlib.asynccontextmanager
async def participant_workers(
    client: Client,
    dsn: str,
    participants: Sequence[AnyParticipant],
    *,
    pool: PoolSettings | None = None,
) -> AsyncIterator[list[Worker]]:
    """Build the two workers of one service's participants; run them with `async with`.

    Each lane has a pool of its own, and as many slots as that has connections: a flood of Try
    cannot hold up a Cancel. Raises InvalidRequest where the database has no fence or another
    isolation than READ COMMITTED, and where names collide.
    """
    service, sizes = one_service(participants), pool or PoolSettings()
    async with contextlib.AsyncExitStack() as stack:
        workers = []
        for queue, make in zip(lanes_of(service), (try_activities, finish_activities), strict=True):
            database = Database(dsn, sizes, name=queue)
            stack.push_async_callback(database.close)
            await _check(database, participants)
            workers.append(
                Worker(
                    client,
                    task_queue=queue,
                    activities=make(database, participants),
                    max_concurrent_activities=sizes.size,
                    activity_task_poller_behavior=PollerBehaviorAutoscaling(),
                    graceful_shutdown_timeout=GRACE,
                )
            )
        yield workers


def activity_of(
    participant: str, operation: str, request: type[BranchRequest], join: Callable[[Any], Any]
) -> Any:
    """Make an activity that reads its request and joins the others of its operation.

    The request comes as it was sent: what cannot be read is told as the caller's fault, where
    Temporal by itself would decode it again and again.
    """

    async def run(sent: Mapping[str, Any]) -> Any:
        with errors_for_temporal():
            try:
                read = request.model_validate(sent)
            except ValidationError as error:
                raise InvalidRequest(f"{participant}.{operation}: {error}") from error
            return await join(read)

    return activity.defn(name=activity_name(participant, operation))(run)


def one_service(participants: Sequence[Named]) -> str:
    """Return the service that all of them belong to. Raises InvalidRequest where names collide."""
    services = {service_of(each) for each in participants}
    if len(services) != 1:
        raise InvalidRequest(f"one worker serves one service, not {sorted(services)}")
    [service] = services
    names = [each.name for each in participants]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"two participants have one name: {sorted(names)}")
    if service in SERVICES:
        raise InvalidRequest(f"{service} is a service of everycent's own: choose another name")
    return service


async def _check(database: Database, participants: Sequence[AnyParticipant]) -> None:
    """Look once, before work is taken: what is missing would fail every step."""
    tables = sorted({each.table.name for each in participants} | {FENCE.name})
    async with database.transaction() as tx:
        isolation = (await tx.execute(text("SHOW transaction_isolation"))).scalar_one()
        missing = (
            await tx.execute(
                text("SELECT name FROM unnest(CAST(:names AS text[])) AS name"
                     " WHERE to_regclass(name) IS NULL"),
                {"names": tables},
            )
        ).scalars().all()  # fmt: skip
    if isolation != "read committed":
        raise InvalidRequest(f"the fence needs READ COMMITTED, and the database says {isolation}")
    if missing:
        raise InvalidRequest(f"the database has no table {missing[0]}: run fence_tables() in it")
