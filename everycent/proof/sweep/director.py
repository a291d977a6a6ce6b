"""Runs the cells: brings each run to its boundary, lets the fault happen, waits, audits."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from everycent.faults import POINTS, Rule
from everycent.proof.sweep.cells import FAULTS, Boundary, Cell, boundaries, cells_of, sample
from everycent.proof.sweep.matrix import CellResult
from everycent.proof.sweep.scenario import Scenario, State, SweptFlow
from everycent.proof.sweep.stage import DYING, LOOK_SECONDS, Stage
from everycent.proof.sweep.waves import Deeds

T = TypeVar("T")
RUN_SECONDS = 600.0  # A run that others keep killing gets there; one that is stuck never does.
UNDER_WAY = 6  # So many times those on their way live at a time: the others wait for time-outs.
AGAIN_SECONDS = 0.5
SAY_AGAIN_SECONDS, SAY_SELDOM_SECONDS = 5.0, 40.0
LEARN_SECONDS = 300.0  # On a busy machine: without a fault nobody waits.
LOOK_LIMIT_SECONDS = 10.0  # A server that is being killed may never answer.
HELP_LIMIT_SECONDS = 20.0
# When one looks whether a run can go on, and how often: to look costs the server as much as a step.
STUCK_SECONDS, STUCK_AGAIN_SECONDS = 60.0, 5.0


@dataclass(frozen=True)
class Plan:
    """What is swept: outcomes and faults by name (all if none).

    `at_once` is how many orders are on their way to their boundary at a time: the most in a wave.
    """

    outcomes: Sequence[str] = ()
    faults: Sequence[str] = ()
    points: Sequence[str] = ()
    steps: Sequence[str] = ()
    at_once: int = 40
    together: bool = False  # One worker hosts everything, database steps are local activities.
    sample: int = 0  # So many cells of each fault at each kind of point; 0 for all.
    stacks: int = 1  # So many stacks are swept side by side, each with a part of the cells.

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
    look_after_it: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if not self.cell.fault.needs_operator:
            self.look_after_it += STUCK_SECONDS

    def is_to_be_looked_after(self) -> bool:
        """Tell, from time to time, to look whether the run can go on."""
        now = time.monotonic()
        if self.is_over or now < self.look_after_it:
            return False
        self.look_after_it = now + STUCK_AGAIN_SECONDS
        return True

    @property
    def is_over(self) -> bool:
        """Whether the order is final."""
        return self.state.status is not None


class Director:
    """Sweeps one flow on one stage."""

    def __init__(
        self, flow: SweptFlow, stage: Stage, plan: Plan, say: Callable[[str], None], name: str = "s"
    ) -> None:
        self._flow = flow
        self._name = name
        self._stage = stage
        self._plan = plan
        self._say = say
        self._numbers = itertools.count(1)
        self._runs: dict[str, Run] = {}  # Those that are under way, by tenant.
        self._deeds = Deeds(stage, flow, plan.at_once, say)
        self.flow = flow.name

    async def list_cells(self) -> list[Cell]:
        """Run every outcome once without a fault and return the cells that follow from it."""
        return await beside(self._look(), self._list_cells())

    async def sweep(self, cells: Sequence[Cell]) -> list[CellResult]:
        """Run the cells, wait until nothing moves, audit, and say what came of each, in order.

        Cells of a wave all have the same fault.
        """
        return await beside(self._look(), self._sweep(cells))

    async def _sweep(self, cells: Sequence[Cell]) -> list[CellResult]:
        return await self._judge(await self._all(cells))

    async def _list_cells(self) -> list[Cell]:
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

    async def _learn(self, scenario: Scenario) -> list[Boundary]:
        tenant = f"learn-{next(self._numbers)}"
        order = self._flow.order(tenant)
        rules = [
            Rule(point=p, action="note", order=order, nth=0, name=f"{tenant}-{p}") for p in POINTS
        ]
        run = Run(Cell(scenario.name, Boundary("", "", 0), FAULTS[0]), scenario, tenant, rules[0])
        self._stage.add(*rules)
        await self._again(run, lambda: scenario.prepare(self._stage.shop, tenant))
        async with self._watching(run):
            await self._until(lambda: run.is_over, LEARN_SECONDS, run)
        await self._still()
        self._stage.remove(rule.name for rule in rules)
        if run.state.status != scenario.usual:
            told = await self._flow.tell(self._stage.shop, tenant)
            raise AssertionError(
                f"without a fault {scenario.name} ended as {run.state.status}, not"
                f" {scenario.usual}: {run.trouble}\n{told}"
            )
        lines = itertools.chain(*(self._stage.lines[rule.name] for rule in rules))
        return boundaries(lines)[order]

    async def _still(self) -> None:
        """Let what comes after the order's end write its lines: nothing tells when it has."""
        await asyncio.sleep(3 * LOOK_SECONDS)
        self._stage.look()

    async def _all(self, cells: Sequence[Cell]) -> list[list[Run]]:
        """Run the cells side by side; a wave takes those that stand at their boundary."""
        gate = asyncio.Semaphore(UNDER_WAY * self._plan.at_once)
        left = len(cells)

        async def one(cell: Cell) -> list[Run]:
            nonlocal left
            async with gate:
                runs = await self._twice_at_most(cell)
            left -= 1
            if left % 50 == 0:
                self._say(f"{left} left")
            return runs

        work = asyncio.gather(*(one(cell) for cell in cells))
        runs = await beside(self._deeds.strike_waves(), _awaited(work))
        await self._stage.all_ready()
        return runs

    async def _twice_at_most(self, cell: Cell) -> list[Run]:
        """Run a cell; one whose run has not come to its boundary gets a second, with more time.

        On a busy machine an attempt, or the order's own time, may run out before the fault, and a
        poll may find at once what took two.
        """
        runs = [await self._run(cell)]
        if not runs[0].struck:
            runs.append(await self._run(cell, again=True))
        return runs

    def _run_of(self, cell: Cell, *, again: bool) -> Run:
        tenant = f"{self._name}{next(self._numbers)}"
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
        return Run(cell, scenario.patient() if again else scenario, tenant, rule)

    async def _run(self, cell: Cell, *, again: bool = False) -> Run:
        """Bring an order to its boundary, let the fault happen there, and wait for the end."""
        run = self._run_of(cell, again=again)
        rule = run.rule
        self._deeds.announce(run.tenant)
        await self._again(run, lambda: run.scenario.prepare(self._stage.shop, run.tenant))
        await self._deeds.admit(run.tenant)
        self._stage.add(rule)
        async with self._watching(run):
            run.struck = await self._strike(run)
            await self._until(lambda: run.is_over, RUN_SECONDS, run)
            self._stage.remove([rule.name])
            if run.struck and rule.action in ("late", "overtaken", "zombie"):
                await self._until(lambda: self._is_delivered(run), RUN_SECONDS, run)
        return run

    async def _strike(self, run: Run) -> bool:
        """Wait for the run at its boundary; True if it stood there when the fault came."""
        fault = run.cell.fault
        try:
            await self._until(lambda: bool(self._hit(run)) or run.is_over, RUN_SECONDS, run)
            hit = self._hit(run)
            if hit and fault.deed:
                return await self._deeds.do(fault, run.tenant, hit)
            return bool(hit)
        finally:  # What is left of the run is mostly waiting: the next one may set out.
            await self._deeds.leave(run.tenant)
            if fault.action == "halt":
                self._stage.remove([run.rule.name])

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
        seconds = SAY_AGAIN_SECONDS
        while not run.is_over:
            await self._again(run, lambda: run.scenario.play(self._stage.shop, run.tenant))
            # All was said; an order whose run has failed for good is placed once more.
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, SAY_SELDOM_SECONDS)

    async def _again(self, run: Run, act: Callable[[], Awaitable[None]]) -> None:
        while not run.is_over:
            try:
                await act()
            except DYING as error:
                if being_cancelled():  # The SDK tells that as an error of its own.
                    raise asyncio.CancelledError from error
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
        shop = self._stage.shop
        with contextlib.suppress(*DYING):
            async with asyncio.timeout(HELP_LIMIT_SECONDS):
                if run.state.parked:
                    await self._flow.repair(shop, run.tenant)
                if run.is_to_be_looked_after():  # A wave strikes all in flight.
                    await self._flow.take_up(shop, run.tenant)

    async def _judge(self, cells: Sequence[Sequence[Run]]) -> list[CellResult]:
        """Audit all that has run; a cell is what its last run has shown, or the one that broke."""
        runs = list(itertools.chain(*cells))
        if any(run.cell.fault.deed.startswith("put Temporal back") for run in runs):
            await self._flow.after_restore(self._stage.shop)
        tenants = {run.tenant for run in runs}
        audited = await self._flow.audit(self._stage.shop, tenants)
        results = []
        for each in cells:
            judged = [await self._result(run, audited.broken.get(run.tenant, ())) for run in each]
            results.append(next((result for result in judged if not result.held), judged[-1]))
        return results

    async def _result(self, run: Run, broken: Sequence[str]) -> CellResult:
        order, wrong_end = self._flow.order(run.tenant), _wrong_end(run)
        how = "; ".join([*broken, *([wrong_end] if wrong_end else [])])
        if how:
            self._say(f"RED {run.cell.outcome}, {run.cell.fault.name}, {order}: {how}")
            how += f"\n{await self._flow.tell(self._stage.shop, run.tenant)}"
        return CellResult(
            outcome=run.cell.outcome,
            boundary=str(run.cell.boundary),
            fault=run.cell.fault.name,
            order=order,
            stood=run.struck,
            ended=run.state.status,
            held=not how,
            how=how,
        )


def _wrong_end(run: Run) -> str:
    if run.state.status is None:
        return f"it has no end: {run.trouble}"
    right = {run.scenario.usual}
    if run.cell.fault.for_good:
        right |= run.scenario.given_up
    if run.cell.fault.deed.startswith("put Temporal back"):
        right |= run.scenario.forgotten
    if run.cell.fault.deed == "cancel":
        right |= {"CANCELLED"}
    if run.state.status not in right:
        return f"it ended as {run.state.status}, not {' or '.join(sorted(right))}"
    return ""


def being_cancelled() -> bool:
    """Tell whether the present task is to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _awaited(work: Awaitable[T]) -> T:
    return await work


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
