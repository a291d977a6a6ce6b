"""Every order of sessions on real PostgreSQL; the whole of it is `make interleavings`."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from everycent.database import fence, order
from everycent.proof.interleavings import Case, Lane, Result
from everycent.proof.interleavings_judge import Finding
from everycent.proof.interleavings_kinds import NOON, Kind
from everycent.proof.interleavings_order import DECISION
from everycent.proof.interleavings_report import Kept, Share, page, report
from everycent.proof.interleavings_rows import SEATS
from everycent.proof.interleavings_run import BOTH, COMMITS, KINDS, Part, play
from everycent.proof.interleavings_session import Cut, Ending, Point, stages
from everycent.proof.interleavings_tree import Standing, Tree, orders
from tests.proof import broken_fences

pytestmark = pytest.mark.timeout(300)  # For a busy machine: nothing here waits for a time.


# --- The real fence ---


@pytest.mark.requirement("I5", "T12", "AC13.5", "AC12.4")
async def test_every_order_of_two_sessions_at_the_fence_is_safe(dsns: dict[str, str]) -> None:
    """Every pair of Try, Confirm, Cancel and their doubles, from nothing and after a Try.

    Each session commits or aborts; all 70 (35, 20) orders of each pair are accounted for.

    Red when: a Cancel selects before it inserts, leaves no tombstone, or a Confirm does not lock.
    """
    result = await play(SEATS, dsns[SEATS.name], Part(2, endings=BOTH), lanes=2)

    assert result.findings == []
    assert result.ok
    assert result.counts.formula == _formula(SEATS, BOTH)


ROWS = [kind for kind in KINDS.values() if kind is not SEATS]


@pytest.mark.requirement("I5", "T12", "AC12.3")
@pytest.mark.parametrize(
    "kind", [k for k in KINDS.values() if k is not SEATS], ids=lambda k: k.name
)
async def test_every_order_of_two_sessions_on_a_row_is_safe(
    dsns: dict[str, str], kind: Kind
) -> None:
    """Each kind of resource row, both transactions of a payment, and two drivers of a decision.

    Red when: judge_confirm lets a CANCELLED row proceed.
    """
    result = await play(kind, dsns[kind.name], Part(2, endings=COMMITS), lanes=2)

    assert result.findings == []
    assert result.ok
    assert result.counts.formula == _formula(kind, COMMITS)


def _formula(kind: Kind, endings: tuple[Ending, ...]) -> int:
    """Count the orders by hand: per start, per pair of operations with their endings."""
    each = list(itertools.product(dict.fromkeys(kind.names), endings))
    steps = {operation: len(points) for operation, points in kind.points.items()}
    return len(kind.starts) * sum(
        orders([steps[operation] for operation, _ in chosen])
        for chosen in itertools.combinations_with_replacement(each, 2)
    )


@pytest.mark.requirement("I5", "T12")
async def test_a_lost_connection_is_an_abort_to_everybody_else(dsns: dict[str, str]) -> None:
    """Whoever waits for a session whose connection breaks goes on as if it had never been.

    Red when: a Cancel is committed before the end of its transaction.
    """
    todo = [
        dataclasses.replace(case, steps=((case.steps[0][0], Ending.LOST), case.steps[1]))
        for case in (
            _of("try", "try"), _of("try", "cancel"), _of("cancel", "try"),
            _of("confirm", "cancel", start=("try",)), _of("cancel", "confirm", start=("try",)),
        )
    ]  # fmt: skip
    result = await _explore(SEATS, dsns[SEATS.name], todo)

    assert result.findings == []
    assert result.ok


FENCED = [kind for kind in KINDS.values() if "try" in kind.names]


@pytest.mark.requirement("I5", "T12")
@pytest.mark.parametrize("kind", FENCED, ids=lambda kind: kind.name)
async def test_batches_that_overlap_are_safe_at_every_statement(
    dsns: dict[str, str], kind: Kind
) -> None:
    """Two sessions stop before every statement; they name the same keys in opposite orders.

    In the first case they have keys of their own and meet at the resources, x and y.
    A Confirm that finds nothing under one key is judged by when it asked for that key.

    Red when: the ledger reads its accounts without a lock, or seats move in the order of the call.
    """
    tries = (("try", Ending.COMMIT), ("try", Ending.COMMIT))
    todo = [
        Case(kind, (), tries, ((0, 1), (4, 3))),
        _of("try", "try", keys=(0, 1), kind=kind),
        _of("try", "confirm", keys=(0, 1), kind=kind),
        _of("try", "cancel", keys=(0, 1), kind=kind),
        _of("confirm", "cancel", start=("try",), keys=(0, 1), kind=kind),
        _of("cancel", "cancel", start=("try",), keys=(0, 1), kind=kind),
    ]
    result = await _explore(kind, dsns[kind.name], todo, Cut.STATEMENTS)

    assert result.findings == []
    assert result.ok


@pytest.mark.requirement("I5", "T12", "AC12.4")
async def test_every_order_of_a_confirm_a_cancel_and_a_late_try_is_safe(
    dsns: dict[str, str],
) -> None:
    """Red when: judge_confirm lets a CANCELLED row proceed."""
    case = _of("try", "confirm", "cancel", start=("try",))
    result = await _explore(SEATS, dsns[SEATS.name], [case])

    assert result.findings == []
    assert result.ok
    assert result.counts.formula == orders([4, 3, 4])


@pytest.mark.requirement("I5")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_four_sessions_in_drawn_orders_are_safe(dsns: dict[str, str], kind: Kind) -> None:
    """A fixed share of the ten thousand that `make interleavings` draws, batches of up to four.

    Red when: judge_confirm lets a CANCELLED row proceed.
    """
    result = await play(kind, dsns[kind.name], Part(4, cut=Cut.STATEMENTS, drawn=10), lanes=1)

    assert result.findings == []
    assert result.ok
    assert result.played == 10


@pytest.mark.requirement("I5")
async def test_the_shares_of_a_part_are_the_whole_part(
    dsns: dict[str, str], tmp_path: Path
) -> None:
    """A run that was cut off goes on behind the shares in its file; none is lost, none twice.

    Red when: a share begins at 0, the file is not written, or one share passes for the whole.
    """
    part = Part(2, endings=COMMITS)
    shares = [Share(kind=DECISION.name, part=str(part), number=n, of=2) for n in (0, 1)]
    for share in shares:
        kept = Kept(tmp_path / "kept.jsonl")
        assert not kept.has(share)
        assert kept.whole(shares) is None
        result = await play(
            DECISION, dsns[DECISION.name], part, lanes=2, share=share.number, of=share.of
        )
        kept.add(report(share, part.sessions, result, drawn=False, seconds=1))

    whole = Kept(tmp_path / "kept.jsonl").whole(shares)
    assert whole is not None
    assert whole.ok
    assert whole.cases == len(list(part.cases(DECISION)))
    assert whole.formula == _formula(DECISION, COMMITS)
    assert whole.formula == whole.walked + whole.impossible + whole.equal


def test_the_page_tells_of_an_unsafe_schedule_and_of_what_is_not_run() -> None:
    """Red when: the page sums without what is unsafe, or leaves out what was found or not run."""
    share = Share(kind="a kind", part="a part", number=0, of=1)
    finding = Finding("a kind", "a case", "try1:claim", "a hold has no owner")
    bad = report(share, 2, Result(cases=1, played=7, findings=[finding]), drawn=False, seconds=60)

    text = page([bad], ["a kind: another part"], at=NOON)

    assert not bad.ok
    assert bad.line().endswith(f"1 unsafe; 60 s: NOT SAFE\n    {finding}")
    assert "**6 of 7 schedules are safe**" in text
    assert f"- {finding}" in text
    assert "- a kind: another part" in text


# --- It can fail: fences that break design rule 4 ---


async def _explore(
    kind: Kind, dsn: str, todo: list[Case], cut: Cut = Cut.POINTS, at_most: int | None = None
) -> Result:
    async with stages(dsn, 1) as [stage]:
        lane = Lane(kind, stage, cut=cut)
        for case in todo:
            await lane.explore(case, at_most=at_most)
        await lane.judge()
    return lane.result


def _of(
    *operations: str,
    start: tuple[str, ...] = (),
    keys: tuple[int, ...] = (0,),
    kind: Kind = SEATS,
) -> Case:
    """Return a case of sessions that commit; every other one names its keys the other way round."""
    batches = tuple(keys[:: -1 if n % 2 else 1] for n in range(len(operations)))
    return Case(kind, start, tuple((each, Ending.COMMIT) for each in operations), batches)


SELECT_FIRST = (Point.LOCK, Point.CLAIM, Point.EFFECT, Point.END)


@pytest.mark.requirement("I5", "AC13.5")
@pytest.mark.parametrize(
    ("function", "double", "operation", "case", "cut", "broken"),
    [
        ("claim_cancels", broken_fences.cancel_that_selects_first, "cancel",
         _of("try", "cancel"), Cut.POINTS, "are held, the rows hold 0: a hold has no owner"),
        ("claim_tries", broken_fences.try_that_selects_first, "try",
         _of("try", "try"), Cut.POINTS, "a guarded write hit 0 of 1 rows"),
        ("claim_cancels", broken_fences.cancel_without_a_tombstone, "cancel",
         _of("cancel", "try"), Cut.STATEMENTS, "is TRIED instead of CANCELLED"),
        ("lock_for_confirm", broken_fences.confirm_without_a_lock, "confirm",
         _of("confirm", "cancel", start=("try",)), Cut.STATEMENTS, "failed"),
        ("claim_tries", broken_fences.claim_one_by_one, "try",
         _of("try", "try", keys=(0, 1)), Cut.STATEMENTS, "deadlock detected"),
    ],
    ids=["cancel selects first", "try selects first", "no tombstone", "confirm does not lock",
         "keys in the order of the call"],
)  # fmt: skip
async def test_a_fence_that_breaks_the_order_of_the_claim_is_found(
    dsns: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    double: Any,
    operation: str,
    case: Case,
    cut: Cut,
    broken: str,
) -> None:
    """Each double is one wrong order of the statements; the true fence passes the same case.

    Red when: the judge or the scheduler does not see what the double does.
    """
    assert (await _explore(SEATS, dsns[SEATS.name], [case], cut)).ok

    monkeypatch.setattr(fence, function, double)
    wrong = dataclasses.replace(SEATS, points={**SEATS.points, operation: SELECT_FIRST})
    case = dataclasses.replace(case, kind=wrong)
    result = await _explore(wrong, dsns[SEATS.name], [case], cut, at_most=16)

    assert not result.ok
    assert [str(f) for f in result.findings if broken in f.broken], result.findings


@pytest.mark.requirement("I5")
async def test_two_drivers_that_decide_without_the_lock_are_found(
    dsns: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read OPEN; the guard of the write then stops the second, who should have adopted.

    Red when: the judge takes a driver that failed for one that adopted.
    """
    locked = order._rows

    async def unlocked(tx: Any, keys: Any, lock: str = "") -> Any:
        return await locked(tx, keys)

    monkeypatch.setattr(order, "_rows", unlocked)
    case = _of("commit", "abort", kind=DECISION)
    result = await _explore(DECISION, dsns[DECISION.name], [case], Cut.STATEMENTS, at_most=16)
    assert [f for f in result.findings if "a guarded write hit 0 of 1 rows" in f.broken]


