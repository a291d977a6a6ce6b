"""Reconcile a provider's statement with our books, and look again at what did not agree before.

The statement is spooled to disk, so its size does not matter; each side is read by read-only roles,
and only what was found is written, through the order service. `compare_files` needs no database.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

from everycent import clock
from everycent.database.reads import Reader
from everycent.database.reconciliation_reads import (
    KnownBreak,
    booked_between,
    booked_under,
    known_breaks,
    orders_stand,
    statement_of,
)
from everycent.domain.message import Message, order_of, step_key
from everycent.domain.order import CaseState
from everycent.domain.reconciliation import (
    NO_ORDER,
    Booked,
    Break,
    BreakKind,
    NoteBreaks,
    ReadStatement,
    StatementLine,
    compare,
    missing_there,
    order_breaks,
)
from starters.bookings import Bookings
from starters.statements import Columns, digest_of, read_lines

T = TypeVar("T")
_PAGE = 500
_PART = 100  # Breaks in one activity: far below what a message may weigh.
_OF_ORDER = (BreakKind.ORDER, BreakKind.STOCK)


@dataclass(frozen=True)
class Terms:
    """For whom and how patiently: `grace` and `most_looks` say when a young break is due.

    `begins` and `ends` bound what must be in the statement; without them its own whole UTC days do.
    """

    tenant: str
    by: str
    now: datetime
    grace: timedelta
    most_looks: int
    begins: datetime | None = None
    ends: datetime | None = None


def terms_of_now(tenant: str, by: str) -> Terms:
    """Return the terms of a look by a person: what is there now is due."""
    return Terms(tenant=tenant, by=by, now=clock.now(), grace=timedelta(0), most_looks=1)


class BreakShown(Message):
    """A break and where it stands: `open`, `pending`, `closed`, or `settled` by a person."""

    found: Break
    state: str


class Reconciled(Message):
    """What a run came to; `read_before` is when this very statement had been read already."""

    statement: str | None
    lines: int = 0
    agreed: int = 0
    read_before: datetime | None = None
    breaks: tuple[BreakShown, ...] = ()

    def count(self, state: str) -> int:
        """Return how many breaks stand so."""
        return sum(each.state == state for each in self.breaks)


@dataclass
class _Found:
    breaks: dict[str, Break] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    looked_at: set[str] = field(default_factory=set)  # Keys that this run has judged.
    agreed: int = 0

    def add(self, each: Break) -> None:
        self.breaks[each.key] = each
        self.gone.discard(each.key)


class Reconciliation:
    """One shop's reconciliation over live services."""

    def __init__(self, reader: Reader, bookings: Bookings | None, terms: Terms) -> None:
        self._reader = reader
        self._bookings = bookings  # None: nothing is written.
        self._terms = terms

    async def read(self, file: Path, columns: Columns) -> Reconciled:
        """Compare a statement, and look again at what is known and not in it."""
        digest = digest_of(file)
        before = await statement_of(self._reader, self._terms.tenant, digest)
        if before is not None:
            again = await self.look_again()
            return again.model_copy(update={"statement": file.name, "read_before": before.read_at})
        known = await known_breaks(self._reader, self._terms.tenant)
        found = _Found()
        with _Spool(read_lines(file, columns)) as spool:
            whole = _whole(file, digest, spool, self._terms)
            await self._compare(spool, known, found)
            await self._miss(spool, whole, found)
            await self._look_at(
                {key: each for key, each in known.items() if key not in found.looked_at}, found
            )
            await self._note(found, digest, whole)
            return await self._told(found, known, file.name, spool.lines)

    async def look_again(self, keys: Collection[str] | None = None) -> Reconciled:
        """Judge what is pending or open anew by our books of now, or only these breaks."""
        known = await known_breaks(self._reader, self._terms.tenant)
        wanted = {key: each for key, each in known.items() if keys is None or key in keys}
        found = _Found()
        await self._look_at(wanted, found)
        await self._note(found, f"look-{self._terms.now.isoformat()}", None)
        return await self._told(found, known, None, 0)

    async def _compare(self, spool: "_Spool", known: dict[str, KnownBreak], found: _Found) -> None:
        """Judge every name of the statement, then the orders that money moved for."""
        by_name: dict[tuple[str, str], list[str]] = {}
        for key, each in known.items():
            by_name.setdefault((each.found.movement, each.found.reference), []).append(key)
        for page in _pages(spool.names(), _PAGE):
            booked = await booked_under(self._reader, [lines[0].reference for lines in page])
            for lines in page:
                name = lines[0].name
                compared = compare(self._terms.tenant, lines, booked.get(name))
                found.agreed += compared.agrees
                old = [k for k in by_name.get(name, ()) if _is_judged(known[k])]
                found.looked_at.update(old)
                found.gone.update(old)
                for difference in compared.breaks:
                    found.add(difference)
            await self._judge_orders(_with_orders(page), found, known)

    async def _judge_orders(
        self,
        lines: Sequence[StatementLine],
        found: _Found,
        known: dict[str, KnownBreak],
    ) -> None:
        stand = await orders_stand(self._reader, [order_of(line.reference) for line in lines])
        for line in lines:
            xid = order_of(line.reference)
            old = [
                key
                for key, each in known.items()
                if each.found.kind in _OF_ORDER and order_of(each.found.reference) == xid
            ]
            found.looked_at.update(old)
            found.gone.update(old)
            for accused in order_breaks(self._terms.tenant, line, stand.get(xid)):
                found.add(accused)

    async def _miss(self, spool: "_Spool", whole: ReadStatement, found: _Found) -> None:
        """Find what we booked in the statement's time and it does not tell."""
        ours = booked_between(self._reader, self._terms.tenant, whole.begins_at, whole.ends_at)
        async for booked in ours:
            if not spool.has(booked.name):
                found.add(missing_there(self._terms.tenant, booked))

    async def _look_at(self, known: dict[str, KnownBreak], found: _Found) -> None:
        """Judge known breaks again; what only another statement can tell stays as it is."""
        judged = {k: e for k, e in known.items() if e.found.line and _is_judged(e)}
        booked = await booked_under(self._reader, [e.found.reference for e in judged.values()])
        for key, each in known.items():
            if key in judged:
                line = each.found.line
                assert line is not None, "only a break with a line is judged by it"
                compared = compare(self._terms.tenant, [line], booked.get(line.name))
                found.gone.add(key)
                for still in compared.breaks:
                    found.add(still)
            elif each.found.kind not in _OF_ORDER and key not in found.gone:
                found.add(each.found)
        of_orders = [e.found.line for e in known.values() if e.found.kind in _OF_ORDER]
        for page in _pages([line for line in of_orders if line is not None], _PAGE):
            await self._judge_orders(page, found, known)

    async def _note(self, found: _Found, run: str, whole: ReadStatement | None) -> None:
        if self._bookings is None:
            return
        everything = sorted(found.breaks.values(), key=lambda each: each.key)
        parts = [*_pages(everything, _PART)] or [()]
        gone = [*_pages(sorted(found.gone), _PART)]
        parts += [()] * (len(gone) - len(parts))
        for number, part in enumerate(parts):
            request = NoteBreaks(
                key=step_key(self._terms.tenant, NO_ORDER, run, str(number)),
                at=self._terms.now,
                opened_on=self._terms.now.date(),
                run=run,
                by=self._terms.by,
                found=part,
                gone=gone[number] if number < len(gone) else (),
                grace_seconds=int(self._terms.grace.total_seconds()),
                most_looks=self._terms.most_looks,
                whole=whole if number == len(parts) - 1 else None,
            )
            if part or request.gone or request.whole is not None:
                await self._bookings.note_breaks(request)

    async def _told(
        self, found: _Found, known: dict[str, KnownBreak], name: str | None, lines: int
    ) -> Reconciled:
        """Say where every break stands now: as it is written down, or as it would be."""
        if self._bookings is None:
            shown = [self._as_if(each, known.get(each.key)) for each in found.breaks.values()]
        else:
            now = await known_breaks(self._reader)
            mine = self._terms.tenant
            shown = [
                BreakShown(found=each.found, state=_state(each))
                for key, each in now.items()
                if key in found.breaks or each.found.tenant == mine
            ]
        gone = [
            BreakShown(found=known[key].found, state="closed")
            for key in sorted(found.gone)
            if key in known
        ]
        return Reconciled(statement=name, lines=lines, agreed=found.agreed, breaks=(*shown, *gone))

    def _as_if(self, each: Break, known: KnownBreak | None) -> BreakShown:
        if known is not None and known.case is not None:
            return BreakShown(found=each, state=_state(known))
        looks = 1 if known is None else known.looks + 1
        due = each.is_due(
            self._terms.now, self._terms.grace, looks=looks, most_looks=self._terms.most_looks
        )
        return BreakShown(found=each, state="open" if due else "pending")


