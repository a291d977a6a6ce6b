"""The simulator as a web application: the merchant's API, the customer's page, the admin's API."""

import asyncio
import contextlib
import hashlib
import hmac
import html
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from everycent.simulator import admin, intents, statements
from everycent.simulator.desk import Call, Desk, Options
from everycent.simulator.events import Deliverer
from everycent.simulator.intents import Answer, Problem, failure
from everycent.simulator.store import Store, Transaction, read_setting, write_setting

Amount = Annotated[int, Field(strict=True, gt=0, le=10**15)]
Reference = Annotated[str, Field(min_length=1, max_length=250)]
IdempotencyKey = Annotated[str, Header(min_length=1, max_length=300)]


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WantedIntent(_Wanted):
    """A payment to be opened."""

    amount_minor: Amount
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    reference: Reference
    method: Literal["card", "redirect"] = "card"
    card_token: str | None = None
    capture: Literal["manual", "automatic"] = "manual"


class WantedCapture(_Wanted):
    """How much of the authorised money to take; all of it if nothing is said."""

    amount_minor: Amount | None = None


class WantedRefund(_Wanted):
    """How much to give back, under which reference of the merchant."""

    amount_minor: Amount
    reference: Reference


class Nothing(_Wanted):
    """A body without fields."""


def create_app(
    store_path: Path,
    options: Options | None = None,
    *,
    webhook_client: httpx.AsyncClient | None = None,
) -> FastAPI:
    """Build the simulator over its store file; `webhook_client` is how its webhooks travel."""
    options = options or Options()
    store = Store(store_path)
    client = webhook_client or httpx.AsyncClient(trust_env=False)
    deliverer = Deliverer(store, client, options.webhook_ladder)
    desk = Desk(store, options, deliverer.wake)

    @contextlib.asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        await store.run(lambda tx: _prepare(tx, options))
        delivery = asyncio.create_task(deliverer.run())
        try:
            yield
        finally:
            desk.close()
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)
            await client.aclose()
            store.close()

    app = FastAPI(title="Payment provider simulator", lifespan=living)
    app.state.desk = desk
    app.state.deliverer = deliverer
    app.include_router(_merchant)
    app.include_router(_customer)
    app.include_router(admin.router)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(Problem, _tell_problem)
    return app


def _prepare(tx: Transaction, options: Options) -> None:
    write_setting(tx, "public_url", options.public_url or None)
    if read_setting(tx, "webhook_secret") is None:
        write_setting(tx, "webhook_secret", options.webhook_secret)


def _check_api_key(request: Request, authorization: Annotated[str, Header()] = "") -> None:
    expected = f"Bearer {_desk(request).options.api_key}"
    if not hmac.compare_digest(authorization.encode(), expected.encode()):
        raise Problem(401, "bad_api_key", "the API key is missing or wrong")


_merchant = APIRouter(prefix="/v1", dependencies=[Depends(_check_api_key)])
_customer = APIRouter()


@_merchant.post("/intents")
async def create(
    request: Request, wanted: WantedIntent, idempotency_key: IdempotencyKey
) -> Response:
    """Open a payment."""
    body = wanted.model_dump()
    call = Call(
        operation="create",
        action=lambda tx, moment: intents.create(tx, moment, body),
        reference=wanted.reference,
        card_token=wanted.card_token,
        key=idempotency_key,
        fingerprint=_fingerprint(request, wanted),
    )
    return await _take(request, call)


@_merchant.post("/intents/{intent_id}/confirm")
async def confirm(
    request: Request, intent_id: str, idempotency_key: IdempotencyKey, wanted: Nothing | None = None
) -> Response:
    """Ask the card for the money, or send the customer to the redirect page."""
    call = Call(
        operation="confirm",
        action=lambda tx, moment: intents.confirm(tx, moment, intent_id),
        intent_id=intent_id,
        key=idempotency_key,
        fingerprint=_fingerprint(request, wanted),
    )
    return await _take(request, call)


@_merchant.post("/intents/{intent_id}/capture")
async def capture(
    request: Request,
    intent_id: str,
    idempotency_key: IdempotencyKey,
    wanted: WantedCapture | None = None,
) -> Response:
    """Take the authorised money."""
    amount_minor = wanted.amount_minor if wanted else None
    call = Call(
        operation="capture",
        action=lambda tx, moment: intents.capture(tx, moment, intent_id, amount_minor),
        intent_id=intent_id,
        key=idempotency_key,
        fingerprint=_fingerprint(request, wanted),
    )
    return await _take(request, call)


