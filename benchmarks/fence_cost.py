"""What the fence costs: `python -m benchmarks.fence_cost [--pairs N] [--seconds S] [--json FILE]`.

The same business transaction of two statements (freeze on an account, note the hold) with and
without a fence, by turns, on a server that waits for the disk, over eight connections; one order a
transaction and a hundred. Each pair gives a ratio; told are its median and a 95 % interval.

- naive: claim, both statements, store the answer, each in a round trip of its own
- generic: the claim goes with the first statement, the answer with the second
- row: the noted hold is the fence itself, so there is one row less (design rule 3)
- foreseen: the claim carries the answer of a Try that succeeds, so nothing is written a second time
  (a refusal would roll back and go the long way; the product does not do this: decision 0012).
  Of a row it is also one round trip less than without a fence: the hold is the claim.
- sold out, foreseen: what a refusal costs then, against one that foresaw nothing
"""

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg

from benchmarks.machine import describe
from everycent.database.fence_ddl import fence_table
from everycent.stack.postgres import PostgresServer

CONNECTIONS = 8
ACCOUNTS = 20_000
BATCHES = (1, 100)
NOON, TODAY = datetime(2026, 1, 2, 12, tzinfo=UTC), date(2026, 1, 2)
HASH, ANSWER = "0" * 64, '{"kind": "frozen", "amount_minor": 5}'

_HOLD = {"account": "bigint", "amount": "bigint"}
TABLES = (
    "CREATE TABLE account (id bigint CONSTRAINT account_pkey PRIMARY KEY, available bigint NOT"
    " NULL, frozen bigint NOT NULL, CONSTRAINT account_available CHECK (available >= 0))",
    f"INSERT INTO account SELECT n, 1000000000, 0 FROM generate_series(0, {ACCOUNTS - 1}) AS n",
    'CREATE TABLE noted (key text COLLATE "C" CONSTRAINT noted_pkey PRIMARY KEY,'
    " account bigint NOT NULL, amount bigint NOT NULL, at timestamptz NOT NULL)",
    *fence_table("fence"),
    *fence_table("hold", _HOLD),
)
# Plans are made for tables that have been in use for a while, as the product prices them.
USED = (
    "INSERT INTO noted SELECT 't/a-' || n, n, 5, '2026-01-01' FROM generate_series(1, 50000) AS n",
    *(
        f"INSERT INTO {table} (key, opened_on, tried_at, request_hash, hash_version, state,"
        f" try_answer) SELECT 't/a-' || n, '2026-01-01', '2026-01-01', 'h', 1, 'TRIED', '{ANSWER}'"
        " FROM generate_series(1, 50000) AS n"
        for table in ("fence", "hold")
    ),
    "VACUUM ANALYZE",
)
PRICES = {"random_page_cost": "1.1"}  # everycent/database/engine.py
_KEYS = "unnest($1::text[], $2::bigint[]) AS new (key, account)"
_FENCE_COLUMNS = "key, opened_on, tried_at, request_hash, hash_version, state"
_FENCE_VALUES = "key, $3::date, $4::timestamptz, $5::text, 1::smallint, 'TRIED'"
_SORTED = 'ORDER BY key COLLATE "C" ON CONFLICT (key) DO NOTHING RETURNING key'
_FREEZE = "UPDATE account AS a SET available = available - 5, frozen = frozen + 5"
_ENOUGH = "a.available >= 5"

FREEZE = f"{_FREEZE} FROM {_KEYS} WHERE a.id = new.account AND {_ENOUGH}"
NOTE = (
    "INSERT INTO noted (key, account, amount, at) SELECT key, account, 5, $3::timestamptz"
    f" FROM {_KEYS}"
)
CLAIM = f"INSERT INTO fence ({_FENCE_COLUMNS}) SELECT {_FENCE_VALUES} FROM {_KEYS} {_SORTED}"
STORE = (
    "UPDATE fence AS t SET try_answer = $2::jsonb FROM unnest($1::text[]) AS new (key)"
    " WHERE t.key = new.key AND t.state = 'TRIED' AND t.try_answer IS NULL"
)
CLAIM_AND_FREEZE = (
    f"WITH won AS ({CLAIM}) {_FREEZE} FROM won JOIN {_KEYS} USING (key)"
    f" WHERE a.id = new.account AND {_ENOUGH}"
)
NOTE_AND_STORE = (
    f"WITH noted_now AS ({NOTE} RETURNING key)"
    " UPDATE fence AS t SET try_answer = $4::jsonb FROM noted_now AS new"
    " WHERE t.key = new.key AND t.state = 'TRIED' AND t.try_answer IS NULL"
)
HOLD_AND_FREEZE = (
    f"WITH won AS (INSERT INTO hold ({_FENCE_COLUMNS}, account, amount)"
    f" SELECT {_FENCE_VALUES}, account, 5 FROM {_KEYS} {_SORTED})"
    f" {_FREEZE} FROM won JOIN {_KEYS} USING (key) WHERE a.id = new.account AND {_ENOUGH}"
)
STORE_HOLD = STORE.replace("UPDATE fence", "UPDATE hold")


