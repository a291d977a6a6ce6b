"""What is done to runs that stand at their boundary: to one of them, or to a whole wave."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from everycent.proof.sweep.cells import Fault
from everycent.proof.sweep.scenario import SweptFlow
from everycent.proof.sweep.stage import LOOK_SECONDS, Stage
from everycent.stack.embedded import TOGETHER

# An open transaction has 18 s in a swept stack, a workflow task 20, an attempt 25 at least.
STAND_SECONDS = 14.0
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
    until: float = field(default_factory=lambda: time.monotonic() + STAND_SECONDS)


class Deeds:
    """Does what the rules of a process cannot: to servers, to sessions, to whole waves of runs."""

    def __init__(
        self, stage: Stage, flow: SweptFlow, at_once: int, say: Callable[[str], None]
    ) -> None:
        self._stage = stage
        self._flow = flow
        self._at_once = at_once
        self._say = say
        self._soon: set[str] = set()  # Those that prepare themselves, or wait for room.
        self._coming: set[str] = set()
        self._late: set[str] = set()
        self._standing: list[_Standing] = []
        self._room = asyncio.Condition()

    def announce(self, tenant: str) -> None:
        """Say that a run is about to set out: while there is room for it, a wave waits for it."""
        self._soon.add(tenant)

    async def admit(self, tenant: str) -> None:
        """Let a run set out for its boundary when there is room; so many make a wave at most."""
        async with self._room:
            await self._room.wait_for(lambda: len(self._coming) < self._at_once)
            self._soon.discard(tenant)
            self._coming.add(tenant)

    async def leave(self, tenant: str) -> None:
        """Say that a run has been at its boundary, or will not come to it any more."""
        async with self._room:
            self._coming.discard(tenant)
            self._late.discard(tenant)
            self._room.notify_all()

    async def do(self, fault: Fault, tenant: str, hit: dict[str, Any]) -> bool:
        """Do the fault's deed to a run that stands; True if it stood there when it was struck."""
        if fault.wave:
            standing = _Standing(fault, tenant, hit)
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
        """Strike when all that are coming stand, or the first stood long enough; for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._standing:
                continue
            now = time.monotonic()
            standing = {one.tenant for one in self._standing}
            missing = self._coming - standing
            more = bool(self._soon) and len(self._coming) < self._at_once
            all_here = not missing and not self._late - standing and not more
            if all_here or any(one.until < now for one in self._standing):
                wave, self._standing = self._standing, []
                self._say(f"{wave[0].fault.name}: {len(wave)} stand, {len(missing)} are late")
                await self._strike(wave)
                await self._give_up_waiting_for(missing)

    async def _give_up_waiting_for(self, missing: set[str]) -> None:
        """Let others set out in the place of those that wait for time-outs of what has died."""
        async with self._room:
            self._late |= self._coming & missing
            self._coming -= missing
            self._room.notify_all()

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
        for one in wave:  # Only now: who begins among the dying has to wait for their time-outs.
            if not one.struck.done():
                one.struck.set_result(True)

    def _go(self, wave: Sequence[_Standing]) -> None:
        self._stage.remove(one.tenant for one in wave)
