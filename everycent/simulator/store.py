"""The simulator's books: one SQLite file, one thread that touches it, full sync on every commit."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from everycent import clock

T = TypeVar("T")
Transaction = sqlite3.Connection

_SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS intent (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    reference TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('requires_confirmation', 'requires_action', 'authorised',
        'captured', 'cancelled', 'declined', 'expired')),
    method TEXT NOT NULL CHECK (method IN ('card', 'redirect')),
    capture TEXT NOT NULL CHECK (capture IN ('manual', 'automatic')),
    currency TEXT NOT NULL,
    amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
    captured_minor INTEGER NOT NULL DEFAULT 0
        CHECK (captured_minor = 0 OR state = 'captured' AND captured_minor <= amount_minor),
    refunded_minor INTEGER NOT NULL DEFAULT 0
        CHECK (refunded_minor BETWEEN 0 AND captured_minor),
    decline_code TEXT,
    created_at TEXT NOT NULL,
    authorised_until TEXT
);
CREATE INDEX IF NOT EXISTS intent_by_reference ON intent (reference);
CREATE INDEX IF NOT EXISTS intent_by_expiry ON intent (authorised_until) WHERE state = 'authorised';
CREATE TABLE IF NOT EXISTS movement (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    intent_id TEXT NOT NULL REFERENCES intent (id),
    kind TEXT NOT NULL CHECK (kind IN ('capture', 'refund')),
    state TEXT NOT NULL CHECK (state IN ('succeeded', 'failed')),
    reference TEXT NOT NULL,
    amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
    fee_minor INTEGER NOT NULL CHECK (fee_minor >= 0),
    at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS movement_by_reference ON movement (reference);
CREATE INDEX IF NOT EXISTS movement_by_day ON movement (at);
CREATE TABLE IF NOT EXISTS idempotency_key (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    expires_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS event_by_reference ON event (json_extract(body, '$.intent.reference'));
CREATE TABLE IF NOT EXISTS delivery (
    seq INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL REFERENCES event (id),
    due REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'given_up')),
    last_answer TEXT
);
CREATE INDEX IF NOT EXISTS delivery_due ON delivery (due) WHERE state = 'pending';
CREATE TABLE IF NOT EXISTS fault (
    id INTEGER PRIMARY KEY,
    operation TEXT NOT NULL,
    reference TEXT,
    kind TEXT NOT NULL,
    code TEXT,
    seconds REAL NOT NULL,
    times_left INTEGER,
    ends REAL
);
CREATE TABLE IF NOT EXISTS planted (reference TEXT PRIMARY KEY);
"""


class Store:
    """Runs each piece of work as one durable transaction, one after the other."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="books")
        # Autocommit mode: every transaction below is opened and closed by us.
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=5
        )
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)

    async def run(self, work: Callable[[Transaction], T]) -> T:
        """Do the work in one transaction; what it wrote has reached the disk when this returns."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._transact, work)

    def close(self) -> None:
        """Finish the work in hand and close the file."""
        self._thread.shutdown(wait=True)
        self._connection.close()

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        tx = self._connection
        tx.execute("BEGIN IMMEDIATE")
        try:
            result = work(tx)
            tx.execute("COMMIT")
        finally:
            if tx.in_transaction:
                tx.execute("ROLLBACK")
        return result


def read_setting(tx: Transaction, name: str) -> str | None:
    """Return a setting of the simulator, or None when it was never made."""
    row = tx.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row["value"])


def write_setting(tx: Transaction, name: str, value: str | None) -> None:
    """Make a setting, or take it back with None."""
    tx.execute("DELETE FROM setting WHERE name = ?", (name,))
    if value is not None:
        tx.execute("INSERT INTO setting (name, value) VALUES (?, ?)", (name, value))


def read_clock(tx: Transaction) -> datetime:
    """Return the simulator's time: the wall clock plus what was set through the admin API."""
    return clock.now() + timedelta(seconds=float(read_setting(tx, "clock_offset") or 0))


def as_text(moment: datetime) -> str:
    """Write a UTC moment so that text order is time order."""
    return moment.isoformat(timespec="microseconds")
