"""Two-phase commit over two databases: whoever dies, both or neither, and nothing stays locked."""

import asyncio
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from everycent import clock
from everycent.database.migrate import migrate
from everycent.settings import ServiceName, Settings
from everycent.stack.postgres import PostgresServer
from examples.points_for_balance import RefusedError, coordinator, grant, works
from examples.two_phase_commit import GRACE, Prepared, TwoPhase

ROOT = Path(__file__).parents[2]
POINTS = [
    "prepared points", "prepared account", "decided", "finished points", "finished account",
]  # fmt: skip
# Runs one exchange in a process of its own, and dies there with kill -9.
DIES = """
import asyncio, os, signal, sys
from everycent.settings import ServiceName, Settings
from examples.points_for_balance import coordinator, works

async def main(settings, gid, customer, point):
    async with coordinator(Settings.model_validate_json(settings)) as two_phase:
        def die(reached):
            if reached == point:
                os.kill(os.getpid(), signal.SIGKILL)
        two_phase.reached = die
        await two_phase.run(gid, works(gid, customer, 40))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def two_phase(settings: Settings) -> AsyncIterator[TwoPhase]:
    """A coordinator over the points and the account database of this session's server."""
    async with coordinator(settings) as made:
        yield made


@pytest.fixture
def customer() -> str:
    """A customer of this test's own."""
    return f"c{uuid.uuid4().hex[:12]}"


async def holdings(at: TwoPhase, tenant: str, customer: str) -> tuple[int, int]:
    """Return the customer's points and cents."""
    async with at.branches["points"].connect() as connection:
        points = await connection.scalar(
            text("SELECT available FROM points_account WHERE tenant = :t AND customer = :c"),
            {"t": tenant, "c": customer},
        )
    async with at.branches["account"].connect() as connection:
        minor = await connection.scalar(
            text("SELECT available FROM account WHERE tenant = :t AND account = :c"),
            {"t": tenant, "c": customer},
        )
    return points or 0, minor or 0


async def in_doubt(at: TwoPhase, gid: str) -> list[Prepared]:
    """Return what is prepared under that gid: other tests have theirs."""
    return [each for each in await at.in_doubt() if each.gid == gid]