# --- The tree ---


def _walk(tree: Tree, steps: list[int], *, exclusive: bool = False) -> int:
    """Walk a tree to its end over sessions that wait for nobody, or (exclusive) for the first."""
    walks = 0
    while not tree.is_walked:
        left, owner = list(steps), None

        def seen(left: list[int], owner: int | None) -> tuple[Standing, ...]:
            return tuple(
                Standing(n, "done") if n == 0
                else Standing(n, "waits") if owner not in (None, i) and n < steps[i]
                else Standing(n, "ready", begun=n < steps[i])
                for i, n in enumerate(left)
            )  # fmt: skip

        tree.begin(seen(left, owner))
        while any(left):
            choice = tree.choose(seen(left, owner))
            left[choice] -= 1
            if exclusive and owner is None:
                owner = choice
            if owner is not None and left[owner] == 0:
                owner = None
            tree.went(choice, seen(left, owner))
        tree.end()
        walks += 1
    return walks


@pytest.mark.parametrize("steps", [[4, 4], [4, 3], [2, 2, 2], [3, 2, 2], [1, 1, 1, 1]])
def test_sessions_that_wait_for_nobody_are_walked_in_every_order_of_the_formula(
    steps: list[int],
) -> None:
    tree = Tree(range(len(steps)), steps)
    assert _walk(tree, steps) == orders(steps) == tree.counts.executed
    assert tree.counts.add_up


def test_equal_sessions_are_walked_once_and_counted_twice() -> None:
    tree = Tree(["same", "same"], [3, 3])
    assert _walk(tree, [3, 3]) == orders([3, 3]) / 2
    assert tree.counts.equal == orders([3, 3]) / 2
    assert tree.counts.add_up


def test_orders_that_send_on_a_session_that_waits_are_impossible() -> None:
    """One key: whoever is first holds it, the other asks once and then waits for the end."""
    tree = Tree([1, 2], [2, 2])
    assert _walk(tree, [2, 2], exclusive=True) == 4  # 1122 1212, and the same two from 2.
    assert tree.counts.impossible == 2  # 1221, 2112: the second cannot end before the first.
    assert tree.counts.add_up