CLAIM_FORESEEN = CLAIM.replace("hash_version, state)", "hash_version, state, try_answer)").replace(
    "'TRIED'", "'TRIED', $6::jsonb"
)
FORESEEN_AND_FREEZE = CLAIM_AND_FREEZE.replace(CLAIM, CLAIM_FORESEEN)
HOLD_FORESEEN = HOLD_AND_FREEZE.replace(
    "hash_version, state, account", "hash_version, state, try_answer, account"
).replace("'TRIED'", "'TRIED', $6::jsonb")


# More than anybody has.
HOLD_AND_NOTHING = HOLD_AND_FREEZE.replace(_ENOUGH, "a.available >= 1000000000000")
FORESEEN_AND_NOTHING = HOLD_FORESEEN.replace(_ENOUGH, "a.available >= 1000000000000")
STORE_REFUSED = STORE_HOLD.replace("SET try_answer", "SET state = 'REFUSED', try_answer")


async def bare(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Do the business alone: a repeat would freeze twice."""
    _all(await tx.execute(FREEZE, keys, accounts), keys)
    _all(await tx.execute(NOTE, keys, accounts, NOON), keys)


async def naive(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Send each part of the fence in a round trip of its own."""
    assert len(await tx.fetch(CLAIM, keys, accounts, TODAY, NOON, HASH)) == len(keys)
    await bare(tx, keys, accounts)
    _all(await tx.execute(STORE, keys, ANSWER), keys)


async def generic(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Let the parts of the fence ride along: as many round trips as without it."""
    _all(await tx.execute(CLAIM_AND_FREEZE, keys, accounts, TODAY, NOON, HASH), keys)
    _all(await tx.execute(NOTE_AND_STORE, keys, accounts, NOON, ANSWER), keys)


async def row(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Let the hold's own row be the fence."""
    _all(await tx.execute(HOLD_AND_FREEZE, keys, accounts, TODAY, NOON, HASH), keys)
    _all(await tx.execute(STORE_HOLD, keys, ANSWER), keys)


async def generic_foreseen(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Claim with the answer: one write to the fence."""
    values = (TODAY, NOON, HASH, ANSWER)
    _all(await tx.execute(FORESEEN_AND_FREEZE, keys, accounts, *values), keys)
    _all(await tx.execute(NOTE, keys, accounts, NOON), keys)


async def row_foreseen(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Claim the hold's row with the answer: as many writes as without a fence."""
    values = (TODAY, NOON, HASH, ANSWER)
    _all(await tx.execute(HOLD_FORESEEN, keys, accounts, *values), keys)


async def sold_out(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Refuse: nothing is frozen, and the row keeps the answer."""
    assert await tx.execute(HOLD_AND_NOTHING, keys, accounts, TODAY, NOON, HASH) == "UPDATE 0"
    _all(await tx.execute(STORE_REFUSED, keys, ANSWER), keys)


async def sold_out_foreseen(tx: Any, keys: list[str], accounts: list[int]) -> None:
    """Foresee a success in vain: an answer that is stored cannot change, so all is done again."""
    values = (TODAY, NOON, HASH, ANSWER)
    assert await tx.execute(FORESEEN_AND_NOTHING, keys, accounts, *values) == "UPDATE 0"
    await tx.execute("ROLLBACK; BEGIN")
    await sold_out(tx, keys, accounts)


FENCED = {
    "naive": naive,
    "generic": generic,
    "row": row,
    "generic, foreseen": generic_foreseen,
    "row, foreseen": row_foreseen,
    "sold out, foreseen": sold_out_foreseen,
}
AGAINST = {"sold out, foreseen": sold_out}  # All others against `bare`.


def _all(done: str, keys: Sequence[str]) -> None:
    """Stop unless every row was written: a run that refuses measures nothing."""
    assert int(done.rpartition(" ")[2]) == len(keys), done


@dataclass(frozen=True)
class Cost:
    """By how much the fence lengthens a transaction, in percent, over pairs of runs."""

    name: str
    batch: int
    percents: list[float]
    bare_per_second: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the median, by order statistics: no shape is assumed."""
        return median_interval(self.percents)

    def told(self) -> str:
        """Return the figure in one line."""
        low, high = self.interval
        return (
            f"{self.name:<18} batch {self.batch:>3}: {median(self.percents):+6.1f} %"
            f"  [{low:+.1f}, {high:+.1f}]  over {len(self.percents)} pairs,"
            f" without it {self.bare_per_second:,.0f} orders/s"
        )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the narrowest pair of order statistics that holds the median with 95 %.

    With fewer than six values there is none: the whole range is returned.
    """
    ordered, n = sorted(values), len(values)
    below = 0.0  # The chance that so few values lie below the median.
    for rank in range(n // 2):
        below += math.comb(n, rank) / 2**n
        if below > 0.025:
            return ordered[max(rank - 1, 0)], ordered[min(n - rank, n - 1)]
    return ordered[0], ordered[-1]


class Load:
    """Eight connections that do one kind of transaction for some seconds."""

    def __init__(self, connections: Sequence[Any]) -> None:
        self._connections = connections
        self._runs = 0

    async def per_second(self, work: Any, batch: int, seconds: float) -> float:
        """Return how many orders a second came through."""
        self._runs += 1
        begun = time.monotonic()
        until = begun + seconds
        done = await asyncio.gather(
            *(self._one(c, n, work, batch, until) for n, c in enumerate(self._connections))
        )
        return sum(done) / (time.monotonic() - begun)

    async def _one(self, connection: Any, number: int, work: Any, batch: int, until: float) -> int:
        """Work on accounts of its own: measured is the fence, not a lock."""
        share, done = ACCOUNTS // len(self._connections), 0
        while time.monotonic() < until:
            first = number * share + done % (share - batch)
            accounts = list(range(first, first + batch))
            keys = [f"t/o-{self._runs}-{number}-{done + n:08}/hold" for n in range(batch)]
            async with connection.transaction():
                await work(connection, keys, accounts)
            done += batch
        return done


async def measure(dsn: str, *, pairs: int, seconds: float) -> list[Cost]:
    """Take pairs by turns, every other one the other way round."""
    connections = [await asyncpg.connect(dsn, server_settings=PRICES) for _ in range(CONNECTIONS)]
    try:
        for statement in (*TABLES, *USED):
            await connections[0].execute(statement)
        load = Load(connections)
        costs = []
        for batch in BATCHES:
            for name, work in FENCED.items():
                base = AGAINST.get(name, bare)
                await load.per_second(base, batch, seconds / 2)
                await load.per_second(work, batch, seconds / 2)
                taken = [
                    await _pair(load, (base, work), batch, seconds, turned=n % 2 == 1)
                    for n in range(pairs)
                ]
                percents = [100 * (without / with_ - 1) for without, with_ in taken]
                costs.append(Cost(name, batch, percents, median(w for w, _ in taken)))
                sys.stderr.write(f"{costs[-1].told()}\n")
    finally:
        for connection in connections:
            await connection.close()
    return costs


async def _pair(
    load: Load, works: tuple[Any, Any], batch: int, seconds: float, *, turned: bool
) -> tuple[float, float]:
    """Return the pace of both, the first one's first."""
    first, second = reversed(works) if turned else works
    taken = [await load.per_second(work, batch, seconds) for work in (first, second)]
    return (taken[1], taken[0]) if turned else (taken[0], taken[1])


def main() -> None:
    """Measure on a server of one's own, print the figures and the machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run of a pair")
    parser.add_argument("--json", type=Path, help="also keep them here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="everycent-fence-") as folder:
        Path(folder).chmod(0o755)  # As root the server runs as somebody else.
        server = PostgresServer(Path(folder) / "server")
        server.start()
        try:
            costs = asyncio.run(measure(server.dsn(), pairs=options.pairs, seconds=options.seconds))
        finally:
            server.stop()
    for cost in costs:
        print(cost.told())
    kept = {"machine": describe(), "costs": [{**vars(c), "interval": c.interval} for c in costs]}
    print(json.dumps(kept["machine"]))
    if options.json:
        options.json.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
