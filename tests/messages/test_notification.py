"""Another system is told, by a ladder of tries; what it did not hear it can ask for."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from sqlalchemy import text

from everycent import clock as wall
from everycent.database import lanes
from everycent.database.engine import Database, assert_no_transaction
from everycent.database.reads import Reader
from everycent.domain.messaging import Ladder
from everycent.gateways.notification import NotificationSink, is_signed, signature
from everycent.settings import NotifySettings, ServiceName, Settings
from starters.notifications import create_app
from tests.conftest import NOON
from tests.messages.conftest import Clock, Shop, event, publish
from workers.relay import Relay

Pools = dict[ServiceName, Database]
SECRET = "a secret of both sides"
OTHER = "notify:erp"


@dataclass
class Erp:
    """The other system, a real web application; it answers as it is told and checks signatures."""

    status: int = 200
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    asked: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/hook")
        async def hook(request: Request) -> Response:
            body = await request.body()
            header = request.headers["everycent-signature"]
            now = int(wall.now().timestamp())
            assert is_signed(SECRET, header, body, seconds_now=now)
            self.asked += 1
            if self.status == 200:
                self.heard.append((request.headers["everycent-key"], body))
            return Response(status_code=self.status)

        return app


@pytest.fixture
def erp() -> Erp:
    return Erp()


@pytest.fixture
async def sink(erp: Erp) -> AsyncIterator[NotificationSink]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(erp.app())) as http:
        yield NotificationSink(
            http, url="http://erp/hook", secret=SECRET, ladder=Ladder(), timeout_seconds=5,
            guard=assert_no_transaction,
        )  # fmt: skip


def relay(pools: Pools, sink: NotificationSink, clock: Clock) -> Relay:
    return Relay("order", pools["order"], {OTHER: sink}, holder="r", now=clock)


async def row(pools: Pools, tenant: str, name: str = "closed") -> Any:
    async with pools["order"].transaction() as tx:
        found = await tx.execute(
            text("SELECT * FROM outbox WHERE key = :k"), {"k": f"{tenant}/o-1/{name}"}
        )
        return found.one()


@pytest.mark.requirement("AC11.5")
async def test_the_ladder_is_climbed_step_by_step_and_then_nothing_more_is_tried(
    databases: Pools, tenant: str, clock: Clock, erp: Erp, sink: NotificationSink
) -> None:
    """1 min, 5 min, 15 min, 1 h, 6 h; not a second before its time, and not a seventh time.

    Red when: a step of the ladder is left out, or it begins anew at its end.
    """
    erp.status = 503
    carrier = relay(databases, sink, clock)
    await publish(databases["order"], event(tenant, "closed", to=OTHER))
    await carrier.run_pass()
    assert erp.asked == 1
    for tries, minutes in enumerate((1, 5, 15, 60, 360), start=2):
        clock.move(seconds=minutes * 60 - 1)
        await carrier.run_pass()
        assert erp.asked == tries - 1, f"too early, before {minutes} min"
        clock.move(seconds=1)
        await carrier.run_pass()
        assert erp.asked == tries
    clock.move(days=30)
    assert await carrier.run_pass() == 0
    dead = await row(databases, tenant)
    assert (erp.asked, dead.state, dead.attempts, dead.last_error) == (6, "DEAD", 6, "answered 503")


@pytest.mark.requirement("AC11.5")
async def test_what_was_not_heard_can_be_asked_for(
    databases: Pools, settings: Settings, tenant: str, clock: Clock, erp: Erp,
    sink: NotificationSink,
) -> None:  # fmt: skip
    """By the other system's own signature, only what is meant for it, heard or not.

    Red when: a dead notification is left out of the answer, or a signature is not looked at.
    """
    erp.status = 404
    carrier = relay(databases, sink, clock)
    await publish(databases["order"], event(tenant, "closed", to=OTHER))
    await publish(databases["order"], event(tenant, "secret", "o-2", to="notify:another"))
    await carrier.run_pass()
    clock.move(hours=10)
    reader = Reader(settings)
    others = {"erp": NotifySettings(url="http://erp/hook", secret=SECRET)}
    api = create_app(reader, others, now=clock)
    since = (NOON - timedelta(seconds=1)).isoformat().replace("+00:00", "Z")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://us") as http:

        async def ask(since: str, secret: str = SECRET, at: datetime | None = None) -> Any:
            path = f"/notifications/erp?since={since}"
            signed = signature(secret, int((at or clock()).timestamp()), path.encode())
            return await http.get(path, headers={"Everycent-Signature": signed})

        answer = (await ask(since)).json()
        mine = [each for each in answer["events"] if each["key"].startswith(tenant)]
        assert [(e["key"].split("/", 1)[1], e["heard"]) for e in mine] == [("o-1/closed", False)]
        assert [e for e in answer["events"] if "secret" in e["key"]] == []
        again = (await ask(answer["until"])).json()
        assert again["events"] == []
        assert (await ask(since, secret="a secret of nobody here")).status_code == 401
        assert (await ask(since, at=clock() - timedelta(minutes=6))).status_code == 401
        unsigned = await http.get(f"/notifications/erp?since={since}")
        assert unsigned.status_code == 401
    await reader.close()


async def test_an_answer_is_complete_up_to_the_time_it_names(
    databases: Pools, settings: Settings, tenant: str, clock: Clock
) -> None:
    """A row may be written a little after its time; the newest are told when none can come more."""
    from everycent.database.message_reads import SETTLED, told

    reader = Reader(settings)
    begin = NOON - timedelta(seconds=1)
    clock.move(seconds=30)
    page = await told(reader, "erp", since=begin, now=clock())
    assert (page.events, page.until) == ((), begin)
    await publish(databases["order"], event(tenant, "closed", to=OTHER))  # Of NOON, written late.
    page = await told(reader, "erp", since=page.until, now=NOON + SETTLED)
    assert [each.key for each in page.events] == [f"{tenant}/o-1/closed"]
    await reader.close()


async def test_one_that_is_not_heard_holds_up_no_later_one_and_can_be_replayed(
    databases: Pools, tenant: str, clock: Clock, erp: Erp, sink: NotificationSink
) -> None:
    erp.status = 500
    carrier = relay(databases, sink, clock)
    await publish(databases["order"], event(tenant, "closed", to=OTHER))
    for _ in range(6):
        await carrier.run_pass()
        clock.move(hours=6)
    erp.status = 200
    await publish(databases["order"], event(tenant, "refunded", to=OTHER))
    await carrier.run_pass()
    assert [key.split("/")[-1] for key, _ in erp.heard] == ["refunded"]
    async with databases["order"].transaction() as tx:
        await lanes.replay_sent(tx, [f"{tenant}/o-1/closed"], at=clock())
    await carrier.run_pass()
    assert [key.split("/")[-1] for key, _ in erp.heard] == ["refunded", "closed"]
    assert (await row(databases, tenant)).state == "CONSUMED"


async def test_the_end_of_an_order_is_told(
    shop: Shop, clock: Clock, erp: Erp, sink: NotificationSink
) -> None:
    await shop.stock(5)
    order = shop.by_card()
    await shop.start(order)
    await shop.unfinished()
    clock.move(minutes=10)  # The relays of the shop do not know this system.
    while await relay(dict(shop.databases), sink, clock).run_pass():
        pass
    [(key, body)] = erp.heard
    assert key == f"{shop.tenant}/o-1/order.closed"
    assert b'"status":"CONFIRMED"' in body


@pytest.mark.parametrize("broken", ["", "t=x,v1=y", "t=1", "v1=abc", "t=١,v1=x"])
def test_what_is_no_signature_is_none(broken: str) -> None:
    assert not is_signed(SECRET, broken, b"x", seconds_now=1)


def test_a_signature_is_of_one_body_one_secret_and_five_minutes() -> None:
    signed = signature(SECRET, 1000, b"body")
    assert is_signed(SECRET, signed, b"body", seconds_now=1300)
    assert not is_signed(SECRET, signed, b"body", seconds_now=1301)
    assert not is_signed(SECRET, signed, b"another", seconds_now=1000)
    assert not is_signed("another secret, as long", signed, b"body", seconds_now=1000)
