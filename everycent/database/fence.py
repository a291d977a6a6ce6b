"""The fence in SQL (design rules 3 and 4): claim by insert, then lock, then judge.

Every operation on a resource row begins with one of `claim_tries`, `lock_for_confirm` and
`claim_cancels`, does its work for the requests they hand back as `new`, and ends with `store_tries`
or `store_ends`. The order of the statements is the proof; do not reorder them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter
from sqlalchemy import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database.engine import sql
from everycent.domain.fence import (
    FenceRow,
    FenceState,
    Proceed,
    Repeat,
    Verdict,
    judge_cancel,
    judge_confirm,
    judge_try,
)
from everycent.domain.message import HASH_VERSION, StepRequest, has_branch, request_hash
from everycent.domain.outcome import Refusal
from everycent.errors import EverycentError, KeyReused, NoBranch

R = TypeVar("R", bound=StepRequest)


@dataclass(frozen=True)
class FenceTable:
    """A table made by `fence_ddl.fence_table`, and which fields of a Try go into its columns.

    `columns` maps a field of the Try request to the PostgreSQL type of the column of that name.

    An `aging` fence (design rule 16) is parted by the order's opening day, and its old months are
    dropped (`everycent.database.partitions`). PostgreSQL has no unique key across partitions, so a
    key is one there for one day only. The caller guarantees that every request about a key, in
    every attempt, run and year, carries the day that stands in the order's row: never the day on
    which it is sent. Under another day a Try is done a second time, a Cancel cancels nothing, and
    only a Confirm says so (`NothingTried`). Refused is what can be seen: two days for one key in a
    batch (`KeyReused`), and a day whose month was dropped (PostgreSQL has no place for the row).
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    aging: bool = False

    @property
    def unique(self) -> str:
        """The columns of the primary key: the conflict target of every claim."""
        return "opened_on, key" if self.aging else "key"


@dataclass(frozen=True)
class Claims(Generic[R]):
    """What became of a batch at the fence.

    `new` are the requests that are to do their work, in key order, each key once; `rows` their rows
    (absent where the own insert made the row). All others have their answer or error in `settled`.
    """

    new: list[R]
    rows: dict[str, FenceRow]
    settled: dict[str, JsonValue | EverycentError]
    refused: dict[int, EverycentError]

    def in_order(
        self, requests: Sequence[R], fresh: Mapping[str, Any], answers: TypeAdapter[Any]
    ) -> list[Any]:
        """Answer every request of the batch: from `fresh`, from the stored answer, or an error."""
        return [self._answer(i, request, fresh, answers) for i, request in enumerate(requests)]

    def _answer(
        self, index: int, request: R, fresh: Mapping[str, Any], answers: TypeAdapter[Any]
    ) -> Any:
        if index in self.refused:
            return self.refused[index]
        if request.key in fresh:
            return fresh[request.key]
        settled = self.settled[request.key]
        return settled if isinstance(settled, EverycentError) else answers.validate_python(settled)


async def claim_tries(tx: AsyncConnection, table: FenceTable, requests: Sequence[R]) -> Claims[R]:
    """Insert a TRIED row per key, in key order; then lock the keys that others had before us."""
    unique, refused = _each_key_once(table, requests)
    won = await _insert(tx, table, unique, FenceState.TRIED)
    rows = await _lock(tx, table, [r for r in unique if r.key not in won])
    verdicts = {
        r.key: Proceed() if r.key in won else judge_try(rows[r.key], r, won=False) for r in unique
    }
    return _claims(unique, rows, verdicts, refused)


async def lock_for_confirm(
    tx: AsyncConnection, table: FenceTable, requests: Sequence[R]
) -> Claims[R]:
    """Lock the rows to confirm, in key order. An absent one: `NothingTried`, nothing is written."""
    unique, refused = _each_key_once(table, requests)
    rows = await _lock(tx, table, unique)
    verdicts = {r.key: judge_confirm(rows.get(r.key), r.key) for r in unique}
    return _claims(unique, rows, verdicts, refused)


async def claim_cancels(tx: AsyncConnection, table: FenceTable, requests: Sequence[R]) -> Claims[R]:
    """Insert a tombstone per key, in key order, *first*; then lock the keys that had a row.

    A Try that comes later finds the tombstone. One that is under way is waited for by the insert.
    """
    unique, refused = _each_key_once(table, requests)
    won = await _insert(tx, table, unique, FenceState.CANCELLED)
    rows = await _lock(tx, table, [r for r in unique if r.key not in won])
    verdicts = {
        r.key: Proceed() if r.key in won else judge_cancel(rows[r.key], won=False) for r in unique
    }
    return _claims(unique, rows, verdicts, refused)


