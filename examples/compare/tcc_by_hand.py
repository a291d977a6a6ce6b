"""The coupon of `examples/coupons.py` with nothing of everycent: each trap is the author's own.

It keeps the same promises and passes the same conformance. What makes it long is no business.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

TABLES = (
    """
CREATE TABLE coupon (
    code text PRIMARY KEY,
    free integer NOT NULL CHECK (free >= 0),
    held integer NOT NULL DEFAULT 0 CHECK (held >= 0),
    used integer NOT NULL DEFAULT 0
)""",
    """
CREATE TABLE tcc_log (
    xid text NOT NULL,
    branch text NOT NULL,
    state text NOT NULL CHECK (state IN ('TRIED', 'REFUSED', 'CONFIRMED', 'CANCELLED')),
    request_hash text,
    code text,
    try_answer jsonb,
    end_answer jsonb,
    PRIMARY KEY (xid, branch)
)""",
    """
CREATE FUNCTION tcc_log_moves() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IN ('CONFIRMED', 'CANCELLED') AND NEW.state <> OLD.state
        OR OLD.state = 'REFUSED' AND NEW.state NOT IN ('REFUSED', 'CANCELLED') THEN
        RAISE EXCEPTION '% cannot go from % to %', OLD.xid, OLD.state, NEW.state;
    END IF;
    RETURN NEW;
END $$""",
    "CREATE TRIGGER tcc_log_moves BEFORE UPDATE ON tcc_log"
    " FOR EACH ROW EXECUTE FUNCTION tcc_log_moves()",
)


class CallRefusedError(Exception):
    """A call that must not move anything: late, or about another request."""


@dataclass(frozen=True)
class Call:
    """One call of one branch."""

    xid: str
    branch: str
    code: str = ""


async def try_(tx: AsyncConnection, call: Call) -> dict[str, Any]:
    """Hold one use of the code, once per branch; a repeat gets the first answer."""
    request_hash = hashlib.sha256(json.dumps({"code": call.code}).encode()).hexdigest()
    made = await tx.execute(
        text(
            "INSERT INTO tcc_log (xid, branch, state, request_hash, code)"
            " VALUES (:xid, :branch, 'TRIED', :hash, :code)"
            " ON CONFLICT (xid, branch) DO NOTHING"
        ),
        {"xid": call.xid, "branch": call.branch, "hash": request_hash, "code": call.code},
    )
    if made.rowcount == 0:
        row = await _locked(tx, call)
        if row.state == "CANCELLED":
            raise CallRefusedError("cancelled before this Try came")
        if row.request_hash != request_hash:
            raise CallRefusedError("the key was used for another request")
        first: dict[str, Any] = row.try_answer
        return first
    taken = await tx.execute(
        text("UPDATE coupon SET free = free - 1, held = held + 1 WHERE code = :code AND free > 0"),
        {"code": call.code},
    )
    held = taken.rowcount == 1
    answer = {"kind": "coupon_held" if held else "coupon_spent", "code": call.code}
    await _write(tx, call, "TRIED" if held else "REFUSED", "try_answer", answer)
    return answer


async def confirm(tx: AsyncConnection, call: Call) -> dict[str, Any]:
    """Use what is held, once per branch."""
    row = await _locked(tx, call)
    if row is None:
        raise CallRefusedError("never tried")
    if row.state == "CONFIRMED":
        first: dict[str, Any] = row.end_answer
        return first
    if row.state != "TRIED":
        raise CallRefusedError(f"{row.state} cannot be confirmed")
    moved = await tx.execute(
        text("UPDATE coupon SET held = held - 1, used = used + 1 WHERE code = :code AND held > 0"),
        {"code": row.code},
    )
    assert moved.rowcount == 1
    answer = {"kind": "confirmed"}
    await _write(tx, call, "CONFIRMED", "end_answer", answer)
    return answer


async def cancel(tx: AsyncConnection, call: Call) -> dict[str, Any]:
    """Give back what is held, once per branch; without a Try leave a tombstone that refuses it."""
    answer = {"kind": "cancelled"}
    made = await tx.execute(
        text(
            "INSERT INTO tcc_log (xid, branch, state, end_answer)"
            " VALUES (:xid, :branch, 'CANCELLED', CAST(:answer AS jsonb))"
            " ON CONFLICT (xid, branch) DO NOTHING"
        ),
        {"xid": call.xid, "branch": call.branch, "answer": json.dumps(answer)},
    )
    if made.rowcount == 1:
        return answer
    row = await _locked(tx, call)
    if row.state == "CONFIRMED":
        raise CallRefusedError("confirmed already")
    if row.state == "CANCELLED":
        first: dict[str, Any] = row.end_answer
        return first
    if row.state == "TRIED":
        moved = await tx.execute(
            text("UPDATE coupon SET held = held - 1, free = free + 1"
                 " WHERE code = :code AND held > 0"),
            {"code": row.code},
        )  # fmt: skip
        assert moved.rowcount == 1
    await _write(tx, call, "CANCELLED", "end_answer", answer)
    return answer


async def _locked(tx: AsyncConnection, call: Call) -> Any:
    """Lock the row in a statement of its own: it has to see what the winner has committed."""
    found = await tx.execute(
        text("SELECT * FROM tcc_log WHERE xid = :xid AND branch = :branch FOR UPDATE"),
        {"xid": call.xid, "branch": call.branch},
    )
    return found.one_or_none()


async def _write(
    tx: AsyncConnection, call: Call, state: str, column: str, answer: dict[str, Any]
) -> None:
    written = await tx.execute(
        text(
            f"UPDATE tcc_log SET state = :state, {column} = CAST(:answer AS jsonb)"  # noqa: S608
            f" WHERE xid = :xid AND branch = :branch AND {column} IS NULL"
        ),
        {"state": state, "answer": json.dumps(answer), "xid": call.xid, "branch": call.branch},
    )
    assert written.rowcount == 1
