"""Events of the simulator and their way out: a stored outbox of signed webhooks."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from everycent import clock
from everycent.simulator.store import Store, Transaction, as_text, read_setting

SIGNATURE_HEADER = "Everypay-Signature"
DEFAULT_LADDER: tuple[float, ...] = (1, 5, 30, 120, 600, 3600, 21600)


def emit(tx: Transaction, kind: str, at: datetime, **facts: Any) -> None:
    """Store an event and, when a webhook URL is configured, its delivery, due at once."""
    event_id = f"evt_{secrets.token_hex(12)}"
    event = {"id": event_id, "kind": kind, "created_at": as_text(at), **facts}
    tx.execute("INSERT INTO event (id, body) VALUES (?, ?)", (event_id, json.dumps(event)))
    if read_setting(tx, "webhook_url"):
        _queue(tx, event_id, delay_seconds=0)


def last_event(tx: Transaction) -> int:
    """Return the number of the newest event, a bookmark for `duplicate_since` and `delay_since`."""
    return int(tx.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0])


def duplicate_since(tx: Transaction, bookmark: int, *, seconds: float) -> None:
    """Deliver the events after the bookmark a second time, so many seconds later."""
    for row in tx.execute("SELECT id FROM event WHERE seq > ?", (bookmark,)).fetchall():
        if read_setting(tx, "webhook_url"):
            _queue(tx, row["id"], delay_seconds=seconds)


def delay_since(tx: Transaction, bookmark: int, *, seconds: float) -> None:
    """Deliver the events after the bookmark so many seconds late."""
    tx.execute(
        "UPDATE delivery SET due = due + ? WHERE event_id IN (SELECT id FROM event WHERE seq > ?)",
        (seconds, bookmark),
    )


def sign(secret: str, body: bytes, *, unix_seconds: int) -> str:
    """Return the signature header: HMAC-SHA256 over `<timestamp>.<body>`."""
    signed = str(unix_seconds).encode() + b"." + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={unix_seconds},v1={digest}"


class Deliverer:
    """Sends due webhooks until each got a 2xx answer or its ladder of retries is spent."""

    def __init__(self, store: Store, client: httpx.AsyncClient, ladder: Sequence[float]) -> None:
        self._store = store
        self._client = client
        self._ladder = ladder
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look at the outbox now."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver for ever; the outbox is stored, so a restart goes on where this was killed."""
        while True:
            self._wake.clear()
            due, seconds_to_next = await self._store.run(_read_due)
            await asyncio.gather(*(self._deliver(row) for row in due))
            if not due:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), seconds_to_next)

    async def _deliver(self, row: sqlite3.Row) -> None:
        body = str(row["body"]).encode()
        # The signature carries the wall clock: the receiver's tolerance knows no simulated time.
        signature = sign(row["secret"], body, unix_seconds=int(clock.now().timestamp()))
        headers = {SIGNATURE_HEADER: signature, "Content-Type": "application/json"}
        try:
            response = await self._client.post(row["url"], content=body, headers=headers, timeout=5)
            answer, done = str(response.status_code), response.is_success
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            answer, done = type(error).__name__, False
        await self._store.run(lambda tx: self._note(tx, row, answer, done))

    def _note(self, tx: Transaction, row: sqlite3.Row, answer: str, done: bool) -> None:
        attempts = int(row["attempts"]) + 1
        spent = attempts > len(self._ladder)
        state = "delivered" if done else "given_up" if spent else "pending"
        due = clock.now().timestamp() + (self._ladder[attempts - 1] if state == "pending" else 0)
        tx.execute(
            "UPDATE delivery SET attempts = ?, state = ?, due = ?, last_answer = ? WHERE seq = ?",
            (attempts, state, due, answer, row["seq"]),
        )


def _queue(tx: Transaction, event_id: str, *, delay_seconds: float) -> None:
    due = clock.now().timestamp() + delay_seconds
    tx.execute("INSERT INTO delivery (event_id, due) VALUES (?, ?)", (event_id, due))


def _read_due(tx: Transaction) -> tuple[list[sqlite3.Row], float | None]:
    now = clock.now().timestamp()
    url, secret = read_setting(tx, "webhook_url"), read_setting(tx, "webhook_secret")
    if url is None:
        return [], None
    rows = tx.execute(
        "SELECT d.*, e.body, ? AS url, ? AS secret FROM delivery d"
        " JOIN event e ON e.id = d.event_id"
        " WHERE d.state = 'pending' AND d.due <= ? ORDER BY d.due, d.seq LIMIT 20",
        (url, secret, now),
    ).fetchall()
    following = tx.execute("SELECT min(due) FROM delivery WHERE state = 'pending'").fetchone()[0]
    return rows, None if following is None else max(following - now, 0.01)
