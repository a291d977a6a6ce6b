"""Whether everything that an order needs answers, and what helps if not."""

import asyncio
import socket
from collections.abc import Awaitable, Collection, Iterator
from datetime import UTC, timedelta

import httpx
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError

from everycent import clock
from everycent.database.engine import Database
from everycent.database.migrate import head_of
from everycent.domain.message import Message
from everycent.errors import EverycentError
from everycent.settings import SERVICES, PoolSettings, ServiceName, Settings
from starters.client import address_of, connect
from workers.composition import sweep_reads_of, worker_name
from workers.queues import SWEEPER, TOGETHER, WORKFLOWS, finishes, sweeps, tries
from workflows import attributes

ONE_CONNECTION = PoolSettings(size=1, wait_seconds=3.0)
HTTP_SECONDS = 3.0
PROVIDER, RELAY = "provider", "relay"  # Parts that poll no queue.
POLL_IS_RECENT = timedelta(seconds=90)  # A poll that finds nothing waits a minute.


class Finding(Message):
    """One dependency: how it is, and the fix if it is not well."""

    what: str
    ok: bool
    says: str
    fix: str = ""


async def check_all(settings: Settings) -> tuple[Finding, ...]:
    """Reach every dependency that the settings name, all at the same time."""
    databases = [
        _database(service, role, dsns[service])
        if service in dsns
        else _unnamed(service, role, variable)
        for role, variable, dsns in (
            ("worker", "DATABASE", settings.database),
            ("reader", "READ", settings.read),
            ("owner", "OWNER", settings.owner),
        )
        if role != "owner" or dsns  # Only `migrate` needs the owner.
        for service in SERVICES
    ]
    return await _all([*databases, _provider(settings), _temporal(settings, _workers(settings))])


async def check_only(settings: Settings, part: str) -> tuple[Finding, ...]:
    """Check what one worker needs, and that it polls from this host; or the provider alone.

    It is the health check of a container: it asks with what the worker itself is given.
    """
    if part == PROVIDER:
        return await _all([_provider(settings)])
    if part == RELAY:
        dsns = {service: settings.relay.get(service) for service in SERVICES}
        return await _all(
            [
                _database(service, "relay", dsn) if dsn else _unnamed(service, "relay", "RELAY")
                for service, dsn in dsns.items()
            ]
        )
    name = worker_name(part)
    checks: list[Awaitable[list[Finding]]] = [_temporal(settings, (name,), here=True)]
    if name in ("payment", "together"):
        checks.append(_provider(settings))
    for service in SERVICES:
        if name in (service, "together"):
            dsn = settings.database.get(service)
            checks.append(
                _database(service, "worker", dsn)
                if dsn
                else _unnamed(service, "worker", "DATABASE")
            )
    return await _all(checks)


def _workers(settings: Settings) -> tuple[str, ...]:
    """Return the workers that new orders need."""
    return ("together",) if settings.steps == "together" else ("workflows", *SERVICES)


async def _all(checks: list[Awaitable[list[Finding]]]) -> tuple[Finding, ...]:
    return tuple(finding for found in await asyncio.gather(*checks) for finding in found)


async def _unnamed(service: ServiceName, role: str, variable: str) -> list[Finding]:
    name = f"EVERYCENT_{variable}__{service.upper()}"
    return [
        Finding(
            what=f"database {service} as {role}",
            ok=False,
            says="not configured",
            fix=f"set {name}, or start a stack with `everycent up`",
        )
    ]


