"""How far a pass of the sweeper comes, what it counts, and when it stops itself."""

from datetime import UTC, datetime
from typing import Any

import pytest

from everycent.domain.sweep import PAGE, Act, Finding, Hold, RunState, Sweep, SweepReport
from everycent.domain.sweep_pass import (
    MOST_DONE,
    MOST_TOLD,
    Pass,
    Progress,
    Tally,
    shortened,
    too_much,
    why_stop,
)
from everycent.domain.sweep_questions import HoldPage

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
UNKNOWN = RunState(workflow_id="w")
DEAD = RunState(workflow_id="w", status="terminated")


def finding(act: Act = Act.CANCEL, key: str = "t/o-1", **changes: Any) -> Finding:
    facts: dict[str, Any] = {"kind": "k", "xid": "t/o-1", "key": key, "before": "b", "act": act}
    return Finding(**{**facts, **changes})


def report(*findings: Finding) -> SweepReport:
    return SweepReport(at=NOON, dry_run=False, findings=findings)


# -- what is counted


def test_acts_and_what_they_give_back_are_counted_over_all_pages() -> None:
    pages = [
        [
            finding(back_minor=5, currency="EUR"),
            finding(Act.NONE, back_minor=9, currency="EUR"),
        ],
        [finding(Act.TAKE_UP, back_minor=7, currency="USD"), finding(Act.CASE)],
        [finding(back_minor=6, currency="EUR")],
    ]
    tally = Tally()
    for page, runs in zip(pages, ([UNKNOWN, DEAD], [UNKNOWN], []), strict=True):
        tally = tally.plus(page, runs)
    assert tally == Tally(acts=4, back={"EUR": 11, "USD": 7}, runs=3, unknown=2)
    assert Tally().plus([]) == Tally()


def test_a_pass_with_too_much_to_repair_repairs_nothing() -> None:
    sweep = Sweep(limit=2)
    assert why_stop(Tally(acts=2), sweep) == too_much(Tally(acts=2), sweep) == ""
    why = too_much(Tally(acts=3), sweep)
    assert why.startswith("there is more to repair than the limit of 2: is this the shop's name")
    assert why_stop(Tally(acts=3), sweep) == why


def test_a_pass_that_would_give_too_much_back_repairs_nothing() -> None:
    sweep = Sweep(money_limit_minor=1000)
    within = Tally(back={"EUR": 1000, "USD": 1000, "points": 1000})
    assert why_stop(within, sweep) == too_much(within, sweep) == ""
    over = Tally(back={"USD": 1, "points": 2000, "EUR": 1001})
    why = too_much(over, sweep)
    assert why.startswith(
        "it would give back 10.01 EUR and 2,000 points, more than the limit of 10.00 EUR and"
        " 1,000 points: are these orders undone for good reason?"
    )
    assert why_stop(over, sweep) == why


def test_a_pass_beside_a_temporal_that_knows_no_order_repairs_nothing() -> None:
    sweep = Sweep(unknown_limit=2)
    all_unknown = Tally(runs=2, unknown=2)
    assert "none of 2 unfinished orders" in why_stop(all_unknown, sweep)
    assert too_much(all_unknown, sweep) == ""
    for few in (Tally(runs=1, unknown=1), Tally(runs=3, unknown=2), Tally()):
        assert why_stop(few, sweep) == ""
    assert "none of 3 unfinished" in why_stop(Tally(runs=3, unknown=3), sweep)


# -- how far it has come


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_pass_looks_twice_from_the_start_by_one_time(dry_run: bool) -> None:
    first = Progress.begin(Sweep(dry_run=dry_run), NOON)
    assert first == Progress(report=SweepReport(at=NOON, dry_run=dry_run))
    looked = first.adding(finding()).told(orders_looked_at=3, silent=("a",))
    looked = looked.model_copy(update={"part": 7, "after": "x", "tally": Tally(acts=1)})
    again = looked.again()
    assert again == first.model_copy(update={"repairing": True})
    assert again.at == NOON


def test_a_pass_is_told_all_that_its_sweep_says_and_where_it_goes_on() -> None:
    sweep = Sweep(tenant="t", limit=7, page_rows=3, together=True)
    begun = Pass.of(sweep)
    assert Sweep.model_validate(begun.model_dump()) == sweep
    assert begun.progress is None
    going = begun.model_copy(update={"progress": Progress(report=report(), part=2)})
    assert Pass.model_validate_json(going.model_dump_json()) == going


def test_a_pass_that_stops_says_why_and_has_nothing_more_to_do() -> None:
    going = Progress(report=report(finding()), part=3, todo=(finding(key="a"),))
    stopped = going.stopped("too much")
    assert (stopped.report.stopped, stopped.todo, stopped.part) == ("too much", (), 3)
    assert stopped.report.findings == going.report.findings


def test_what_was_found_first_counts_when_it_looks_wrong_in_two_ways() -> None:
    one, other = finding(key="a"), finding(key="b")
    going = Progress(report=report()).adding(one, other)
    assert going.report.findings == (one, other)
    again = going.adding(finding(Act.CASE, key="a"), finding(key="c"))
    assert again.report.findings == (one, other, finding(key="c"))


def test_what_is_carried_on_is_no_longer_than_a_report() -> None:
    going = Progress(report=report())
    for page in range(3):
        going = going.adding(*(finding(key=f"{page}-{n}") for n in range(MOST_DONE)))
    assert len(going.report.findings) == MOST_DONE
    assert going.report.unlisted == 2 * MOST_DONE


def test_a_long_report_keeps_what_is_left_for_people_and_counts_the_rest() -> None:
    told = [finding(Act.NONE, key=f"n-{n}") for n in range(MOST_TOLD + 3)]
    done = [finding(key=f"d-{n}", repaired=True) for n in range(MOST_DONE + 4)]
    case = finding(Act.CASE)
    short = shortened(report(*told, *done, case))
    assert short.findings == (*told[:MOST_TOLD], *done[: MOST_DONE - 1], case)
    assert short.unlisted == 3 + 4 + 1
    assert shortened(short) == short
    assert shortened(report(*told[:3], case)) == report(*told[:3], case)


# -- what Temporal carries: two megabytes


def longest_hold() -> Hold:
    return Hold(
        service="account", kind="balance_hold", key="x" * 300, state="CONFIRMED",
        opened_on="2026-01-02", tried_at=NOON.replace(microsecond=1), kept_minor=10**15,
        amount_minor=10**15, currency="EUR",
    )  # fmt: skip


def test_a_page_of_the_longest_keys_stays_far_below_what_temporal_carries() -> None:
    row = longest_hold()
    page = HoldPage(holds=(row,) * PAGE, looked_at=PAGE, next=row.key)
    assert len(page.model_dump_json()) < 600_000


def test_so_does_a_pass_that_goes_on_in_a_new_run_with_a_page_to_see_to() -> None:
    row = longest_hold()
    key = "x" * 205  # The longest that ids of 64 characters can make.
    each = finding(
        key=key, xid="x" * 129, kind="open hold of a closed order", before="b" * 100,
        after="a" * 100, back_minor=10**15, currency="EUR",
        hold=row.model_copy(update={"key": key}),
    )  # fmt: skip
    going = Progress(
        report=report(*[each] * (MOST_DONE + MOST_TOLD)), repairing=True, after=key,
        todo=(each,) * PAGE,
    )  # fmt: skip
    assert len(going.model_dump_json()) < 1_900_000
