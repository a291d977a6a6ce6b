"""What whoever places an order under a withdrawn id is told."""

from datetime import UTC, datetime

from everycent.domain.withdrawal import WithdrawOrder, why_withdrawn

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_the_reason_says_what_happened_and_when() -> None:
    why = "what was held for it had no order, so its id was withdrawn at 2026-01-02 12:00 UTC"
    assert why_withdrawn(NOON) == why
    assert WithdrawOrder(tenant="t", order_id="o", at=NOON, by="sweeper/x").reason == why