async def store_tries(
    tx: AsyncConnection,
    table: FenceTable,
    answers: Mapping[str, BaseModel],
    *,
    done: FenceState = FenceState.TRIED,
    requests: Sequence[StepRequest] = (),
) -> None:
    """Store the first answer of each Try: a Refusal as REFUSED, anything else as `done`.

    `done` is CONFIRMED for a step that is complete in itself (a receipt, a grant). An aging fence
    needs the `requests` too (`claims.new`): their days say where the rows are.
    """
    if not answers:
        return
    days = {request.key: request.opened_on for request in requests}
    assert not table.aging or days.keys() >= answers.keys(), f"{table.name} needs the requests"
    values = tries_values(answers, done) | _values_of_days(table, [days.get(k) for k in answers])
    result = await tx.execute(sql(tries_stored(table)), values)
    assert_all_written(result, len(answers))


def tries_stored(table: FenceTable) -> str:
    """Return the statement of `store_tries`, to be sent along with a service's own writes."""
    return (
        f"UPDATE {table.name} AS t SET state = new.state, try_answer = new.answer::jsonb"
        " FROM unnest(CAST(:keys AS text[]), CAST(:states AS text[]), CAST(:answers AS text[])"
        f"{_DAYS[table.aging]}) AS new (key, state, answer{_DAY[table.aging]})"
        f" WHERE t.key = new.key{_SAME_DAY[table.aging]}"
        " AND t.state = 'TRIED' AND t.try_answer IS NULL"
    )


def tries_values(
    answers: Mapping[str, BaseModel], done: FenceState = FenceState.TRIED
) -> dict[str, Any]:
    """Return the values of `tries_stored`."""
    return {
        "keys": list(answers),
        "states": [
            FenceState.REFUSED if isinstance(answer, Refusal) else done
            for answer in answers.values()
        ],
        "answers": [answer.model_dump_json() for answer in answers.values()],
    }


async def store_ends(
    tx: AsyncConnection,
    table: FenceTable,
    requests: Sequence[StepRequest],
    answers: Mapping[str, BaseModel],
    *,
    state: FenceState,
) -> None:
    """Store the answer of each Confirm or Cancel and move its row to `state`."""
    if not requests:
        return
    result = await tx.execute(
        sql(
            f"UPDATE {table.name} AS t SET state = :state, end_answer = new.answer::jsonb,"
            " ended_at = new.at, reason = new.reason"
            " FROM unnest(CAST(:keys AS text[]), CAST(:answers AS text[]),"
            " CAST(:ats AS timestamptz[]), CAST(:reasons AS text[])"
            f"{_DAYS[table.aging]}) AS new (key, answer, at, reason{_DAY[table.aging]})"
            f" WHERE t.key = new.key{_SAME_DAY[table.aging]} AND t.end_answer IS NULL"
            " AND (t.state IN ('TRIED', 'REFUSED') OR t.state = :state)"
        ),
        {
            "state": state,
            "keys": [request.key for request in requests],
            "answers": [answers[request.key].model_dump_json() for request in requests],
            "ats": [request.at for request in requests],
            "reasons": [getattr(request, "reason", None) for request in requests],
            **_values_of_days(table, [request.opened_on for request in requests]),
        },
    )
    assert_all_written(result, len(requests))


def assert_all_written(result: CursorResult[Any], rows_wanted: int) -> None:
    """Stop the transaction when a guarded write did not hit every row it was meant for."""
    assert result.rowcount == rows_wanted, (
        f"a guarded write hit {result.rowcount} of {rows_wanted} rows"
    )


def _each_key_once(
    table: FenceTable, requests: Sequence[R]
) -> tuple[list[R], dict[int, EverycentError]]:
    """Return the distinct requests in key order, and the errors of those that get no further.

    Such a one names no branch of a transaction, or its key stands for another request too.
    """
    first: dict[str, R] = {}
    refused: dict[int, EverycentError] = {}
    for index, request in enumerate(requests):
        if not has_branch(request.key):
            refused[index] = NoBranch(f"{request.key!r} is no <tenant>/<order>/<step>")
            continue
        kept = first.setdefault(request.key, request)
        if kept is not request and _hash(kept) != _hash(request):
            refused[index] = KeyReused(f"{request.key} stands twice in a batch, with two requests")
        if table.aging and kept.opened_on != request.opened_on:
            refused[index] = KeyReused(f"{request.key} stands twice in a batch, with two days")
    return [first[key] for key in sorted(first, key=str.encode)], refused


