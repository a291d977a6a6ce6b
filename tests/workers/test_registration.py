"""A worker refuses to start with a flow, or with times, that could lose or repeat an effect."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError
from temporalio import activity
from temporalio.client import Client

from everycent.database.engine import Database, assert_no_transaction
from everycent.domain.message import Message, StepRequest
from everycent.domain.mode import Mode
from everycent.domain.order import OrderLine, PlaceOrder
from everycent.domain.outcome import Refusal
from everycent.errors import Bug, InvalidRequest
from everycent.settings import PoolSettings, ProviderSettings, RetentionSettings, Settings
from workers.composition import WORKERS, workers_of
from workers.registration import (
    check_registration,
    horizon_of,
    mode_problems,
    plan_problems,
    problems,
)
from workflows import checkout_plan
from workflows.catalog import FLOWS, PLANS
from workflows.options import DATABASE_MUST, DATABASE_STEP, StepOptions
from workflows.steps import Plan, Step

ROOT = Path(__file__).parents[2]
WHY = "a note for people"
NETWORK = {"httpx", "aiohttp", "requests", "urllib3", "socket", "smtplib", "websockets", "redis"}
AnyStep = Step[Any, Any]


class Seat(StepRequest):
    """A request as it should be."""


class Held(Message):
    pass


class Full(Refusal):
    pass


class Cinema:
    """The participant of somebody's own flow."""

    @activity.defn(name="cinema.hold")
    async def hold(self, request: Seat) -> Held | Full:
        return Held()

    @activity.defn(name="cinema.sell")
    async def sell(self, request: Seat) -> Held:
        return Held()

    @activity.defn(name="cinema.charge")
    async def charge(self, request: Seat) -> Held | Full:
        return Held()

    @activity.defn(name="cinema.free")
    async def free(self, request: Seat) -> Held:
        return Held()

    @activity.defn(name="cinema.shout")
    async def shout(self, text: str) -> None: ...


def step(name: str, does: Callable[..., Any], **more: Any) -> AnyStep:
    options = {"key": "seat", "options": DATABASE_MUST, **more}
    return Step(name, does, "cinema", **options)


SELL, FREE = step("sell", Cinema.sell), step("free", Cinema.free)
CHARGE = step("charge", Cinema.charge, pivot=True)
HOLD = step("hold", Cinema.hold, holds=True, confirm=SELL, undo=FREE, options=DATABASE_STEP)
PAY = step("pay", Cinema.hold, holds=True, confirm=CHARGE, undo=FREE)
GOOD = Plan((HOLD, SELL, FREE, PAY, CHARGE))


def found(*steps: AnyStep, **times: timedelta) -> list[str]:
    return list(plan_problems("cinema", Plan(steps, **times)))


def with_pool(**pool: float) -> Settings:
    return Settings(pool=PoolSettings(**cast(Any, pool)))


@pytest.mark.requirement("AC4.1", "AC4.6", "I13")
def test_the_shipped_flows_and_the_default_times_hold() -> None:
    """Everything that is declared passes, and there is a lot of it.

    Red when: a step of `checkout_plan` loses its undo, its key or its options, or a default of
    `PoolSettings` leaves the ladder.
    """
    assert list(problems(Settings())) == []
    assert sum(len(plan.steps) for plan in PLANS.values()) >= 27
    assert set(FLOWS) == set(PLANS)


def test_a_flow_of_ones_own_passes_as_it_should_be() -> None:
    assert found(*GOOD.steps) == []


@pytest.mark.requirement("AC9.4", "AC19.4")
def test_a_flow_whose_step_has_no_try_is_no_tcc() -> None:
    """A step that takes effect at once and is undone: a saga may have it, a TCC may not.

    Red when: the rule for the mode is left out, or takes a step behind the decision for one before.
    """
    stamp = step("stamp", Cinema.sell, undo=FREE)
    plan = Plan((*GOOD.steps, stamp, FREE))
    assert list(mode_problems("cinema", plan, Mode.SAGA)) == []
    [problem] = mode_problems("cinema", plan, Mode.TCC)
    assert "step 'stamp' has no Try" in problem
    behind = Plan((*GOOD.steps, replace(stamp, forward=True), FREE))
    assert list(mode_problems("cinema", behind, Mode.TCC)) == []
    two = Plan((*GOOD.steps, step("fee", Cinema.charge, pivot=True)))
    assert "two pivots" in next(mode_problems("cinema", two, Mode.TCC))


