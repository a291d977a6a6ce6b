"""A simulator in this process, its webhooks caught, and the real gateway in front of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from everycent.gateways.payment_provider import HttpPaymentProvider, Intent
from everycent.simulator.api import create_app
from everycent.simulator.desk import Options

OPTIONS = Options(webhook_ladder=(0.01, 0.02), idempotency_lifetime=timedelta(hours=24))


@dataclass
class Rig:
    """What a test needs to talk to the simulator and to see its webhooks."""

    http: httpx.AsyncClient
    provider: HttpPaymentProvider
    webhooks: list[tuple[dict[str, Any], httpx.Request]] = field(default_factory=list)
    webhook_statuses: list[int] = field(default_factory=list)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers=headers)

    async def rule(self, **rule: Any) -> None:
        (await self.post("/admin/faults", rule)).raise_for_status()

    async def open(self, key: str = "t/o-1/pay", **changes: Any) -> Intent:
        wanted: dict[str, Any] = {
            "amount_minor": 2_933, "currency": "EUR", "method": "card", "card_token": "tok_visa",
            "capture": "manual", "deadline_seconds": 5,
        }  # fmt: skip
        answer = await self.provider.create_intent(key, **{**wanted, **changes})
        assert isinstance(answer, Intent)
        return answer

    async def authorised(self, key: str = "t/o-1/pay", **changes: Any) -> Intent:
        opened = await self.open(key, **changes)
        answer = await self.provider.confirm(opened.provider_id, key=key, deadline_seconds=5)
        assert isinstance(answer, Intent)
        assert answer.state == "authorised"
        return answer

    async def captured(self, key: str = "t/o-1/pay", **changes: Any) -> Intent:
        held = await self.authorised(key, **changes)
        answer = await self.provider.capture(
            held.provider_id, key=key, amount_minor=held.amount_minor, deadline_seconds=5
        )
        assert isinstance(answer, Intent)
        return answer

    async def look(self, key: str = "t/o-1/pay") -> Intent:
        answer = await self.provider.look_up(key, deadline_seconds=5)
        assert isinstance(answer, Intent)
        return answer

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(30):
            while not await condition():
                await asyncio.sleep(0.01)

    async def until_webhooks(self, count: int) -> list[dict[str, Any]]:
        async def arrived() -> bool:
            return len(self.webhooks) >= count

        await self.until(arrived)
        return [event for event, _ in self.webhooks]

    def catch(self, request: httpx.Request) -> httpx.Response:
        self.webhooks.append((json.loads(request.content), request))
        return httpx.Response(self.webhook_statuses.pop(0) if self.webhook_statuses else 200)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    caught: list[Rig] = []
    catcher = httpx.MockTransport(lambda request: caught[0].catch(request))
    app: FastAPI = create_app(
        tmp_path / "store.db", OPTIONS, webhook_client=httpx.AsyncClient(transport=catcher)
    )
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://provider",
            headers={"Authorization": f"Bearer {OPTIONS.api_key}"},
        ) as http,
    ):
        provider = HttpPaymentProvider(http, api_key=OPTIONS.api_key, guard=lambda: None)
        caught.append(Rig(http, provider))
        yield caught[0]