async def _database(service: ServiceName, role: str, dsn: str) -> list[Finding]:
    url = make_url(dsn)
    what = f"database {service} as {role}"
    where = f"{url.username} at {url.host}:{url.port}/{url.database}"
    database = Database(dsn, ONE_CONNECTION, name="everycent check")
    try:
        async with database.snapshot() as tx:
            revision = await tx.scalar(text("SELECT version_num FROM alembic_version"))
    except (EverycentError, DBAPIError, OSError) as error:
        says = f"{where}: {' '.join(str(error).split())}"
        fix = "start PostgreSQL, correct the DSN, or run `everycent migrate`"
        return [Finding(what=what, ok=False, says=says, fix=fix)]
    finally:
        await database.close()
    head = head_of(service)
    if revision != head:
        says = f"{where} is at {revision}, this everycent needs {head}"
        return [Finding(what=what, ok=False, says=says, fix="run `everycent migrate`")]
    return [Finding(what=what, ok=True, says=f"{where}, schema {revision}")]


async def _provider(settings: Settings) -> list[Finding]:
    url = f"{settings.provider.url}/healthz"
    try:
        async with httpx.AsyncClient(timeout=HTTP_SECONDS) as http:
            answer = await http.get(url)
            answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        says = f"{url}: {error or type(error).__name__}"
        fix = "start it, or correct EVERYCENT_PROVIDER__URL"
        return [Finding(what="payment provider", ok=False, says=says, fix=fix)]
    return [Finding(what="payment provider", ok=True, says=settings.provider.url)]


async def _temporal(
    settings: Settings, workers: Collection[str], *, here: bool = False
) -> list[Finding]:
    try:
        client = await connect(settings)
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace)
        )
    except (EverycentError, RPCError) as error:
        fix = "start it, or correct EVERYCENT_TEMPORAL__ADDRESS and EVERYCENT_TEMPORAL__NAMESPACE"
        says = " ".join(str(error).split())
        return [Finding(what="Temporal", ok=False, says=says, fix=fix)]
    where = f"{address_of(client)}, namespace {client.namespace}"
    return [
        Finding(what="Temporal", ok=True, says=where),
        await _search_attributes(client),
        *await asyncio.gather(
            *(_queue(client, *queue, here=here) for queue in _queues() if queue[0] in workers)
        ),
    ]


async def _search_attributes(client: Client) -> Finding:
    wanted = {key.name for key in vars(attributes).values() if isinstance(key, SearchAttributeKey)}
    answer = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    missing = sorted(wanted - set(answer.custom_attributes))
    if missing:
        return Finding(
            what="search attributes",
            ok=False,
            says=f"missing: {', '.join(missing)}",
            fix="create them: temporal operator search-attribute create --name … --type …",
        )
    return Finding(what="search attributes", ok=True, says=f"all {len(wanted)} exist")


def _queues() -> Iterator[tuple[str, str, TaskQueueType.ValueType]]:
    yield "workflows", WORKFLOWS, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
    yield "together", TOGETHER, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
    for worker in ("workflows", "together"):
        yield worker, SWEEPER, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
    for service in SERVICES:
        for queue in (tries(service), finishes(service)):
            yield service, queue, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
        if sweep_reads_of(service):
            for worker in (service, "together"):
                yield worker, sweeps(service), TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY


async def _queue(
    client: Client, worker: str, queue: str, kind: "TaskQueueType.ValueType", *, here: bool
) -> Finding:
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace, task_queue=TaskQueue(name=queue), task_queue_type=kind
        )
    )
    polling = sum(not here or _is_of_this_host(poller) for poller in answer.pollers)
    what, where = f"task queue {queue}", " from this host" if here else ""
    if not polling:
        fix = f"start one: `everycent worker {worker}`"
        return Finding(what=what, ok=False, says=f"no worker polls{where}", fix=fix)
    says = f"{polling} worker{'s' * (polling > 1)} polling{where}"
    return Finding(what=what, ok=True, says=says)


def _is_of_this_host(poller: PollerInfo) -> bool:
    """Tell whether a process of this host polls; the server remembers dead ones for a while."""
    last = poller.last_access_time.ToDatetime(tzinfo=UTC)
    return (
        poller.identity.endswith(f"@{socket.gethostname()}") and clock.now() - last < POLL_IS_RECENT
    )
