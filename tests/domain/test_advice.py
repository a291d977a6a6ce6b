"""Which way fits: the scenario of each section, and what must never be advised."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everycent.domain.advice import RULES, Requirements, ThirdParty, Way, advise, value_of

# The scenario of each section, what it asks for, and the way that its design would pick.
SECTIONS: dict[str, tuple[dict[str, Any], Way]] = {
    "1 paid, but the stock was not deducted": ({"volume": 300}, Way.SAGA),
    "2 stock and order, all or nothing, both ours": (
        {"third_party": "none", "duration": "instant", "latency": "at-once"}, Way.TCC),
    "3 a split monolith that must not get slower, several teams": (
        {"third_party": "none", "reversibility": "undone", "team": "several", "isolation": "seen",
         "latency": "later"}, Way.CHOREOGRAPHED),
    "4 a new feature changes several services": ({"reversibility": "undone"}, Way.SAGA),
    "5 callbacks delivered twice": (
        {"binds": "follows", "third_party": "none", "latency": "later"}, Way.MESSAGES),
    "6 account debit and order status": (
        {"third_party": "none", "duration": "instant"}, Way.TCC),
    "7 caches that follow": (
        {"binds": "follows", "isolation": "seen", "third_party": "none", "latency": "later",
         "volume": 2000}, Way.MESSAGES),
    "8 asynchronous writes: a notice": (
        {"binds": "told", "isolation": "seen", "latency": "later"}, Way.NOTIFICATION),
    "9 a strict core with extensions": (
        {"binds": "core", "third_party": "none", "duration": "instant", "latency": "at-once",
         "volume": 1000}, Way.MIXED),
    "10 not one cent wrong, payment in one database": (
        {"databases": "one", "third_party": "none", "isolation": "hidden", "duration": "instant"},
        Way.LOCAL),
    "11 order paid, stock short: refund": ({"duration": "days"}, Way.SAGA),
    "12 funds returned once": (
        {"third_party": "none", "duration": "instant", "volume": 500}, Way.TCC),
    "13 a late Try after its Cancel": ({"third_party": "none", "latency": "at-once"}, Way.TCC),
    "14 back from TCC to the business": (
        {"third_party": "undo", "reversibility": "undone"}, Way.SAGA),
    "15 a Try at the limit of its pool": (
        {"third_party": "none", "duration": "instant", "latency": "at-once", "volume": 3000},
        Way.TCC),
    "16 clearing in one event store": (
        {"databases": "one", "third_party": "none", "duration": "instant"}, Way.LOCAL),
    "17 differences repaired by the flow's own steps": (
        {"third_party": "undo", "duration": "days", "latency": "later"}, Way.SAGA),
    "18 debit, stock and points with a gateway": (
        {"third_party": "final", "reversibility": "undone"}, Way.SAGA),
    "19 a long flow over a company that cannot hold": (
        {"third_party": "undo", "duration": "days"}, Way.SAGA),
    "20 a chain of calls that somebody has to explain": ({"latency": "later"}, Way.SAGA),
    "two of our databases, and a step that nothing takes back": (
        {"third_party": "none", "reversibility": "never", "duration": "instant"}, Way.TWO_PHASE),
}  # fmt: skip


@pytest.mark.requirement("AC19.1")
@pytest.mark.parametrize("section", SECTIONS)
def test_each_scenario_gets_the_way_of_its_design(section: str) -> None:
    """Red when: a rule is dropped or weighs otherwise, so that a known case is advised wrongly."""
    asked, expected = SECTIONS[section]
    told = advise(Requirements(**asked))
    assert told.best is not None
    assert told.best.way is expected, [(c.way, c.points) for c in told.choices]
    assert told.best.reasons
    second = told.choices[1]
    assert not second.possible or second.points < told.best.points, "the advice is a tie"


@pytest.mark.requirement("AC19.1")
@pytest.mark.parametrize(
    ("asked", "way", "why"),
    [
        ({"third_party": "undo"}, Way.TCC, "it has no Try: it acts at once"),
        ({"third_party": "final"}, Way.TCC, "it has no Try and no Cancel"),
        ({"duration": "days"}, Way.TWO_PHASE, "its locks would be held for days"),
        ({"isolation": "hidden"}, Way.SAGA, "is seen before the last one is decided"),
        ({"reversibility": "undone"}, Way.TCC, "without a hold there is no Try"),
        ({"binds": "all"}, Way.MESSAGES, "who follows cannot say no"),
        ({"databases": "own"}, Way.LOCAL, "a transaction ends where its database ends"),
    ],
)
def test_a_wrong_pick_is_refused_with_its_reason(asked: dict[str, str], way: Way, why: str) -> None:
    """Red when: TCC is advised over who cannot Try, a lock over days, or a saga nobody may see."""
    wanted = Requirements(**({"third_party": "none"} | asked))
    [choice] = [c for c in advise(wanted).choices if c.way is way]
    assert not choice.possible
    assert any(why in reason for reason in choice.against)


def test_what_nobody_can_give_is_said() -> None:
    """Red when: something is advised that lets an outside reader see what nobody may see."""
    told = advise(Requirements(isolation="hidden"))
    assert told.best is None
    assert all(choice.against for choice in told.choices)


@given(st.builds(Requirements, volume=st.integers(0, 10_000)))
def test_every_way_is_ranked_once_and_says_why(wanted: Requirements) -> None:
    """Red when: a way is left out, an impossible one stands before a possible one, or is silent."""
    told = advise(wanted)
    assert sorted(choice.way for choice in told.choices) == sorted(Way)
    order = [(not choice.possible, -choice.points) for choice in told.choices]
    assert order == sorted(order)
    assert all(choice.against for choice in told.choices if not choice.possible)
    if wanted.third_party is not ThirdParty.NONE:
        impossible = {choice.way for choice in told.choices if not choice.possible}
        assert {Way.LOCAL, Way.TWO_PHASE} <= impossible


def test_a_rule_names_a_requirement_and_values_that_exist() -> None:
    """Red when: a rule can never apply, or one requirement weighs twice for a way."""
    volumes = {"few", "many"}
    seen: set[tuple[str, str, Way]] = set()
    for rule in RULES:
        for value in rule.values:
            if rule.requirement == "volume":
                assert value in volumes
            else:
                wanted = Requirements(**{rule.requirement: value})
                assert value_of(wanted, rule.requirement) == value
            assert (rule.requirement, value, rule.way) not in seen
            seen.add((rule.requirement, value, rule.way))
