"""Every order of two and three sessions, and a seeded sample of those of four, on PostgreSQL.

`explore` walks all orders of a case; `sample` draws some. Each schedule plays at a place of its
own, with fresh keys and resources; `judge` says whether it was safe.
"""

import itertools
import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from everycent.database.engine import Database
from everycent.proof.interleavings_judge import (
    Finding,
    Played,
    judge_after,
    judge_schedule,
)
from everycent.proof.interleavings_kinds import Kind
from everycent.proof.interleavings_session import Chooser, Cut, Ending, Session, Stage
from everycent.proof.interleavings_tree import Counts, Standing, Tree

_FEWEST_PLACES, _MOST_PLACES = 4, 64  # Made at once: more each time that more are needed.
_DRAWN_ENDINGS = (*(Ending.COMMIT,) * 6, Ending.ABORT, Ending.LOST)  # More commits: more to see.
_FRUITLESS_WALKS = 500  # Then PostgreSQL did not choose again what it chose once.


@dataclass(frozen=True)
class Case:
    """Sessions with their operations, endings and batches of key numbers, from a start."""

    kind: Kind
    start: tuple[str, ...]
    steps: tuple[tuple[str, Ending], ...]
    batches: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        steps = ", ".join(
            f"{operation} of {'+'.join(map(str, batch))} ({ending})"
            for (operation, ending), batch in zip(self.steps, self.batches, strict=True)
        )
        return f"{steps}, after {'+'.join(self.start) or 'nothing'}"

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return max(map(max, self.batches)) + 1


