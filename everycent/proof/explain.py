"""`explain`: everything that anybody knows of one order, in one line of time.

Temporal's histories, the six databases, the provider's books and what people did are merged: an
effect stands behind the step that caused it. Who does not answer is named, and the others speak.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from temporalio.client import Client
from temporalio.service import RPCError

from everycent import clock
from everycent.database.audit_rows import Span, read_orders, stream_rows
from everycent.database.reads import Reader, reading
from everycent.database.story_rows import StoryRow, find_order, read_story_rows
from everycent.errors import EverycentError, Unreachable
from everycent.proof.facts import Facts
from everycent.proof.invariants import PROVIDER, RULES
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.row_story import Causes, events_of_provider, events_of_rows
from everycent.proof.run_story import RunStory, read_runs
from everycent.proof.timeline import Event, Timeline
from everycent.proof.waiting import Situation, why_it_waits
from everycent.settings import SERVICES, Settings
from starters.client import connect
from workflows.catalog import FLOW_NAMES

T = TypeVar("T")
_PATIENCE_SECONDS = 20.0
_SILENCE = (EverycentError, RPCError, OSError, httpx.HTTPError)


async def explain(
    settings: Settings,
    tenant: str,
    order_id: str,
    *,
    flow: str = "checkout",
    client: Client | None = None,
    provider: httpx.AsyncClient | None = None,
) -> Timeline:
    """Tell the story of an order, whoever is down; an order that never came has an empty one.

    `client` and `provider` replace the connections that the settings name. Raises Unreachable if
    nobody at all can be asked.
    """
    async with reading(settings) as reader, _provider(settings, provider) as http:
        story = _Story(reader, http, tenant, order_id, f"{flow}/{tenant}/{order_id}")
        await story.ask(settings, client)
        return story.told()


async def find(settings: Settings, tenant: str, name: str) -> tuple[str, str]:
    """Return the shop and the id of the order that a person means by `name`.

    That is an order's id, a step's key or a workflow's id; or else a payment's request id, or its
    id at the provider. A name that nobody knows is taken for an order's. Raises AmbiguousError when
    several orders know it.
    """
    parts = name.split("/")
    if len(parts) > 1:  # `checkout/<tenant>/<order>` or `<tenant>/<order>/<step>`.
        is_workflow = parts[0] in FLOW_NAMES and len(parts) == 3
        return (parts[1], parts[2]) if is_workflow else (parts[0], parts[1])
    async with reading(settings) as reader:
        with contextlib.suppress(*_SILENCE):
            if await reader.order(tenant, name) is None:
                orders = await find_order(reader, tenant, name)
                if len(orders) > 1:
                    raise AmbiguousError(name, orders)
                return tenant, next(iter(orders), name)
    return tenant, name


class AmbiguousError(ValueError):
    """Several orders know the name."""

    def __init__(self, name: str, orders: set[str]) -> None:
        listed = ", ".join(sorted(orders))
        super().__init__(f"{name} could be of these orders: {listed}; name one of them")


class _Story:
    """Asks everybody, and puts together what they said."""

    def __init__(
        self,
        reader: Reader,
        http: httpx.AsyncClient,
        tenant: str,
        order_id: str,
        workflow_id: str,
    ) -> None:
        self._reader = reader
        self._http = http
        self._tenant = tenant
        self._order_id = order_id
        self._workflow_id = workflow_id
        self._xid = f"{tenant}/{order_id}"
        self._silent: dict[str, str] = {}
        self._rows: list[StoryRow] = []
        self._runs: list[RunStory] = []
        self._entries: list[dict[str, Any]] = []
        self._broken: list[str] = []

    async def ask(self, settings: Settings, client: Client | None) -> None:
        """Ask Temporal, each service and the provider; note who is silent."""
        rows = [
            self._heard(service, read_story_rows(self._reader, service, *self._names), [])
            for service in SERVICES
        ]
        entries = self._heard("provider", self._provider_says(), [])
        runs = self._heard("temporal", self._temporal_says(settings, client), [])
        self._entries, self._runs, *found = await asyncio.gather(entries, runs, *rows)
        self._rows = [row for of_service in found for row in of_service]
        if len(self._silent) == len(SERVICES) + 2:
            raise Unreachable(next(iter(self._silent.values())))
        if not self._silent and self._rows:
            self._broken = await self._heard("the invariants", self._broken_rules(), [])

    def told(self) -> Timeline:
        """Return the timeline."""
        at = Situation(
            self._tenant,
            self._order_id,
            self._workflow_id,
            clock.now(),
            self._rows,
            self._runs,
            frozenset(self._silent),
            bool(self._broken),
        )
        waiting = why_it_waits(at)
        facts = at.order.facts if at.order else {}
        return Timeline(
            tenant=self._tenant,
            order_id=self._order_id,
            workflow_id=self._workflow_id,
            found=bool(self._rows or self._runs or self._entries),
            **{word: facts.get(word, "") for word in ("decision", "status", "waits_for")},
            runs=tuple(run.view for run in self._runs),
            events=tuple(self._events()),
            broken=tuple(self._broken),
            silent=self._silent,
            why=waiting.why,
            next_commands=waiting.commands,
        )

    @property
    def _names(self) -> tuple[str, str]:
        return self._tenant, self._order_id

    async def _heard(self, who: str, asked: Awaitable[T], otherwise: T) -> T:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asked
        except TimeoutError:
            self._silent[who] = f"no answer within {_PATIENCE_SECONDS:.0f} s"
        except _SILENCE as error:
            self._silent[who] = " ".join(str(error).split()) or type(error).__name__
        return otherwise

    async def _temporal_says(self, settings: Settings, client: Client | None) -> list[RunStory]:
        return await read_runs(client or await connect(settings), self._workflow_id)

    async def _provider_says(self) -> list[dict[str, Any]]:
        answer = await self._http.get("/admin/events", params={"prefix": f"{self._xid}/"})
        if answer.status_code == httpx.codes.NOT_FOUND:  # A provider that tells no events.
            return []
        entries: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
        return entries

    async def _broken_rules(self) -> list[str]:
        """Judge the order by the audit's rules, as it stands now; a moving one may look wrong."""
        facts = Facts(self._xid)
        async with self._reader.database("order").snapshot() as tx:
            facts.order = (await read_orders(tx, [self._xid])).get(self._xid)
        async for entry in SimulatorBooks(self._http).entries(f"{self._xid}/"):
            facts.add(entry)
        for service in SERVICES:
            if service != "order":
                async with self._reader.database(service).snapshot() as tx:
                    span = Span.of(f"{self._xid}/")
                    async for _, row in stream_rows(tx, service, [span], clock.now()):
                        facts.add(row)
        final = facts.order is not None and facts.order.is_final
        return [
            f"{rule.name} -- {fault.key.removeprefix(f'{self._xid}/')}: {fault.how}"
            for rule in RULES
            if final or rule.name != PROVIDER
            for fault in rule.check(facts)
        ]

    def _events(self) -> list[Event]:
        prefix = f"{self._xid}/"
        causes = Causes(
            {cause: at for run in self._runs for cause, at in run.causes.items()},
            [each for run in self._runs for each in run.local],
        )
        events = [
            *(event for run in self._runs for event in run.events),
            *events_of_rows(self._rows, causes, prefix),
            *events_of_provider(self._entries, prefix),
        ]
        return sorted(_once(events), key=lambda event: event.place)


def _once(events: Sequence[Event]) -> list[Event]:
    """Drop what a run that was reset has copied from the run before."""
    first = {event.model_copy(update={"run": 0}).model_dump_json(): event for event in events[::-1]}
    return [event for event in events if first[_mark(event)] is event]


def _mark(event: Event) -> str:
    return event.model_copy(update={"run": 0}).model_dump_json()


@asynccontextmanager
async def _provider(
    settings: Settings, given: httpx.AsyncClient | None
) -> AsyncIterator[httpx.AsyncClient]:
    if given is not None:
        yield given
        return
    url, patience = settings.provider.url, settings.provider.timeout_seconds
    async with httpx.AsyncClient(base_url=url, timeout=patience, trust_env=False) as http:
        yield http
