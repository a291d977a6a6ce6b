"""Runs the cells: brings each run to its boundary, lets the fault happen, waits, audits."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from everycent.faults import POINTS, Rule
from everycent.proof.sweep.cells import FAULTS, Boundary, Cell, Fault, boundaries, cells_of, sample
from everycent.proof.sweep.matrix import CellResult, SweepReport
from everycent.proof.sweep.scenario import Scenario, State, SweptFlow
from everycent.proof.sweep.stage import DYING, LOOK_SECONDS, Stage
from everycent.proof.sweep.waves import Deeds

T = TypeVar("T")
RUN_SECONDS = 300.0
AGAIN_SECONDS = 0.5
LEARN_SECONDS = 120.0
LOOK_LIMIT_SECONDS = 10.0  # A server that is being killed may never answer.
HELP_LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class Plan:
    """What is swept: outcomes and faults by name (all if none), and so many runs at a time."""

    outcomes: Sequence[str] = ()
    faults: Sequence[str] = ()
    points: Sequence[str] = ()
    steps: Sequence[str] = ()
    at_once: int = 40
    together: bool = False  # One worker hosts everything, database steps are local activities.
    sample: int = 0  # So many cells of each fault at each kind of point; 0 for all.

    def wants(self, place: Boundary) -> bool:
        """Tell whether a boundary is to be swept."""
        point = not self.points or place.point in self.points
        return point and (not self.steps or place.step in self.steps)


@dataclass
class Run:
    """One cell while it is run."""

    cell: Cell
    scenario: Scenario
    tenant: str
    rule: Rule
    state: State = field(default_factory=State)
    struck: bool = False
    trouble: str = ""
    helping: "asyncio.Task[None] | None" = None

    @property
    def is_over(self) -> bool:
        """Whether the order is final."""
        return self.state.status is not None


class Director:
    """Sweeps one flow on one stage."""

    def __init__(
        self, flow: SweptFlow, stage: Stage, plan: Plan, say: Callable[[str], None]
    ) -> None:
        self._flow = flow
        self._stage = stage
        self._plan = plan
        self._say = say
        self._numbers = itertools.count(1)
        self._runs: dict[str, Run] = {}  # Those that are under way, by tenant.
        self._deeds = Deeds(stage, flow)

    async def run(self) -> SweepReport:
        """Learn the cells and sweep them."""
        return await beside(self._look(), self._learn_and_sweep())

    async def list_cells(self) -> list[Cell]:
        """Learn the cells, no more."""
        return await beside(self._look(), self.learn())

    async def _learn_and_sweep(self) -> SweepReport:
        cells = await self.learn()
        self._say(f"{len(cells)} cells")
        return await self.sweep(cells)

    async def learn(self) -> list[Cell]:
        """Run every outcome once without a fault and return the cells that follow from it."""
        faults = [f for f in FAULTS if not self._plan.faults or f.name in self._plan.faults]
        wanted = [
            s for s in self._flow.scenarios
            if not self._plan.outcomes or s.name in self._plan.outcomes
        ]  # fmt: skip
        found = await asyncio.gather(*(self._learn(scenario) for scenario in wanted))
        cells: list[Cell] = []
        for scenario, places in zip(wanted, found, strict=True):
            cells += cells_of(scenario.name, list(filter(self._plan.wants, places)), faults)
        return sample(cells, self._plan.sample) if self._plan.sample else cells

    async def sweep(self, cells: Sequence[Cell]) -> SweepReport:
        """Run every cell, wait until nothing moves, audit, and say what came of each."""
        began = time.monotonic()
        results: list[CellResult] = []
        by_fault: dict[Fault, list[Cell]] = {}
        for cell in cells:
            by_fault.setdefault(cell.fault, []).append(cell)
        alone = [cell for cell in cells if not cell.fault.wave]
        groups = [("faults of one order", alone)] if alone else []
        groups += [(f.name, each) for f, each in by_fault.items() if f.wave]
        for name, group in groups:
            self._say(f"{name}: {len(group)} cells")
            results += await self._twice_at_most(group)
        return SweepReport(
            flow=self._flow.name,
            cells=tuple(results),
            seconds=round(time.monotonic() - began, 1),
            sample=self._plan.sample,
        )

    async def _twice_at_most(self, cells: Sequence[Cell]) -> list[CellResult]:
        """Run the cells; one whose run has not come to its boundary gets a second run.

        On a busy machine an attempt may run out of time before the fault. A red cell stays red.
        """
        results = await self._judge(await self._all(cells))
        missed = [i for i, result in enumerate(results) if result.held and not result.stood]
        if missed:
            self._say(f"{len(missed)} were not reached, once more")
            again = await self._judge(await self._all([cells[i] for i in missed]))
            for i, result in zip(missed, again, strict=True):
                results[i] = result
        return results

    async def _learn(self, scenario: Scenario) -> list[Boundary]:
        tenant = f"learn-{next(self._numbers)}"
        order = self._flow.order(tenant)
        rules = [
            Rule(point=p, action="note", order=order, nth=0, name=f"{tenant}-{p}") for p in POINTS
        ]
        run = Run(Cell(scenario.name, Boundary("", "", 0), FAULTS[0]), scenario, tenant, rules[0])
        self._stage.add(*rules)
        async with self._watching(run):
            await self._until(lambda: run.is_over, LEARN_SECONDS, run)
        await self._still()
        self._stage.remove(rule.name for rule in rules)
        if run.state.status != scenario.usual:
            raise AssertionError(
                f"without a fault {scenario.name} ended as {run.state.status}, not"
                f" {scenario.usual}: {run.trouble}"
            )
        lines = itertools.chain(*(self._stage.lines[rule.name] for rule in rules))
        return boundaries(lines)[order]

    async def _still(self) -> None:
        """Let what comes after the order's end write its lines: nothing tells when it has."""
        await asyncio.sleep(3 * LOOK_SECONDS)
        self._stage.look()

    async def _all(self, cells: Sequence[Cell]) -> list[Run]:
        """Run the cells, so many at a time; a wave takes those that stand at their boundary."""
        runs = [self._run_of(cell) for cell in cells]
        gate = asyncio.Semaphore(self._plan.at_once)
        left = len(runs)

        async def one(run: Run) -> None:
            nonlocal left
            async with gate:
                self._deeds.expect(run.tenant)
                try:
                    await self._run(run)
                finally:
                    self._deeds.forget(run.tenant)
            left -= 1
            if left % 50 == 0:
                self._say(f"{left} left")

        await beside(self._deeds.strike_waves(), _all_of(one(run) for run in runs))
        await self._stage.all_ready()
        return runs

    def _run_of(self, cell: Cell) -> Run:
        tenant = f"s{next(self._numbers)}"
        place = cell.boundary
        rule = Rule(
            point=place.point,
            step=place.step,
            nth=place.nth,
            order=self._flow.order(tenant),
            action=cell.fault.action,
            name=tenant,
        )
        scenario = next(s for s in self._flow.scenarios if s.name == cell.outcome)
        return Run(cell, scenario, tenant, rule)

    async def _run(self, run: Run) -> None:
        fault, rule = run.cell.fault, run.rule
        self._stage.add(rule)
        async with self._watching(run):
            await self._until(lambda: bool(self._hit(run)) or run.is_over, RUN_SECONDS, run)
            hit = self._hit(run)
            run.struck = bool(hit) and not run.trouble
            if hit and fault.deed:
                run.struck = await self._deeds.do(fault, run.tenant, hit)
            else:
                self._deeds.forget(run.tenant)
            if fault.action == "halt":
                self._stage.remove([rule.name])
            await self._until(lambda: run.is_over, RUN_SECONDS, run)
            self._stage.remove([rule.name])
            if run.struck and rule.action in ("late", "overtaken", "zombie"):
                await self._until(lambda: self._is_delivered(run), RUN_SECONDS, run)

    def _hit(self, run: Run) -> dict[str, Any]:
        lines = self._stage.lines[run.rule.name]
        return next((line for line in lines if line.get("acts")), {})

    def _is_delivered(self, run: Run) -> bool:
        if run.rule.point == "commit.before":  # A zombie there ends with its transaction.
            return True
        if run.rule.point == "activity.after" and run.rule.action == "zombie":
            return True
        return any("delivered" in line for line in self._stage.lines[run.rule.name])

    @contextlib.asynccontextmanager
    async def _watching(self, run: Run) -> Any:
        """Play the scenario beside; look at the order until the end."""
        self._runs[run.tenant] = run
        playing = asyncio.create_task(self._play(run))
        try:
            yield
        finally:
            del self._runs[run.tenant]
            tasks = [playing, *([run.helping] if run.helping else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _play(self, run: Run) -> None:
        """Do as customers do: who gets an error asks again."""
        await self._again(run, lambda: run.scenario.prepare(self._stage.shop, run.tenant))
        while not run.is_over:
            await self._again(run, lambda: run.scenario.play(self._stage.shop, run.tenant))
            # All was said; an order whose run has failed for good is placed once more.
            await asyncio.sleep(10 * AGAIN_SECONDS)

    async def _again(self, run: Run, act: Callable[[], Awaitable[None]]) -> None:
        while not run.is_over:
            try:
                await act()
            except DYING as error:
                run.trouble = run.trouble or f"{type(error).__name__}: {error}"
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                run.trouble = ""
                return

    async def _until(self, condition: Callable[[], bool], seconds: float, run: Run) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(LOOK_SECONDS)
                return
        run.trouble = run.trouble or f"stuck for {seconds:.0f} s"

    async def _look(self) -> None:
        """Look at the journal and all orders under way, for ever; help those that need it."""
        while True:
            self._stage.look()
            try:
                async with asyncio.timeout(LOOK_LIMIT_SECONDS):
                    states = await self._flow.states(self._stage.shop, list(self._runs))
            except TimeoutError:
                self._say(f"nobody could tell for {LOOK_LIMIT_SECONDS:.0f} s how the orders stand")
            except DYING:
                pass
            else:
                for tenant, state in states.items():
                    if run := self._runs.get(tenant):
                        run.state = state
            for run in list(self._runs.values()):
                if run.helping is None or run.helping.done():
                    run.helping = asyncio.create_task(self._help(run))
            await asyncio.sleep(2 * LOOK_SECONDS)

    async def _help(self, run: Run) -> None:
        """Do what an operator does: for a parked step, and for a run that cannot go on."""
        shop, fault = self._stage.shop, run.cell.fault
        with contextlib.suppress(*DYING):
            async with asyncio.timeout(HELP_LIMIT_SECONDS):
                if run.state.parked:
                    await self._flow.repair(shop, run.tenant)
                if fault.needs_operator and not run.is_over:  # A wave strikes all in flight.
                    await self._flow.take_up(shop, run.tenant)

    async def _judge(self, runs: Sequence[Run]) -> list[CellResult]:
        tenants = {run.tenant: run for run in runs}
        if any(run.cell.fault.deed.startswith("put Temporal back") for run in runs):
            await self._flow.after_restore(self._stage.shop)
        audited = await self._flow.audit(self._stage.shop, tenants)
        results = []
        for tenant, run in tenants.items():
            order, broken = self._flow.order(tenant), list(audited.broken.get(tenant, ()))
            wrong_end = _wrong_end(run)
            how = "; ".join([*broken, *([wrong_end] if wrong_end else [])])
            if how:
                self._say(f"RED {run.cell.outcome}, {run.cell.fault.name}, {order}: {how}")
                how += f"\n{await self._flow.tell(self._stage.shop, tenant)}"
            results.append(
                CellResult(
                    outcome=run.cell.outcome,
                    boundary=str(run.cell.boundary),
                    fault=run.cell.fault.name,
                    order=order,
                    stood=run.struck,
                    ended=run.state.status,
                    held=not how,
                    how=how,
                )
            )
        return results


def _wrong_end(run: Run) -> str:
    if run.state.status is None:
        return f"it has no end: {run.trouble}"
    right = {run.scenario.usual}
    if run.cell.fault.for_good:
        right |= run.scenario.given_up
    if run.cell.fault.deed == "cancel":
        right |= {"CANCELLED"}
    if run.state.status not in right:
        return f"it ended as {run.state.status}, not {' or '.join(sorted(right))}"
    return ""


async def _all_of(works: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*works)


async def beside(servant: Coroutine[Any, Any, None], work: Coroutine[Any, Any, T]) -> T:
    """Await the work while a servant that has no end runs beside it; its failure ends both."""
    serving, working = asyncio.create_task(servant), asyncio.create_task(work)
    try:
        await asyncio.wait({serving, working}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        return await working
    finally:
        for task in (serving, working):
            task.cancel()
        await asyncio.gather(serving, working, return_exceptions=True)
