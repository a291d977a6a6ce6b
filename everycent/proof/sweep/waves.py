"""What is done to runs that stand at their boundary: to one of them, or to a whole wave."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from everycent.proof.sweep.cells import Fault
from everycent.proof.sweep.scenario import SweptFlow
from everycent.proof.sweep.stage import LOOK_SECONDS, Stage
from everycent.stack.embedded import TOGETHER

# An open transaction has 10 s, a workflow task as well; the attempt of an activity 20 at least.
STAND_SECONDS = 7.0
STAND_IN_ACTIVITY_SECONDS = 14.0
TOGETHER_WORKERS = tuple(f"worker-{name}" for name in TOGETHER)
STOP_SECONDS = 2.0
PUT_BACK_SECONDS = 1.0
STALL_SECONDS = 2.0


@dataclass
class _Standing:
    fault: Fault
    tenant: str
    hit: dict[str, Any]
    struck: "asyncio.Future[bool]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    until: float = field(init=False)

    def __post_init__(self) -> None:
        patient = str(self.hit["point"]).startswith(("activity", "provider"))
        seconds = STAND_IN_ACTIVITY_SECONDS if patient else STAND_SECONDS
        self.until = time.monotonic() + seconds


class Deeds:
    """Does what the rules of a process cannot: to servers, to sessions, to whole waves of runs."""

    def __init__(self, stage: Stage, flow: SweptFlow) -> None:
        self._stage = stage
        self._flow = flow
        self._on_the_way: set[str] = set()
        self._standing: list[_Standing] = []

    def expect(self, tenant: str) -> None:
        """Say that a run is on its way to its boundary."""
        self._on_the_way.add(tenant)

    def forget(self, tenant: str) -> None:
        """Say that a run will not come to it any more."""
        self._on_the_way.discard(tenant)

    async def do(self, fault: Fault, tenant: str, hit: dict[str, Any]) -> bool:
        """Do the fault's deed to a run that stands; True if it stood there when it was struck."""
        if fault.wave:
            standing = _Standing(fault, tenant, hit)
            self.forget(tenant)
            self._standing.append(standing)
            return await standing.struck
        if fault.deed == "cancel":
            await self._flow.cancel(self._stage.shop, tenant)
        elif fault.deed == "end session":
            await self._stage.end_session(hit["backend"])
        else:
            return self._stage.doom(hit["backend"], fault.deed, STALL_SECONDS)
        return True

    async def strike_waves(self) -> None:
        """Strike when all that are on their way stand, or the first stood long enough; for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._standing:
                continue
            now = time.monotonic()
            if not self._on_the_way or any(one.until < now for one in self._standing):
                wave, self._standing = self._standing, []
                await self._strike(wave)

    async def _strike(self, wave: Sequence[_Standing]) -> None:
        """Do the one deed to all that stand, then let them go; all of a wave have one fault."""
        deed, dead = wave[0].fault.deed, {one.hit["pid"] for one in wave}
        if deed == "kill worker":
            self._stage.kill(dead)
        elif deed == "stop database":
            dead = {self._stage.crash("postgres", lambda: time.sleep(STOP_SECONDS))}
        elif deed == "stop Temporal":
            dead = {self._stage.crash("temporal", lambda: time.sleep(STOP_SECONDS))}
        else:
            put_back = await asyncio.to_thread(self._stage.snapshot_temporal)
            self._go(wave)
            await asyncio.sleep(PUT_BACK_SECONDS)  # So much of what happens now is forgotten.
            dead = {self._stage.crash("temporal", put_back)}
            if deed == "put Temporal back":
                # As it has to be done: what workers remember of their runs is newer than the file.
                dead |= self._stage.kill_named("worker-workflows", *TOGETHER_WORKERS)
        self._go(wave)
        await self._stage.all_ready(dead)

    def _go(self, wave: Sequence[_Standing]) -> None:
        self._stage.remove(one.tenant for one in wave)
        for one in wave:
            if not one.struck.done():
                one.struck.set_result(True)
