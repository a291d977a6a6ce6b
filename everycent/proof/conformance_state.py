"""What a call does to a database, and how a process dies at its COMMIT."""

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from everycent.domain.message import StepRequest
from everycent.errors import InvalidRequest

_COLUMNS = """
SELECT c.oid::regclass::text AS name,
       array_agg(a.attname::text) FILTER (WHERE a.attidentity <> '') AS counted
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname NOT LIKE 'pg\\_%' AND has_table_privilege(c.oid, 'SELECT')
GROUP BY c.oid ORDER BY 1"""


class Died(BaseException):
    """The process is gone, as after a kill: no `except Exception` of the step hears of it."""


@dataclass(frozen=True)
class Effect:
    """How many rows each table won, and by how much the sum of each number moved."""

    moved: Mapping[str, int]

    @property
    def is_something(self) -> bool:
        """Whether anything changed."""
        return bool(self.moved)

    def __str__(self) -> str:
        return ", ".join(f"{name} {by:+}" for name, by in sorted(self.moved.items())) or "nothing"


@dataclass(frozen=True)
class Tables:
    """Every row of every table, as JSON, and the sums of their numbers."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    def effect_since(self, before: "Tables") -> Effect:
        """Return what moved since then."""
        names = {*self.sums, *before.sums}
        moved = {name: self.sums[name] - before.sums[name] for name in names}
        return Effect({name: by for name, by in moved.items() if by})


async def read_tables(engine: AsyncEngine, ignore: Collection[str] = ()) -> Tables:
    """Read everything that the engine's role may see; a column that only counts rows is no sum."""
    tables = Tables()
    async with engine.connect() as connection:
        names = (await connection.execute(text(_COLUMNS))).all()
        for name, counted in names:
            left_out = {f"{name}.{column}" for column in counted or ()} | set(ignore)
            found = await connection.execute(text(f"SELECT to_jsonb(t)::text FROM {name} AS t"))  # noqa: S608
            for row in found.scalars():
                tables.rows[name, row] += 1
                tables.sums[f"{name} rows"] += 1
                for column, value in json.loads(row).items():
                    place = f"{name}.{column}"
                    if isinstance(value, int) and place not in left_out:
                        tables.sums[place] += value
    return tables


def tell_difference(before: Tables, after: Tables, most: int = 4) -> str:
    """Return the rows that are gone and new, the first few; empty if there are none."""
    gone = [f"- {name} {row}" for name, row in (before.rows - after.rows)]
    new = [f"+ {name} {row}" for name, row in (after.rows - before.rows)]
    told = sorted(gone + new, key=lambda line: line[2:])
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return "; ".join(told[:most]) + more


@contextlib.contextmanager
def dying_at_commit(engine: AsyncEngine, commit: int, *, after: bool) -> Iterator[list[int]]:
    """Let the process die at the n-th COMMIT through this engine: before it, or right after it.

    What is yielded is empty as long as it lives. After: the database has committed, and whoever
    asked for it never hears of it.
    """
    seen = 0
    died: list[int] = []

    def on_commit(connection: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == commit:
            if after:
                connection.connection.commit()
            died.append(commit)
            connection.invalidate()  # A dead process keeps no connection; PostgreSQL rolls back.
            raise Died(f"{'after' if after else 'before'} COMMIT {commit}")

    event.listen(engine.sync_engine, "commit", on_commit)
    try:
        yield died
    finally:
        event.remove(engine.sync_engine, "commit", on_commit)


def under_a_fresh_key(request: StepRequest) -> StepRequest:
    """Return the same request for another order: `<tenant>/<order>-<something new>/<step>`."""
    parts = request.key.split("/")
    place = min(1, len(parts) - 1)
    parts[place] = f"{parts[place]}-{uuid.uuid4().hex[:12]}"
    return request.model_copy(update={"key": "/".join(parts)})


def another_under_the_same_key(request: StepRequest) -> StepRequest | None:
    """Return a request that differs in a hashed field; None if it names nothing but its key."""
    if not request.HASHED:
        return None
    body = request.model_dump(mode="json")
    for name in request.HASHED:
        for changed in _changes(body[name]):
            with contextlib.suppress(ValidationError):
                other = type(request).model_validate({**body, name: changed})
                if getattr(other, name) != getattr(request, name):
                    return other
    raise InvalidRequest("say by `other` what another request under the same key is")


def _changes(value: Any) -> Iterator[Any]:
    """Yield values like this one, each changed in one place."""
    match value:
        case bool() | None:
            return
        case int():
            yield value + 1
        case str():
            yield f"{value}x"
        case list():
            for n, item in enumerate(value):
                yield from ([*value[:n], changed, *value[n + 1 :]] for changed in _changes(item))
        case dict():
            for name, item in value.items():
                yield from ({**value, name: changed} for changed in _changes(item))
