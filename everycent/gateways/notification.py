"""Tell another system what happened, by HTTP POST with a signature: best effort, then it may ask.

The body is the event as JSON. `Everycent-Key` names it: the same event may come again, and a later
one before it (`number` tells their order). `Everycent-Signature` is `t=<seconds>,v1=<hex>` with the
HMAC-SHA256 of `<seconds>.<body>` under the secret that both know; an old time is to be refused.
Any 2xx is taken as heard.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from datetime import timedelta

import httpx

from everycent import clock
from everycent.domain.messaging import Applied, Delivery, Envelope, Failed, Ladder

FRESH_SECONDS = 300
AT_ONCE = 200  # A relay's batch: its calls wait side by side, or it would run out of time.


class NotificationSink:
    """One address that is told, without an order: what it does not hear holds up nothing else."""

    ordered = False

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        url: str,
        secret: str,
        ladder: Ladder,
        timeout_seconds: float,
        guard: Callable[[], None],
    ) -> None:
        self._http = http
        self._url = url
        self._secret = secret
        self._ladder = ladder
        self._timeout_seconds = timeout_seconds
        self._guard = guard
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def deliver(self, messages: Sequence[Envelope]) -> Sequence[Delivery]:
        """Tell each message by a call of its own."""
        self._guard()
        return await asyncio.gather(*(self._tell(message) for message in messages))

    def patience(self, attempts: int) -> timedelta | None:
        """Return the next step of the ladder; None after the last."""
        return self._ladder.after(attempts)

    async def _tell(self, message: Envelope) -> Delivery:
        body = body_of(message)
        headers = {
            "Content-Type": "application/json",
            "Everycent-Key": message.key,
            "Everycent-Signature": signature(self._secret, int(clock.now().timestamp()), body),
        }
        try:
            async with self._gate:
                answer = await self._http.post(
                    self._url, content=body, headers=headers, timeout=self._timeout_seconds
                )
        except httpx.HTTPError as error:
            return Failed(f"no answer: {error or type(error).__name__}")
        return Applied() if answer.is_success else Failed(f"answered {answer.status_code}")


def body_of(message: Envelope) -> bytes:
    """Return what is sent: the event without our own book-keeping."""
    names = {"key", "aggregate", "number", "type", "schema_version", "at", "payload"}
    told = message.model_dump(mode="json", include=names)
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def is_signed(secret: str, header: str, body: bytes, *, seconds_now: int) -> bool:
    """Tell whether a signature is ours, of this body, and not older than five minutes."""
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    if not parts.get("t", "").isascii() or not parts.get("t", "").isdecimal():
        return False
    told = int(parts["t"])
    fresh = abs(seconds_now - told) <= FRESH_SECONDS
    return fresh and hmac.compare_digest(signature(secret, told, body), header)


def signature(secret: str, seconds: int, body: bytes) -> str:
    """Sign a body as of that time."""
    signed = hmac.new(secret.encode(), str(seconds).encode() + b"." + body, hashlib.sha256)
    return f"t={seconds},v1={signed.hexdigest()}"
