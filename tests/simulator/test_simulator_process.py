"""The simulator as a process of its own: real HTTP, real kills."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from everycent.errors import Unknown, Unreachable
from everycent.gateways.payment_provider import (
    SIGNATURE_HEADER,
    HttpPaymentProvider,
    Intent,
    NotFound,
    Refund,
)

KEY = "t/o-1/pay"
_PROGRAM = (
    "import sys; from pathlib import Path; from everycent.simulator.serve import serve;"
    " serve('127.0.0.1', int(sys.argv[1]), Path(sys.argv[2]))"
)


@dataclass
class Simulator:
    """A simulator process on a free port that can be killed and started again."""

    port: int
    store: Path
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        command = [sys.executable, "-c", _PROGRAM, str(self.port), str(self.store)]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        async with asyncio.timeout(20), httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    (await client.get(f"{self.url}/healthz")).raise_for_status()
                    return
                except httpx.TransportError:
                    assert self.process.poll() is None, "the simulator did not start"
                    await asyncio.sleep(0.05)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    simulator = Simulator(port, tmp_path / "a folder" / "store.db")
    yield simulator
    if simulator.process is not None and simulator.process.poll() is None:
        simulator.end(signal.SIGKILL)


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=simulator.url, trust_env=False) as client:
        yield client


@pytest.fixture
def provider(http: httpx.AsyncClient) -> HttpPaymentProvider:
    return HttpPaymentProvider(http, api_key="sk_test_everycent", guard=lambda: None)


async def test_every_answered_movement_survives_kill_9_and_its_key_replays(
    simulator: Simulator, http: httpx.AsyncClient, provider: HttpPaymentProvider
) -> None:
    await simulator.start()
    answered: list[int] = []
    at_once = asyncio.Semaphore(8)

    async def sell(number: int) -> None:
        try:
            async with at_once:
                await _sell(provider, number)
        except (Unknown, Unreachable):
            return
        answered.append(number)
        if len(answered) == 20:
            simulator.end(signal.SIGKILL)  # In the middle of the others' calls.

    await asyncio.gather(*(sell(number) for number in range(60)))
    assert 20 <= len(answered) < 60
    await simulator.start()
    for number in answered:
        found = await provider.look_up(f"t/o-{number}/pay", deadline_seconds=5)
        assert isinstance(found, Intent)
        assert (found.captured_minor, found.refunded_minor) == (100, 40)
    for number in range(60):  # The whole story once more, under the same keys.
        await _sell(provider, number)
    books = (await http.get("/admin/intents")).json()
    assert len(books["data"]) == 60
    assert (books["captured_minor"], books["refunded_minor"]) == (6_000, 2_400)


async def test_sigterm_ends_it_cleanly_even_with_a_call_that_is_never_answered(
    simulator: Simulator, http: httpx.AsyncClient, provider: HttpPaymentProvider
) -> None:
    await simulator.start()
    await _rule(http, kind="timeout_after", operation="create", seconds=60)
    calling = asyncio.create_task(_open(provider, deadline_seconds=30))
    await _until_found(provider)
    assert await asyncio.to_thread(simulator.end, signal.SIGTERM) == 0
    with pytest.raises(Unknown):
        await calling
    with pytest.raises(Unreachable):
        await _open(provider, deadline_seconds=5)


@pytest.mark.requirement("AC18.2")
async def test_a_held_call_is_executed_after_its_client_has_hung_up(
    simulator: Simulator, http: httpx.AsyncClient, provider: HttpPaymentProvider
) -> None:
    """Over a real connection: the client's time-out closes it, the work is done all the same.

    Red when: the server drops a request with its connection.
    """
    await simulator.start()
    await _rule(http, kind="hold", operation="create", seconds=3, times=1)
    with pytest.raises(Unknown):
        await _open(provider, deadline_seconds=1)
    assert isinstance(await provider.look_up(KEY, deadline_seconds=5), NotFound)
    await _until_found(provider)


async def test_an_undelivered_webhook_survives_kill_9(
    simulator: Simulator, http: httpx.AsyncClient, provider: HttpPaymentProvider
) -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await received.put(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    await simulator.start()
    async with await asyncio.start_server(receive, "127.0.0.1", 0) as shop:
        port = shop.sockets[0].getsockname()[1]
        await http.post("/admin/webhook", json={"url": f"http://127.0.0.1:{port}/hooks"})
        await _rule(http, kind="late_webhook", operation="create", seconds=1)
        await _open(provider, deadline_seconds=5)
        simulator.end(signal.SIGKILL)
        assert received.empty()
        await simulator.start()
        async with asyncio.timeout(30):
            head = await received.get()
    assert SIGNATURE_HEADER.lower().encode() in head.lower()


async def _open(provider: HttpPaymentProvider, *, deadline_seconds: float) -> Intent:
    answer = await provider.create_intent(
        KEY, amount_minor=100, currency="EUR", method="card", card_token=None,
        capture="manual", deadline_seconds=deadline_seconds,
    )  # fmt: skip
    assert isinstance(answer, Intent)
    return answer


async def _sell(provider: HttpPaymentProvider, number: int) -> None:
    key = f"t/o-{number}/pay"
    intent = await provider.create_intent(
        key, amount_minor=100, currency="EUR", method="card", card_token=None,
        capture="automatic", deadline_seconds=20,
    )  # fmt: skip
    assert isinstance(intent, Intent)
    await provider.confirm(intent.provider_id, key=key, deadline_seconds=20)
    refund = await provider.refund(
        intent.provider_id, key=f"t/o-{number}/refund", amount_minor=40, deadline_seconds=20
    )
    assert isinstance(refund, Refund)


async def _rule(http: httpx.AsyncClient, **rule: Any) -> None:
    (await http.post("/admin/faults", json=rule)).raise_for_status()


async def _until_found(provider: HttpPaymentProvider) -> None:
    async with asyncio.timeout(30):
        while not isinstance(await provider.look_up(KEY, deadline_seconds=5), Intent):
            await asyncio.sleep(0.02)