def _claims(
    unique: list[R],
    rows: dict[str, FenceRow],
    verdicts: dict[str, Verdict],
    refused: dict[int, EverycentError],
) -> Claims[R]:
    settled = {
        key: verdict.answer if isinstance(verdict, Repeat) else verdict
        for key, verdict in verdicts.items()
        if not isinstance(verdict, Proceed)
    }
    new = [request for request in unique if request.key not in settled]
    return Claims(new, {r.key: rows[r.key] for r in new if r.key in rows}, settled, refused)


def _hash(request: StepRequest) -> str:
    return request_hash(request, request.HASHED)


async def _insert(
    tx: AsyncConnection, table: FenceTable, requests: Sequence[StepRequest], state: FenceState
) -> set[str]:
    """Insert what is not there yet, in key order, and return the keys that we made."""
    tried = state is FenceState.TRIED
    columns = table.columns if tried else {}
    names = "".join(f", {name}" for name in columns)
    arrays = "".join(f", CAST(:c_{name} AS {kind}[])" for name, kind in columns.items())
    result = await tx.execute(
        sql(
            f"INSERT INTO {table.name}"
            f" (key, opened_on, tried_at, request_hash, hash_version, state{names})"
            f" SELECT key, opened_on, tried_at, request_hash, CAST(:version AS smallint),"
            f" CAST(:state AS text){names}"
            " FROM unnest(CAST(:keys AS text[]), CAST(:opened AS date[]),"
            f" CAST(:ats AS timestamptz[]), CAST(:hashes AS text[]){arrays})"
            f" AS new (key, opened_on, tried_at, request_hash{names})"
            f' ORDER BY key COLLATE "C" ON CONFLICT ({table.unique}) DO NOTHING RETURNING key'
        ),
        {
            "version": HASH_VERSION if tried else None,
            "state": state,
            "keys": [request.key for request in requests],
            "opened": [request.opened_on for request in requests],
            "ats": [request.at if tried else None for request in requests],
            "hashes": [_hash(request) if tried else None for request in requests],
            **{f"c_{name}": [getattr(r, name) for r in requests] for name in columns},
        },
    )
    return set(result.scalars())


# What names the rows of an aging fence beside their keys. Each is empty for the other form. The two
# ends prune the partitions also where PostgreSQL plans once for all values: an array would not.
_DAYS = ("", ", CAST(:opened AS date[])")
_DAY = ("", ", opened_on")
_PRUNED = " AND t.opened_on BETWEEN CAST(:first_day AS date) AND CAST(:last_day AS date)"
_SAME_DAY = ("", f" AND t.opened_on = new.opened_on{_PRUNED}")
_THESE_DAYS = ("", f" AND t.opened_on = ANY(CAST(:opened AS date[])){_PRUNED}")


def _values_of_days(table: FenceTable, days: Sequence[date | None]) -> dict[str, Any]:
    known = [day for day in days if day is not None]
    if not table.aging:
        return {}
    return {"opened": known, "first_day": min(known), "last_day": max(known)}


async def _lock(
    tx: AsyncConnection, table: FenceTable, requests: Sequence[StepRequest]
) -> dict[str, FenceRow]:
    """Lock and read rows in key order, in a statement of its own: it must see the winner's row."""
    if not requests:
        return {}
    days = {request.key: request.opened_on for request in requests}
    result = await tx.execute(
        sql(
            "SELECT key, opened_on, state, request_hash, hash_version, try_answer, end_answer"
            f" FROM {table.name} AS t WHERE key = ANY(CAST(:keys AS text[]))"
            f'{_THESE_DAYS[table.aging]} ORDER BY key COLLATE "C" FOR UPDATE'
        ),
        {"keys": list(days), **_values_of_days(table, list(days.values()))},
    )
    return {
        row.key: FenceRow(
            key=row.key,
            state=FenceState(row.state),
            request_hash=row.request_hash,
            hash_version=row.hash_version,
            try_answer=row.try_answer,
            end_answer=row.end_answer,
        )
        for row in result
        if not table.aging or row.opened_on == days[row.key]
    }