def compare_files(
    statement: Path, columns: Columns, payments: Path, ours: Columns, terms: Terms
) -> Reconciled:
    """Compare a statement with an export of a shop's own payments; nothing is connected."""
    found = _Found()
    with _Spool(read_lines(statement, columns)) as spool, _Spool(read_lines(payments, ours)) as own:
        whole = _whole(statement, digest_of(statement), spool, terms)
        for lines in spool.names():
            compared = compare(terms.tenant, lines, own.booked(lines[0].name))
            found.agreed += compared.agrees
            for each in compared.breaks:
                found.add(each)
        for lines in own.names():
            booked = own.booked(lines[0].name)
            assert booked is not None, "it was just read"
            told = whole.begins_at <= booked.at < whole.ends_at and booked.done
            if told and not spool.has(booked.name):
                found.add(missing_there(terms.tenant, booked))
        shown = [
            BreakShown(
                found=each,
                state="open"
                if each.is_due(terms.now, terms.grace, looks=1, most_looks=terms.most_looks)
                else "pending",
            )
            for each in found.breaks.values()
        ]
        return Reconciled(
            statement=statement.name, lines=spool.lines, agreed=found.agreed, breaks=tuple(shown)
        )


def _pages(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    left = iter(items)
    while page := tuple(islice(left, size)):
        yield page


def _state(known: KnownBreak) -> str:
    if known.case is None:
        return "pending"
    return "open" if known.case is CaseState.OPEN else "settled"


def _is_judged(known: KnownBreak) -> bool:
    """Tell whether a line and our books settle it; a second posting waits for a person."""
    return known.found.kind not in (*_OF_ORDER, BreakKind.TWICE)


def _with_orders(page: Sequence[Sequence[StatementLine]]) -> list[StatementLine]:
    """Return one line per order of ours that the page names."""
    lines = {
        order_of(each[0].reference): each[0]
        for each in page
        if each[0].reference.count("/") > 1 and NO_ORDER not in each[0].reference
    }
    return list(lines.values())


def _whole(file: Path, digest: str, spool: "_Spool", terms: Terms) -> ReadStatement:
    first, last = spool.times()
    begins = terms.begins or (first and datetime.combine(first.date(), time(), UTC))
    ends = terms.ends or (last and datetime.combine(last.date(), time(), UTC) + timedelta(days=1))
    at = begins or ends or terms.now  # An empty statement without bounds covers no time.
    return ReadStatement(
        digest=digest, name=file.name, lines=spool.lines, begins_at=begins or at, ends_at=ends or at
    )


class _Spool:
    """A file's lines by their names, on disk: memory may be too small."""

    def __init__(self, lines: Iterable[StatementLine]) -> None:
        self._file = sqlite3.connect("")  # A temporary file that ends with the connection.
        self._file.execute("CREATE TABLE line (movement, reference, number, at, text)")
        self._file.executemany(
            "INSERT INTO line VALUES (?, ?, ?, ?, ?)",
            (
                (
                    line.movement, line.reference, line.number,
                    line.at.astimezone(UTC).isoformat(), line.model_dump_json(),
                )
                for line in lines
            ),
        )  # fmt: skip
        self._file.execute("CREATE INDEX line_name ON line (movement, reference, number)")
        [self.lines] = self._file.execute("SELECT count(*) FROM line").fetchone()

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def names(self) -> Iterator[list[StatementLine]]:
        """Yield the lines of each name together."""
        rows = self._file.execute(
            "SELECT movement, reference, text FROM line ORDER BY movement, reference, number"
        )
        for _, group in groupby(rows, key=lambda row: row[:2]):
            yield [StatementLine.model_validate_json(row[2]) for row in group]

    def has(self, name: tuple[str, str]) -> bool:
        """Tell whether there is a line of that name."""
        found = self._file.execute(
            "SELECT 1 FROM line WHERE movement = ? AND reference = ? LIMIT 1", name
        )
        return found.fetchone() is not None

    def booked(self, name: tuple[str, str]) -> Booked | None:
        """Return the first line of that name as a movement of ours."""
        row = self._file.execute(
            "SELECT text FROM line WHERE movement = ? AND reference = ? ORDER BY number LIMIT 1",
            name,
        ).fetchone()
        if row is None:
            return None
        line = StatementLine.model_validate_json(row[0])
        return Booked.model_validate(line.model_dump(exclude={"number"}))

    def times(self) -> tuple[datetime | None, datetime | None]:
        """Return the first and the last time of the lines."""
        row = self._file.execute("SELECT min(at), max(at) FROM line").fetchone()
        first, last = (None if at is None else datetime.fromisoformat(at) for at in row)
        return first, last