@_merchant.post("/intents/{intent_id}/cancel")
async def cancel(
    request: Request, intent_id: str, idempotency_key: IdempotencyKey, wanted: Nothing | None = None
) -> Response:
    """Give up a payment that was not captured."""
    call = Call(
        operation="cancel",
        action=lambda tx, moment: intents.cancel(tx, moment, intent_id),
        intent_id=intent_id,
        key=idempotency_key,
        fingerprint=_fingerprint(request, wanted),
    )
    return await _take(request, call)


@_merchant.post("/intents/{intent_id}/refunds")
async def refund(
    request: Request, intent_id: str, wanted: WantedRefund, idempotency_key: IdempotencyKey
) -> Response:
    """Give captured money back."""
    call = Call(
        operation="refund",
        action=lambda tx, moment: intents.refund(
            tx, moment, intent_id, wanted.amount_minor, wanted.reference
        ),
        intent_id=intent_id,
        reference=wanted.reference,
        key=idempotency_key,
        fingerprint=_fingerprint(request, wanted),
    )
    return await _take(request, call)


@_merchant.get("/intents/{intent_id}")
async def look_up(request: Request, intent_id: str) -> Response:
    """Return how a payment stands."""
    action = _plain(intent_id)
    return await _take(request, Call(operation="lookup", action=action, intent_id=intent_id))


@_merchant.get("/intents")
async def look_up_by_reference(request: Request, reference: Annotated[str, Query()]) -> Response:
    """Return the payments opened under a reference of the merchant."""
    call = Call(
        operation="lookup",
        action=lambda tx, moment: intents.look_up_by_reference(tx, moment, reference),
        reference=reference,
    )
    return await _take(request, call)


@_merchant.get("/refunds")
async def look_up_refunds(request: Request, reference: Annotated[str, Query()]) -> Response:
    """Return the refunds made under a reference of the merchant."""
    call = Call(
        operation="lookup",
        action=lambda tx, _: intents.look_up_refunds(tx, reference),
        reference=reference,
    )
    return await _take(request, call)


@_merchant.get("/statements/{date}")
async def statement(request: Request, date: str) -> Response:
    """Return the captures and refunds of one UTC day as CSV."""
    day = statements.parse_day(date)
    text = await _desk(request).store.run(lambda tx: statements.write_statement(tx, day))
    return Response(text, media_type="text/csv")


@_customer.post("/v1/intents/{intent_id}/customer_pays")
async def customer_pays(request: Request, intent_id: str) -> Response:
    """Pay as the customer does; asks for no API key, the customer has none."""
    return await _take(request, _customer_call(intent_id))


@_customer.get("/pay/{intent_id}")
async def show_page(request: Request, intent_id: str) -> Response:
    """Show the customer what is to be paid, and a button."""
    call = Call(operation="lookup", action=_plain(intent_id))
    return _page(await _desk(request).take(request, call))


@_customer.post("/pay/{intent_id}")
async def press_button(request: Request, intent_id: str) -> Response:
    """Pay by the button of the page."""
    return _page(await _desk(request).take(request, _customer_call(intent_id)))


@_customer.get("/healthz")
async def healthz(request: Request) -> Response:
    """Say that the store answers."""
    await _desk(request).store.run(lambda tx: tx.execute("SELECT 1"))
    return JSONResponse({"status": "ok"})


def _customer_call(intent_id: str) -> Call:
    return Call(
        operation="customer_pays",
        action=lambda tx, moment: intents.customer_pays(tx, moment, intent_id),
        intent_id=intent_id,
    )


def _plain(intent_id: str) -> Any:
    return lambda tx, moment: intents.look_up(tx, moment, intent_id)


def _page(answer: Answer) -> Response:
    intent = answer.body.get("error", {}).get("intent") or answer.body
    if "id" not in intent:
        return HTMLResponse("<h1>There is no such payment</h1>", answer.status)
    waits = intent["state"] == "requires_action"
    button = '<form method="post"><button>Pay now</button></form>' if waits else ""
    told = html.escape(
        f"{intent['reference']}: {intent['amount_minor']} minor units of {intent['currency']}"
    )
    title = "Please pay" if waits else f"This payment is {intent['state']}"
    return HTMLResponse(
        f'<!doctype html><html lang="en"><title>{title}</title><h1>{title}</h1>'
        f"<p>{told}</p>{button}</html>",
        answer.status,
    )


async def _take(request: Request, call: Call) -> Response:
    return _as_json(await _desk(request).take(request, call))


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _fingerprint(request: Request, wanted: BaseModel | None) -> str:
    fields = wanted.model_dump(exclude_none=True) if wanted else {}
    text = json.dumps([request.url.path, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(answer: Answer) -> Response:
    return JSONResponse(answer.body, answer.status, headers=answer.headers)


async def _tell_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return _as_json(failure(400, "invalid_request", told))


async def _tell_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _as_json(error.answer)
