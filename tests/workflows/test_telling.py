"""What the details of an order say."""

from everycent.domain.account import InsufficientBalance
from everycent.domain.order import BalancePayment, Decision, OrderLine, PlaceOrder
from workflows.saga import ParkedStep
from workflows.telling import LINES_SHOWN, Standing, details, summary, told

ORDER = PlaceOrder(
    order_id="o-1",
    customer="ada",
    currency="EUR",
    lines=(OrderLine(sku="LAMP", units=2, amount_minor=2933),),
    payment=BalancePayment(account="ada"),
)


def test_a_refusal_is_told_with_its_facts_and_readable_amounts() -> None:
    refusal = InsufficientBalance(needed_minor=2933, available_minor=5)
    assert told(refusal, "EUR") == "insufficient balance, needed 29.33 EUR, available 0.05 EUR"


def test_a_parked_step_is_told_with_its_error() -> None:
    """Red when: the details leave out what is parked, or why."""

    async def run() -> None: ...

    parked = ParkedStep("commit stock", "default/o-1/reserve", "Bug", "3 units are missing", run)
    assert "- **parked: commit stock** (Bug: 3 units are missing)" in _details(ORDER, parked)


def test_a_long_order_is_cut_and_says_so() -> None:
    many = ORDER.model_copy(update={"lines": ORDER.lines * (LINES_SHOWN + 3)})
    assert _details(many).count("2 × LAMP") == LINES_SHOWN
    assert "- 3 more lines" in _details(many)
    assert summary(many) == "o-1 of ada: 46 units for 674.59 EUR"


def _details(order: PlaceOrder, *parked: ParkedStep) -> str:
    standing = Standing("going on", Decision.OPEN, (), 0, 0, None, parked, ())
    return details(order, standing)
