"""`explain`: everything that anybody knows of one order, in one line of time.

Temporal's histories, the six databases, the provider's books and what people did are merged: an
effect stands behind the step that caused it. Who does not answer is named, and the others speak.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from temporalio.client import Client
from temporalio.service import RPCError

from everycent import clock
from everycent.database.audit_rows import Span, read_orders, stream_rows
from everycent.database.message_reads import UNFINISHED, extended, messages
from everycent.database.reads import Reader, reading
from everycent.database.story_rows import read_story_rows
from everycent.domain.mode import Mode
from everycent.errors import EverycentError, Unreachable
from everycent.proof.facts import Facts
from everycent.proof.heard import Broken, Heard
from everycent.proof.invariants import PROVIDER, RULES
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.run_story import RunStory, read_runs
from everycent.proof.timeline import Timeline
from everycent.settings import SERVICES, Settings
from starters.client import connect

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
    return (await hear(settings, tenant, order_id, flow, client=client, provider=provider)).told()


async def hear(
    settings: Settings,
    tenant: str,
    order_id: str,
    flow: str = "checkout",
    *,
    client: Client | None = None,
    provider: httpx.AsyncClient | None = None,
) -> Heard:
    """Ask everybody for what they know of an order; see `explain`."""
    heard = Heard(tenant, order_id, f"{flow}/{tenant}/{order_id}")
    async with reading(settings) as reader, _provider(settings, provider) as http:
        await _Asking(reader, http, heard).ask(settings, client)
    return heard


class _Asking:
    """Asks everybody what they know of an order."""

    def __init__(self, reader: Reader, http: httpx.AsyncClient, heard: Heard) -> None:
        self._reader = reader
        self._http = http
        self._heard = heard

    async def ask(self, settings: Settings, client: Client | None) -> None:
        """Ask Temporal, each service and the provider; note who is silent."""
        heard = self._heard
        rows = [
            self._answer(
                service, read_story_rows(self._reader, service, heard.tenant, heard.order_id), []
            )
            for service in SERVICES
        ]
        entries = self._answer("provider", self._provider_says(), [])
        runs = self._answer("temporal", self._temporal_says(settings, client), [])
        heard.entries, heard.runs, *found = await asyncio.gather(entries, runs, *rows)
        heard.rows = [row for of_service in found for row in of_service]
        if len(heard.silent) == len(SERVICES) + 2:
            raise Unreachable(next(iter(heard.silent.values())))
        if not heard.silent and heard.rows:
            heard.broken = await self._answer("the invariants", self._broken_rules(), [])
            unfinished = messages(self._reader, UNFINISHED, xid=heard.xid)
            heard.messages = await self._answer("the messages", unfinished, [])

    async def _answer(self, who: str, asked: Awaitable[T], otherwise: T) -> T:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asked
        except TimeoutError:
            self._heard.silent[who] = f"no answer within {_PATIENCE_SECONDS:.0f} s"
        except _SILENCE as error:
            self._heard.silent[who] = " ".join(str(error).split()) or type(error).__name__
        return otherwise

    async def _temporal_says(self, settings: Settings, client: Client | None) -> list[RunStory]:
        return await read_runs(client or await connect(settings), self._heard.workflow_id)

    async def _provider_says(self) -> list[dict[str, Any]]:
        answer = await self._http.get("/admin/events", params={"prefix": f"{self._heard.xid}/"})
        if answer.status_code == httpx.codes.NOT_FOUND:  # A provider that tells no events.
            return []
        entries: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
        return entries

    async def _broken_rules(self) -> list[Broken]:
        """Judge the order by the audit's rules, as it stands now; a moving one may look wrong."""
        xid = self._heard.xid
        facts = Facts(xid)
        async with self._reader.database("order").snapshot() as tx:
            facts.order = (await read_orders(tx, [xid])).get(xid)
            mixed = facts.order is not None and facts.order.mode is Mode.MIXED
        facts.extends = mixed and xid in await extended(self._reader, [xid])
        async for entry in SimulatorBooks(self._http).entries(f"{xid}/"):
            facts.add(entry)
        for service in SERVICES:
            if service != "order":
                async with self._reader.database(service).snapshot() as tx:
                    span = Span.of(f"{xid}/")
                    async for _, row in stream_rows(tx, service, [span], clock.now()):
                        facts.add(row)
        final = facts.order is not None and facts.order.is_final
        return [
            Broken(rule.name, fault.key.removeprefix(f"{xid}/"), fault.how)
            for rule in RULES
            if final or rule.name != PROVIDER
            for fault in rule.check(facts)
        ]


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
