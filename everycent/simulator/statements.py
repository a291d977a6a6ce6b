"""The provider's daily statement: what it took and gave back on one UTC day, as CSV."""

import csv
import io
from datetime import date, timedelta

from everycent.simulator.intents import Problem
from everycent.simulator.store import Transaction

COLUMNS = ("reference", "provider_id", "kind", "amount_minor", "fee_minor", "currency", "at")


def parse_day(text: str) -> date:
    """Read `YYYY-MM-DD`; raises Problem 400 for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Problem(400, "invalid_request", f"{text!r} is not a date YYYY-MM-DD") from None


def write_statement(tx: Transaction, day: date) -> str:
    """Return one row per capture (the intent's id) and refund (its own id), in booking order."""
    rows = tx.execute(
        "SELECT m.reference, CASE m.kind WHEN 'capture' THEN i.id ELSE m.id END, m.kind,"
        " m.amount_minor, m.fee_minor, i.currency, m.at"
        " FROM movement m JOIN intent i ON i.id = m.intent_id"
        " WHERE m.state = 'succeeded' AND m.at >= ? AND m.at < ? ORDER BY m.seq",
        (day.isoformat(), (day + timedelta(days=1)).isoformat()),
    ).fetchall()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(tuple(row) for row in rows)
    return text.getvalue()
