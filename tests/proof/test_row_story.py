"""What the rows tell, in the order in which it happened, however the database gives them."""

from itertools import permutations
from typing import get_args

import pytest

from everycent.database.story_rows import StoryRow
from everycent.domain.payment import CallName
from everycent.proof.row_story import Causes, events_of_rows

PREFIX = "shop/o-1/"


def call(name: str) -> StoryRow:
    """Build the row of a call; those of one talk share its time and its end."""
    facts = {
        "key": f"{PREFIX}pay/first/{name}",
        "sent_at": "2026-11-24T10:00:00+00:00",
        "may_arrive_until": "2026-11-24T10:00:30+00:00",
        "answer": {"kind": "payment", "state": "authorised"},
    }
    return StoryRow(service="payment", table="provider_call", facts=facts)


@pytest.mark.requirement("AC20.5")
@pytest.mark.parametrize("given", list(permutations(("create", "confirm", "capture"))))
def test_the_calls_of_one_talk_are_told_in_its_order(given: tuple[str, ...]) -> None:
    """Red when: calls of one time are told as the table happens to hold them."""
    told = events_of_rows([call(name) for name in given], Causes(asked={}), PREFIX)
    names = [event.what.split(":")[0].rpartition("/")[2] for event in told]
    assert names == ["create", "confirm", "capture"]
    assert set(names) < set(get_args(CallName))