def die(settings: Settings, gid: str, customer: str, point: str) -> None:
    """Run the exchange in another process that kills itself there."""
    words = [sys.executable, "-c", DIES, settings.model_dump_json(), gid, customer, point]
    died = subprocess.run(words, cwd=ROOT, check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL


async def recover(at: TwoPhase, gid: str, *, later: timedelta) -> list[tuple[str, str, bool]]:
    """Recover as if it were later; return what became of the branches of that gid."""
    ended = await at.recover(now=clock.now() + later)
    return [(e.prepared.branch, e.decision, e.late) for e in ended if e.prepared.gid == gid]


@pytest.mark.requirement("AC10.5", "AC19.2")
async def test_an_exchange_happens_in_both_databases_and_once(
    two_phase: TwoPhase, tenant: str, customer: str
) -> None:
    """Red when: one branch is not committed, or a repeated call commits another time."""
    await grant(two_phase.branches["points"], f"{tenant}/g", customer, 100)
    gid = f"{tenant}/e-1"
    for _ in range(2):
        assert await two_phase.run(gid, works(gid, customer, 40)) == "COMMIT"
        assert await holdings(two_phase, tenant, customer) == (60, 40)
    assert await in_doubt(two_phase, gid) == []


@pytest.mark.requirement("AC10.5")
async def test_a_refusal_of_one_takes_the_other_back(
    two_phase: TwoPhase, tenant: str, customer: str
) -> None:
    """Red when: what was prepared before the refusal stays prepared, or is committed."""
    await grant(two_phase.branches["points"], f"{tenant}/g", customer, 100)
    gid = f"{tenant}/e-1"
    both = works(gid, customer, 140)
    with pytest.raises(RefusedError):  # The account is prepared first, and the points are too few.
        await two_phase.run(gid, {"account": both["account"], "points": both["points"]})
    assert await holdings(two_phase, tenant, customer) == (100, 0)
    assert await in_doubt(two_phase, gid) == []
    assert await two_phase.run(gid, both) == "ABORT"  # Decided is decided.


@pytest.mark.requirement("AC10.5")
@pytest.mark.parametrize("point", POINTS)
async def test_a_coordinator_dies_and_recovery_ends_what_it_left(
    two_phase: TwoPhase, settings: Settings, tenant: str, customer: str, point: str
) -> None:
    """Killed with kill -9 at each point between two durable steps.

    Red when: recovery leaves a prepared transaction, commits one and rolls the other back, ends one
    that may still have its coordinator, or does not say that one is old.
    """
    await grant(two_phase.branches["points"], f"{tenant}/g", customer, 100)
    gid = f"{tenant}/e-1"
    await asyncio.to_thread(die, settings, gid, customer, point)
    left = {each.branch for each in await in_doubt(two_phase, gid)}
    assert (
        left
        == {
            "prepared points": {"points"},
            "prepared account": {"points", "account"},
            "decided": {"points", "account"},
            "finished points": {"account"},
            "finished account": set(),
        }[point]
    )
    decided = not point.startswith("prepared")
    early = await recover(two_phase, gid, later=timedelta(0))
    assert early == [(b, "COMMIT", False) for b in ("points", "account") if decided and b in left]
    late = await recover(two_phase, gid, later=GRACE)
    assert late == [(b, "ABORT", True) for b in ("points", "account") if not decided and b in left]
    assert await in_doubt(two_phase, gid) == []
    expected = (60, 40) if decided else (100, 0)
    assert await holdings(two_phase, tenant, customer) == expected
    again = await two_phase.run(gid, works(gid, customer, 40))
    assert again == ("COMMIT" if decided or not left else "ABORT")
    assert await holdings(two_phase, tenant, customer) == expected


@pytest.mark.requirement("AC10.5")
async def test_a_repeated_prepare_finds_the_first_one(
    two_phase: TwoPhase, settings: Settings, tenant: str, customer: str
) -> None:
    """Red when: a second coordinator prepares again: it would wait for the first one's locks."""
    await grant(two_phase.branches["points"], f"{tenant}/g", customer, 100)
    gid = f"{tenant}/e-1"
    await asyncio.to_thread(die, settings, gid, customer, "prepared account")
    async with asyncio.timeout(20):
        assert await two_phase.run(gid, works(gid, customer, 40)) == "COMMIT"
    assert await holdings(two_phase, tenant, customer) == (60, 40)


@pytest.mark.requirement("AC10.5")
async def test_a_slow_coordinator_gives_in_to_recovery(
    two_phase: TwoPhase, tenant: str, customer: str
) -> None:
    """Recovery comes between the two branches; the coordinator prepares the second one after it.

    Red when: abort is only presumed and not written down: the late coordinator commits its half.
    """
    await grant(two_phase.branches["points"], f"{tenant}/g", customer, 100)
    gid = f"{tenant}/e-1"
    both = works(gid, customer, 40)

    async def late(tx: object) -> None:
        assert await recover(two_phase, gid, later=GRACE) == [("points", "ABORT", True)]
        await both["account"](tx)  # type: ignore[arg-type]

    assert await two_phase.run(gid, {"points": both["points"], "account": late}) == "ABORT"
    assert await holdings(two_phase, tenant, customer) == (100, 0)
    assert await in_doubt(two_phase, gid) == []


@pytest.mark.requirement("AC10.5")
async def test_five_coordinators_of_one_exchange_agree(
    two_phase: TwoPhase, tenant: str, customer: str
) -> None:
    """Red when: two of them prepare the same branch twice, or one decides against the others."""
    await grant(two_phase.branches["points"], f"{tenant}/g", customer, 100)
    gid = f"{tenant}/e-1"
    said = await asyncio.gather(
        *(two_phase.run(gid, works(gid, customer, 40)) for _ in range(5)), return_exceptions=True
    )
    await recover(two_phase, gid, later=GRACE)
    decided = await two_phase.run(gid, works(gid, customer, 40))
    assert {each for each in said if isinstance(each, str)} <= {decided}
    expected = (60, 40) if decided == "COMMIT" else (100, 0)
    assert await holdings(two_phase, tenant, customer) == expected
    assert await in_doubt(two_phase, gid) == []


@pytest.mark.requirement("AC10.5")
async def test_what_is_prepared_outlives_the_database(
    tmp_path: Path, tenant: str, customer: str
) -> None:
    """The database is killed with all its backends between the phases, on a server of this test.

    Red when: recovery after the restart does not find what was prepared, or ends it halfway.
    """
    server = PostgresServer(tmp_path / "pg")
    server.start()
    try:
        names: tuple[ServiceName, ...] = ("order", "points", "account")
        dsns = {name: server.dsn(f"everycent_{name}") for name in names}
        settings = Settings.model_validate({"owner": dsns})
        await migrate(settings, names)
        async with coordinator(settings) as at:
            await grant(at.branches["points"], f"{tenant}/g", customer, 100)
        gid = f"{tenant}/e-1"
        await asyncio.to_thread(die, settings, gid, customer, "decided")
        assert server.process is not None
        server.process.send_signal(signal.SIGQUIT)
        await asyncio.to_thread(server.process.wait, 30)
        server.stop()
        server.start()
        async with coordinator(settings) as at:
            ended = await recover(at, gid, later=timedelta(0))
            assert ended == [("points", "COMMIT", False), ("account", "COMMIT", False)]
            assert await holdings(at, tenant, customer) == (60, 40)
    finally:
        server.stop()
