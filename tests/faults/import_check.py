"""Import a file of purchases while the importer and the workers are killed; audit what came of it.

A command of its own (`make import-check`); `make test` runs it on 300 rows with a kill or two. The
kills happen when so many orders are confirmed, at points and of victims that `--seed` determines.
"""

import argparse
import asyncio
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from everycent.database.reads import reading
from everycent.settings import SERVICES
from everycent.stack.embedded import EmbeddedStack, own_command

ROOT = Path(__file__).resolve().parents[2]
PURCHASES = ROOT.parent / "shared" / "data" / "cdnow_sample.csv"
IMPORTER = "the importer"
WORKERS = tuple(f"worker-{name}" for name in ("workflows", *SERVICES))
LOOK_SECONDS = 0.2
STUCK_SECONDS = 120


@dataclass(frozen=True)
class Kill:
    """Kill `victim` once `confirmed` orders are."""

    confirmed: int
    victim: str


def main() -> int:
    """Run the check; 0 when every total is exact and no invariant is broken."""
    options = _options()
    if not options.csv.is_file():
        sys.exit(
            f"error: there is no {options.csv}; name the purchases: make import-check CSV=FILE"
        )
    expected = expected_totals(options.csv, options.limit)
    kills = plan(options.seed, options.kills, expected["orders_confirmed"])
    print(f"seed {options.seed}: {len(kills)} kills; expected {expected}", flush=True)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="everycent-import-") as folder,
        EmbeddedStack(Path(folder) / "data") as stack,
    ):
        runs = import_until_done(stack, options, kills)
        print(f"imported in {time.monotonic() - began:.0f} s, {runs} runs", flush=True)
        summary = _json_of(_command(stack, options, "--json"))
        audit = _json_of(own_command(["audit", "--json"], stack.folder.path))
        received = asyncio.run(_units_received(stack))
    return report(expected, summary, audit, received)


def plan(seed: int, count: int, orders: int) -> list[Kill]:
    """Choose when who is killed; the importer and the workers take turns by chance."""
    dice = random.Random(seed)
    points = sorted(dice.sample(range(1, max(2, int(orders * 0.95))), k=count))
    victims = [IMPORTER] if count else []  # One at least is the importer.
    victims += [dice.choice((IMPORTER, *WORKERS)) for _ in range(count - 1)]
    dice.shuffle(victims)
    return [Kill(point, victim) for point, victim in zip(points, victims, strict=True)]


def import_until_done(stack: EmbeddedStack, options: argparse.Namespace, kills: list[Kill]) -> int:
    """Start the import again and again until it ends by itself; return how often it was started."""
    runs = 0
    while True:
        runs += 1
        command, environment = _command(stack, options)
        importer = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
        )
        exit_code = asyncio.run(_watch(stack, importer, kills))
        if exit_code == 0 and not kills:
            return runs
        if exit_code not in (0, -signal.SIGKILL):
            raise SystemExit(f"the import ended with exit code {exit_code}")
        if exit_code == 0:
            raise SystemExit(f"the import ended before {kills} could happen")


async def _watch(stack: EmbeddedStack, importer: subprocess.Popen[bytes], kills: list[Kill]) -> int:
    """Do the kills as they fall due until the importer ends; return how it ended."""
    confirmed, moved_at = 0, time.monotonic()
    async with reading(stack.settings) as reader:
        while (exit_code := importer.poll()) is None:
            await asyncio.sleep(LOOK_SECONDS)
            [row] = await reader.rows(
                "order", "SELECT count(*) AS confirmed FROM shop_order WHERE status = 'CONFIRMED'"
            )
            if row["confirmed"] > confirmed:
                confirmed, moved_at = row["confirmed"], time.monotonic()
            elif time.monotonic() - moved_at > STUCK_SECONDS:
                importer.kill()
                raise SystemExit(f"nothing moves any more at {confirmed} confirmed orders")
            while kills and confirmed >= kills[0].confirmed:
                _kill(stack, importer, kills.pop(0))
    return exit_code


def _kill(stack: EmbeddedStack, importer: subprocess.Popen[bytes], kill: Kill) -> None:
    if kill.victim == IMPORTER:
        importer.kill()
        importer.wait()
    else:
        pid = stack.processes[kill.victim].pid
        if pid is not None:  # Being restarted already otherwise.
            os.kill(pid, signal.SIGKILL)
    print(f"kill -9 {kill.victim} at {kill.confirmed} confirmed orders", flush=True)


def expected_totals(file: Path, limit: int | None) -> dict[str, int]:
    """Work the totals out of the file by other means than the importer's."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        "orders_confirmed": len(rows[:limit]),
        "units_sold": sum(int(row["quantity"]) for row in rows[:limit]),
        "minor_units_captured": int(sum(Decimal(r["amount_usd"]) for r in rows[:limit]) * 100),
        "units_received": sum(int(row["quantity"]) for row in rows),
    }


def report(
    expected: dict[str, int], summary: dict[str, Any], audit: dict[str, Any], received: int
) -> int:
    """Print what was found beside what was expected, and return the exit code."""
    found = {**audit["totals"], "units_received": received}
    wrong = {
        name: f"{found[name]} instead of {value}"
        for name, value in expected.items()
        if found[name] != value
    }
    if summary["confirmed"] != expected["orders_confirmed"]:
        wrong["the importer's summary"] = f"{summary['confirmed']} confirmed"
    if audit["broken_invariants"]:
        broken = [rule for rule in audit["rules"] if rule["state"] == "broken"]
        wrong["broken invariants"] = json.dumps(broken)
    print(json.dumps({name: found[name] for name in expected}), flush=True)
    print(f"broken invariants: {audit['broken_invariants']}")
    print("\n".join(f"WRONG {name}: {how}" for name, how in wrong.items()) or "all exact")
    return 1 if wrong else 0


def _command(
    stack: EmbeddedStack, options: argparse.Namespace, *more: str
) -> tuple[list[str], dict[str, str]]:
    limit = ["--limit", str(options.limit)] if options.limit else []
    words = ["order", "import", str(options.csv), "--receive", *limit, *more]
    return own_command(words, stack.folder.path)


def _json_of(own: tuple[list[str], dict[str, str]]) -> dict[str, Any]:
    command, environment = own
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def _units_received(stack: EmbeddedStack) -> int:
    async with reading(stack.settings) as reader:
        return sum(stock.received for stock in await reader.stock("default"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, default=PURCHASES)
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    return parser.parse_args()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # The Temporal SDK's threads may abort a normal exit.