@pytest.mark.requirement("AC4.1")
@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((replace(HOLD, key=""), SELL, FREE), "step 'hold' has no key: declare key="),
        ((step("shout", Cinema.shout, irreversible=WHY),), "step 'shout' has no key: let its"),
        ((step("note", Cinema.sell),), "step 'note' has no undo: declare undo=, or irreversible="),
        ((replace(HOLD, undo=None), SELL), "'hold' holds and is never cancelled: declare undo="),
        ((replace(HOLD, confirm=None), FREE), "'hold' holds and is never confirmed: declare"),
        ((replace(HOLD, irreversible=WHY), SELL, FREE), "'hold' has an undo and is also irrevers"),
        (
            (replace(PAY, confirm=replace(CHARGE, pivot=False)), FREE),
            "step 'pay': its confirm 'charge' can refuse: declare it pivot=True",
        ),
        (
            (*GOOD.steps, step("fee", Cinema.charge, pivot=True)),
            "flow cinema has two pivots, 'charge' and 'fee': keep one",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_step_that_could_not_be_repeated_or_taken_back_is_refused(
    steps: tuple[AnyStep, ...], says: str
) -> None:
    """One line names the step and the fix; what is right beside it is not complained about.

    Red when: any one of the rules of `plan_problems` is left out.
    """
    (line,) = found(*steps)
    assert says in line
    assert "\n" not in line


@pytest.mark.requirement("AC4.6")
@pytest.mark.parametrize(
    ("pool", "says"),
    [
        ({"lock_timeout_seconds": 5}, "LOCK_TIMEOUT_SECONDS (5) must be less than EVERYCENT_POOL"),
        ({"lock_timeout_seconds": 0}, "LOCK_TIMEOUT_SECONDS is 0 and must be more than 0"),
        ({"statement_timeout_seconds": 10}, "STATEMENT_TIMEOUT_SECONDS (10) must be less than"),
        ({"idle_in_transaction_seconds": 11}, "IDLE_IN_TRANSACTION_SECONDS (11) must be more than"),
        ({"idle_in_transaction_seconds": 0}, "IDLE_IN_TRANSACTION_SECONDS (0) must be more than"),
        (
            {"wait_seconds": 6.5},
            "step 'open the order' ends after 25 s and one attempt may take 23",
        ),
        ({"transaction_timeout_seconds": 13}, "step 'open the order' ends after 25 s and one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_times_that_leave_the_ladder_are_refused(pool: dict[str, float], says: str) -> None:
    """The real settings are read, whoever set them, and the line names the one to change.

    Red when: a rung of `_pool_problems` is left out, or `_time_problems` leaves out a wait.
    """
    lines = list(problems(with_pool(**pool)))
    assert says in lines[0], lines
    assert all("\n" not in line for line in lines)


@pytest.mark.requirement("AC4.6")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (StepOptions(), "step 'sell' has no time-out: use the named options"),
        (
            StepOptions(**{**DATABASE_MUST, "schedule_to_close_timeout": timedelta(seconds=30)}),
            "step 'sell' is given up after 30 s, which leaves no time for a second attempt of 25 s",
        ),
    ],
    ids=["no start-to-close", "no second attempt"],
)
def test_a_step_without_time_is_refused(options: StepOptions, says: str) -> None:
    """Every attempt ends, and a lost one leaves time for another.

    Red when: `_time_problems` does not ask for a start-to-close time, or for two of them.
    """
    sell = replace(SELL, options=options)
    plan = Plan((replace(HOLD, confirm=sell), sell, FREE))
    (line,) = problems(Settings(), flows=(), plans={Cinema: plan})
    assert says in line


def test_talks_with_another_company_count() -> None:
    plan = Plan((step("charge", Cinema.charge, pivot=True, talks=1),))
    (line,) = problems(Settings(), flows=(), plans={Cinema: plan})
    assert "'charge' ends after 25 s and one attempt may take 40 s" in line


@pytest.mark.requirement("AC4.6")
def test_a_flow_must_outlive_its_retries() -> None:
    """A deadline is longer than the window and all retries together, and no retry is endless.

    Red when: `_deadline_problems` does not add a budget, or passes over a step without one.
    """
    steps = (step("charge", Cinema.charge, pivot=True), step("note", Cinema.sell, irreversible=WHY))
    hours = {"window": timedelta(hours=1), "deadline": timedelta(hours=3)}
    (line,) = found(*steps, **hours)
    assert "flow cinema ends after 3:00:00, its window and retries may take 3:00:00" in line
    assert found(*steps, **{**hours, "deadline": timedelta(hours=3, seconds=1)}) == []
    endless = replace(steps[1], options=DATABASE_STEP)
    (line,) = found(steps[0], endless, **hours)
    assert "step 'note' is retried for ever and the flow ends" in line


def test_a_flow_without_a_plan_is_refused() -> None:
    (line,) = problems(Settings(), flows=(*FLOWS, Cinema))
    assert line == "flow Cinema declares no steps: give it a Plan in workflows/catalog.py"


@pytest.mark.requirement("I13", "T23")
@pytest.mark.parametrize(
    ("changed", "needed"),
    [
        (Settings(), 123),
        (Settings(retention=RetentionSettings(repair_days=10)), 43),
        (Settings(provider=ProviderSettings(key_lifetime_hours=7 * 24)), 129),
    ],
    ids=["defaults", "cases settled in ten days", "a provider that remembers for a week"],
)
def test_rows_are_kept_until_no_late_message_can_come(changed: Settings, needed: int) -> None:
    """Window, retries, the time for a case and the provider's memory add up to the horizon.

    Red when: `horizon_of` forgets one of them, or `_retention_problems` is not asked.
    """
    for days, fits in ((needed, True), (needed - 1, False)):
        retention = changed.retention.model_copy(update={"days": days})
        lines = list(problems(changed.model_copy(update={"retention": retention})))
        assert (lines == []) is fits, lines
    assert f"EVERYCENT_RETENTION__DAYS ({needed - 1}) is shorter than the {needed} days" in lines[0]


def test_a_flow_with_a_deadline_ends_by_it() -> None:
    day = timedelta(days=1)
    assert horizon_of(Settings(), [Plan((), deadline=2 * day)]) == 2 * day + day + day


def test_the_plan_knows_the_longest_window() -> None:
    line = OrderLine(sku="LAMP", units=1, amount_minor=0)
    for plan in PLANS.values():
        longest = int(plan.window.total_seconds())
        order = {"order_id": "o", "customer": "c", "currency": "USD", "lines": (line,)}
        PlaceOrder(**cast(Any, order), payment_window_seconds=longest)
        with pytest.raises(ValidationError):
            PlaceOrder(**cast(Any, order), payment_window_seconds=longest + 1)


@pytest.mark.requirement("AC4.1", "T23")
@pytest.mark.parametrize("name", WORKERS)
async def test_no_worker_starts_with_what_cannot_hold(name: Any) -> None:
    """The check stands before the first connection of every worker.

    Red when: `workers_of` does not call `check_registration`.
    """
    short = Settings(retention=RetentionSettings(days=3))
    with pytest.raises(InvalidRequest, match="RETENTION__DAYS"):
        async with workers_of(name, cast(Client, None), short):
            pass


def test_the_error_is_one_line_and_counts_the_others() -> None:
    with pytest.raises(InvalidRequest, match=r"^[^\n]+ \(and \d+ more\)$"):
        check_registration(with_pool(lock_timeout_seconds=100, statement_timeout_seconds=50))


# -- the plan is what the flow does


def test_only_the_place_starts_activities() -> None:
    """A flow has no other way to start a step than a declared one, so none can be forgotten.

    The sweeper is no flow with steps of its own: it confirms and cancels what flows have left.
    Branches start what `hold` has declared, with its Confirm and its Cancel.
    """
    calls = {
        path.name
        for path in (ROOT / "workflows").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and "activity" in node.attr and node.attr != "activity"
        and node.attr.startswith(("start_", "execute_"))
    }  # fmt: skip
    assert calls == {"branches.py", "place.py", "sweep_ends.py", "sweep_orders.py"}


def test_every_step_of_the_plan_is_started_by_the_flow() -> None:
    source = (ROOT / "workflows" / "checkout_steps.py").read_text()
    started = {
        node.args[0].attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._place.start"
        and isinstance(node.args[0], ast.Attribute)
    }  # fmt: skip
    declared = {name for name, value in vars(checkout_plan).items() if isinstance(value, Step)}
    assert started == declared


def test_the_options_of_a_step_have_a_name() -> None:
    for node in ast.walk(ast.parse(inspect.getsource(checkout_plan))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Step":
            assert isinstance(node.args[3], ast.Name), ast.unparse(node)


# -- no network call inside a transaction


@pytest.mark.requirement("AC4.8")
async def test_a_call_inside_a_snapshot_is_stopped_too(settings: Settings) -> None:
    """A read-only transaction holds a connection just as well.

    Red when: `snapshot` does not note that it is open.
    """
    database = Database(settings.database["points"], PoolSettings(size=1))
    async with database.snapshot():
        with pytest.raises(Bug):
            assert_no_transaction()
    assert_no_transaction()
    await database.close()


@pytest.mark.requirement("AC4.8")
def test_only_gateways_reach_the_network_and_each_is_wired_with_the_guard() -> None:
    """Whoever takes a client takes the guard; tests/gateways shows that every call asks it first.

    Red when: an activity imports a client of its own, or the composition wires a gateway without
    `assert_no_transaction`.
    """
    layers = ("activities", "workflows", "everycent/database", "everycent/gateways")
    files = [path for layer in layers for path in (ROOT / layer).rglob("*.py")]
    reaching = [path for path in files if NETWORK & _imports(path)]
    assert reaching, "nothing was read"
    assert {path.parent.name for path in reaching} == {"gateways"}
    takers = [
        [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        for path in reaching
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    assert all("guard" in arguments for arguments in takers if "client" in arguments)
    wiring = (ROOT / "workers" / "composition.py").read_text()
    ours = [arguments for arguments in takers if "declared" not in arguments]  # Users wire theirs.
    assert wiring.count("guard=assert_no_transaction") == len(ours)


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names