@dataclass
class Result:
    """What came of some cases."""

    counts: Counts = field(default_factory=Counts)
    cases: int = 0
    played: int = 0
    findings: list[Finding] = field(default_factory=list)
    unrepeated: int = 0  # Cases in which PostgreSQL did not choose again what it chose once.

    def add(self, other: "Result") -> None:
        """Add what came of other cases."""
        self.counts.add(other.counts)
        self.findings += other.findings
        for name in ("cases", "played", "unrepeated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def unsafe(self) -> int:
        """How many schedules broke a promise."""
        return len({(each.case, each.order) for each in self.findings})

    @property
    def ok(self) -> bool:
        """Whether all is safe, every order was accounted for, and there was something to see."""
        safe = not self.findings and not self.unrepeated and self.played > 0
        return safe and self.counts.add_up


class Lane:
    """Plays schedules of one kind, one at a time, and judges them by the dozen."""

    def __init__(self, kind: Kind, stage: Stage, *, cut: Cut = Cut.POINTS) -> None:
        self.result = Result()
        self._kind = kind
        self._stage = stage
        self._cut = cut
        self._free: dict[tuple[tuple[str, ...], int], list[tuple[str, list[Any]]]] = {}
        self._made: dict[tuple[tuple[str, ...], int], int] = {}
        self._pending: list[Played] = []

    @property
    def _database(self) -> Database:
        return self._stage.database

    async def explore(self, case: Case, *, at_most: int | None = None) -> None:
        """Play every order of a case, or the first so many."""
        names = list(zip(case.steps, case.batches, strict=True))
        steps = [len(self._kind.points[operation]) for operation, _ in case.steps]
        tree = Tree(names, steps if self._cut is Cut.POINTS else None)
        fruitless = 0
        while not tree.is_walked and fruitless < _FRUITLESS_WALKS:
            if at_most is not None and tree.walks >= at_most:
                break
            await self._play(case, tree)
            fruitless = 0 if tree.end() else fruitless + 1
        self.result.unrepeated += not tree.is_walked
        self.result.counts.add(tree.counts)
        self.result.cases += 1

    async def draw(self, case: Case, dice: random.Random) -> None:
        """Play one order of a case, drawn step by step."""
        await self._play(case, _Drawn(dice))
        self.result.cases += 1

    async def _play(self, case: Case, chooser: Chooser) -> None:
        place, log = await self._place(case)
        names = zip(case.steps, case.batches, strict=True)
        sessions = [
            Session(
                operation=self._kind.operations[operation],
                requests=[self._kind.request(operation, place, n) for n in batch],
                keys=[self._kind.key(place, n) for n in batch],
                points=self._kind.points[operation],
                ending=ending,
                table=self._kind.table,
                cut=self._cut,
            )
            for (operation, ending), batch in names
        ]
        order = await self._stage.play(sessions, chooser)
        keys = [self._kind.key(place, n) for n in range(case.keys)]
        operations = tuple(operation for operation, _ in case.steps)
        played = Played(self._kind, str(case), place, operations, sessions, order, keys, log)
        self._pending.append(played)
        self.result.played += 1
        if len(self._pending) >= _MOST_PLACES:
            await self.judge()

    async def _place(self, case: Case) -> tuple[str, list[Any]]:
        """Return a fresh place that stands at the start of the case, and what brought it there."""
        needed = (case.start, case.keys)
        free = self._free.setdefault(needed, [])
        if not free:
            number = self._made.get(needed, _FEWEST_PLACES)
            self._made[needed] = min(2 * number, _MOST_PLACES)
            places = [f"i{uuid.uuid4().hex[:16]}" for _ in range(number)]
            async with self._database.transaction() as tx:
                await self._kind.prepare(tx, places)
            logs = await self._call(case.start, places, range(case.keys))
            free += [(place, logs[place]) for place in places]
        return free.pop()

    async def _call(
        self, operations: Sequence[str], places: Sequence[str], numbers: Sequence[int]
    ) -> dict[str, list[tuple[str, str, Any]]]:
        """Call operations one after the other, each for all keys of all places at once."""
        logs: dict[str, list[tuple[str, str, Any]]] = {place: [] for place in places}
        for operation in operations:
            async with self._database.transaction() as tx:
                named = [(place, n) for place in places for n in numbers]
                requests = [self._kind.request(operation, place, n) for place, n in named]
                answers = await self._kind.operations[operation](tx, requests)
            for (place, n), answer in zip(named, answers, strict=True):
                logs[place].append((operation, self._kind.key(place, n), answer))
        return logs

    async def judge(self) -> None:
        """Judge what was played since the last time, then call again and judge that."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        states, parts = await self._read(pending)
        books = []
        for played in pending:
            book, broken = judge_schedule(played, states, parts.get(played.place))
            books.append(book)
            self._find(played, broken)
        late: dict[str, list[tuple[str, str, Any]]] = {}
        for ring, group in itertools.groupby(
            sorted(pending, key=lambda played: len(played.keys)), lambda p: len(p.keys)
        ):
            places = [played.place for played in group]
            late |= await self._call(self._kind.after, places, range(ring))
        states, parts = await self._read(pending)
        for book, played in zip(books, pending, strict=True):
            broken = judge_after(book, played, late[played.place], states, parts.get(played.place))
            self._find(played, broken)

    async def _read(self, pending: Sequence[Played]) -> tuple[dict[str, str], dict[str, Any]]:
        async with self._database.transaction() as tx:
            states = await self._kind.states(tx, [key for each in pending for key in each.keys])
            if self._kind.parts is None:
                return states, {}
            return states, await self._kind.parts(tx, [each.place for each in pending])

    def _find(self, played: Played, broken: Sequence[str]) -> None:
        self.result.findings += [
            Finding(self._kind.name, played.title, played.told(), what) for what in broken
        ]


class _Drawn:
    """Lets the dice say who goes on."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def begin(self, seen: tuple[Standing, ...]) -> None:
        """Nothing to note."""

    def choose(self, seen: tuple[Standing, ...]) -> int:
        """Draw one of those that are ready."""
        return self._dice.choice([i for i, each in enumerate(seen) if each.state == "ready"])

    def went(self, choice: int, seen: tuple[Standing, ...]) -> None:
        """Nothing to note."""


def cases(
    kind: Kind, sessions: int, *, endings: Sequence[Ending] = tuple(Ending), batch: int = 1
) -> Iterator[Case]:
    """Yield all choices of so many operations and endings, from every start.

    Batches lie on a ring of keys, each begins one further: they overlap, in different orders.
    """
    operations = tuple(dict.fromkeys(kind.names))
    each = list(itertools.product(operations, endings))
    if batch == 1:  # It makes no difference who is called the first.
        chosen: Iterable[tuple[tuple[str, Ending], ...]]
        chosen = itertools.combinations_with_replacement(each, sessions)
        batches: tuple[tuple[int, ...], ...] = ((0,),) * sessions
    else:
        chosen = itertools.product(each, repeat=sessions)
        ring = max(batch, sessions)
        batches = tuple(tuple((i + n) % ring for n in range(batch)) for i in range(sessions))
    for start, steps in itertools.product(kind.starts, chosen):
        yield Case(kind, start, steps, batches)


def draws(
    kind: Kind, number: int, seed: int, *, sessions: int = 4
) -> Iterator[tuple[Case, random.Random]]:
    """Yield so many cases drawn from all of them, each with dice of its own."""
    for n in range(number):
        dice = random.Random(f"{kind.name}/{seed}/{n}")  # noqa: S311
        steps = [(dice.choice(kind.names), dice.choice(_DRAWN_ENDINGS)) for _ in range(sessions)]
        keys = dice.choice((1, 2, 3, 4))
        batches = [dice.sample(range(keys), dice.randint(1, keys)) for _ in range(sessions)]
        yield Case(kind, dice.choice(kind.starts), tuple(steps), tuple(map(tuple, batches))), dice
