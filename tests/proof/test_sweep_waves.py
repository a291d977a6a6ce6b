"""Who is struck by a wave of the sweep, and what a run that missed its boundary gets."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from everycent.proof.sweep.cells import FAULTS
from everycent.proof.sweep.checkout import SCENARIOS
from everycent.proof.sweep.director import beside
from everycent.proof.sweep.stage import LOOK_SECONDS, Stage
from everycent.proof.sweep.waves import Deeds

KILLED = next(fault for fault in FAULTS if fault.name == "worker killed")


class Killed:
    """A stage on which only is noted who is killed."""

    def __init__(self) -> None:
        self.waves: list[set[int]] = []

    def kill(self, pids: Iterable[int]) -> None:
        self.waves.append(set(pids))

    def remove(self, names: Iterable[str]) -> None:
        """Let them go."""

    async def all_ready(self, dead: Iterable[int] = ()) -> None:
        """All are."""


async def test_a_wave_waits_for_who_is_about_to_set_out() -> None:
    """Red when: who stands is struck as soon as nobody else is on the way."""
    stage = Killed()
    deeds = Deeds(cast(Stage, stage), cast(Any, None), 40, say=print)

    async def come(tenant: str, pid: int) -> bool:
        await deeds.admit(tenant)
        try:
            return await deeds.do(KILLED, tenant, {"pid": pid})
        finally:
            await deeds.leave(tenant)

    async def two() -> tuple[bool, bool]:
        for tenant in ("early", "late"):
            deeds.announce(tenant)
        early = asyncio.create_task(come("early", 1))
        await asyncio.sleep(5 * LOOK_SECONDS)  # Long enough to strike it alone.
        late = await come("late", 2)
        return await early, late

    assert await beside(deeds.strike_waves(), two()) == (True, True)
    assert stage.waves == [{1, 2}]


def test_a_second_run_of_an_outcome_with_a_short_window_has_more_time() -> None:
    """Red when: it gets the window in which the first one did not come to its boundary."""
    for scenario in SCENARIOS:
        first, second = scenario.window_seconds, scenario.patient().window_seconds
        assert second == max(first, 30)
