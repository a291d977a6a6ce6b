"""The payment gateway: what each thing on the wire means for the caller (design rules 6 and 10)."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from everycent.errors import Bug, EverycentError, KeyReused, Transient, Unknown, Unreachable
from everycent.gateways.payment_provider import (
    Declined,
    HttpPaymentProvider,
    Intent,
    NotFound,
    PaymentProvider,
    Refund,
    Refused,
    Several,
)

KEY = "t/o-1/pay"
INTENT = {
    "id": "int_1",
    "reference": KEY,
    "state": "authorised",
    "amount_minor": 100,
    "currency": "EUR",
    "captured_minor": 0,
    "refunded_minor": 0,
    "a_field_of_next_year": True,
}
Wire = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def test_a_closed_port_is_unreachable_surely_not_sent() -> None:
    with socket.socket() as taken:  # Bound and not listening: nobody else can open it meanwhile.
        taken.bind(("127.0.0.1", 0))
        async with _client(f"http://127.0.0.1:{taken.getsockname()[1]}") as provider:
            with pytest.raises(Unreachable):
                await _open(provider)
            with pytest.raises(Unreachable):
                await provider.look_up(KEY, deadline_seconds=1)


async def test_a_connection_that_never_opens_is_unreachable() -> None:
    def full(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("no route", request=request)

    async with _client("http://provider", httpx.MockTransport(full)) as provider:
        with pytest.raises(Unreachable):
            await _open(provider)


@pytest.mark.requirement("AC18.2")
@pytest.mark.parametrize("how", ["silence", "hangs up", "half an answer", "drips"])
async def test_sent_without_a_full_answer_is_unknown(how: str) -> None:
    """Whatever happened after the request was sent, the caller must not take it for a no.

    Red when: a read time-out, a closed connection or a cut answer becomes Transient.
    """

    async def wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if how in ("half an answer", "drips"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
        while how == "drips":  # Each wait is short; only the whole deadline ends it.
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)
        if how == "silence":
            await reader.read()
        writer.close()

    async with _wired(wire) as provider:
        async with asyncio.timeout(20):
            with pytest.raises(Unknown):
                await _open(provider, deadline_seconds=1)
            with pytest.raises(Transient):  # A look-up moves nothing: try again.
                await provider.look_up(KEY, deadline_seconds=0.3)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (500, "internal", Unknown),
        (502, "", Unknown),
        (503, "", Unknown),  # A proxy's 503 does not say that nothing was done.
        (503, "down", Transient),
        (504, "no_answer", Unknown),
        (408, "", Unknown),
        (307, "", Unknown),
        (429, "too_many_requests", Transient),
        (400, "invalid_request", Bug),
        (401, "bad_api_key", Bug),
        (404, "not_found", Bug),
        (422, "idempotency_key_reused", KeyReused),
    ],
)
async def test_each_status_has_one_class(
    status: int, code: str, error: type[EverycentError]
) -> None:
    body = {"error": {"code": code, "message": "…"}} if code else None
    async with _answering(status, body) as provider:
        with pytest.raises(error) as told:
            await _open(provider)
    assert type(told.value) is error


async def test_a_decline_and_a_refusal_are_values_with_the_payment_as_it_stands() -> None:
    for status, kind in ((402, Declined), (409, Refused)):
        body = {"error": {"code": "some_code", "message": "…", "intent": INTENT}}
        async with _answering(status, body) as provider:
            answer = await provider.void("int_1", key=KEY, deadline_seconds=1)
        assert isinstance(answer, kind)
        assert answer.code == "some_code"
        assert answer.intent is not None
        assert answer.intent.state == "authorised"


@pytest.mark.parametrize("status", [200, 402, 409])
@pytest.mark.parametrize("text", ["", "<html>", "[]", "{}", '{"error": 5}', '{"state": "new"}'])
async def test_an_answer_that_cannot_be_read_is_unknown(status: int, text: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=text))
    async with _client("http://provider", transport) as provider:
        with pytest.raises(Unknown):
            await _open(provider)


@pytest.mark.parametrize("text", ["", "<html>", "{}", '{"data": 1}', '{"data": [{}]}'])
async def test_a_look_up_that_cannot_be_read_is_no_not_found(text: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=text))
    async with _client("http://provider", transport) as provider:
        for look_up in (provider.look_up, provider.look_up_refund):
            with pytest.raises(Transient):
                await look_up(KEY, deadline_seconds=1)
        with pytest.raises(Transient):
            await provider.read_intent("int_1", deadline_seconds=1)


async def test_look_ups_tell_none_one_and_several() -> None:
    for data, expected in (([], NotFound), ([INTENT], Intent), ([INTENT, INTENT], Several)):
        async with _answering(200, {"data": data}) as provider:
            assert isinstance(await provider.look_up(KEY, deadline_seconds=1), expected)
    async with _answering(404, {"error": {"code": "not_found", "message": "…"}}) as provider:
        assert isinstance(await provider.read_intent("int_1", deadline_seconds=1), NotFound)


async def test_a_refund_that_succeeded_is_found_before_one_that_failed() -> None:
    refund = {
        "id": "ref_1", "intent_id": "int_1", "reference": KEY, "currency": "EUR",
        "amount_minor": 5,
    }  # fmt: skip
    data = [{**refund, "state": "failed"}, {**refund, "state": "succeeded"}]
    async with _answering(200, {"data": data}) as provider:
        found = await provider.look_up_refund(KEY, deadline_seconds=1)
    assert isinstance(found, Refund)
    assert found.state == "succeeded"


@pytest.mark.parametrize("change", [{"reference": "t/o-2/pay"}, {"amount_minor": 1}], ids=str)
async def test_an_answer_about_another_payment_is_a_bug(change: dict[str, Any]) -> None:
    async with _answering(200, {**INTENT, **change}) as provider:
        with pytest.raises(Bug):
            await _open(provider)


async def test_no_call_is_sent_while_a_transaction_is_open() -> None:
    sent: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json=INTENT)

    def transaction_is_open() -> None:
        raise AssertionError("a network call inside a transaction")

    transport = httpx.MockTransport(note)
    async with _client("http://provider", transport, guard=transaction_is_open) as provider:
        for call in _every_call(provider):
            with pytest.raises(AssertionError):
                await call
    assert sent == []


async def test_every_call_carries_the_key_and_each_operation_its_own() -> None:
    sent: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(409, json={"error": {"code": "any", "message": "…"}})

    async with _client("http://provider", httpx.MockTransport(note)) as provider:
        for call in _every_call(provider):
            with contextlib.suppress(Bug, Transient):  # The look-ups cannot use this answer.
                assert isinstance(await call, Refused)
    keys = [request.headers["Idempotency-Key"] for request in sent if request.method == "POST"]
    assert keys == [
        f"{KEY}:{operation}" for operation in ("create", "confirm", "capture", "void", "refund")
    ]
    assert {request.headers["Authorization"] for request in sent} == {"Bearer sk_of_this_test"}
    assert json.loads(sent[0].content)["reference"] == KEY
    assert len(sent) == 8  # No retries here.


def _every_call(provider: PaymentProvider) -> list[Awaitable[object]]:
    return [
        _open(provider),
        provider.confirm("int_1", key=KEY, deadline_seconds=1),
        provider.capture("int_1", key=KEY, amount_minor=1, deadline_seconds=1),
        provider.void("int_1", key=KEY, deadline_seconds=1),
        provider.refund("int_1", key=KEY, amount_minor=1, deadline_seconds=1),
        provider.look_up(KEY, deadline_seconds=1),
        provider.look_up_refund(KEY, deadline_seconds=1),
        provider.read_intent("int_1", deadline_seconds=1),
    ]


async def _open(provider: PaymentProvider, *, deadline_seconds: float = 1) -> object:
    return await provider.create_intent(
        KEY, amount_minor=100, currency="EUR", method="card", card_token=None,
        capture="manual", deadline_seconds=deadline_seconds,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _client(
    url: str,
    transport: httpx.AsyncBaseTransport | None = None,
    guard: Callable[[], None] = lambda: None,
) -> AsyncIterator[HttpPaymentProvider]:
    async with httpx.AsyncClient(base_url=url, transport=transport, trust_env=False) as client:
        yield HttpPaymentProvider(client, api_key="sk_of_this_test", guard=guard)


@contextlib.asynccontextmanager
async def _answering(status: int, body: object) -> AsyncIterator[HttpPaymentProvider]:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    async with _client("http://provider", transport) as provider:
        yield provider


@contextlib.asynccontextmanager
async def _wired(wire: Wire) -> AsyncIterator[HttpPaymentProvider]:
    async def safely(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await wire(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client gave up, as it should.
        finally:
            writer.close()

    server = await asyncio.start_server(safely, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        async with _client(f"http://127.0.0.1:{port}") as provider:
            yield provider
    finally:
        server.close()
