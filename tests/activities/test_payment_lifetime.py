"""Retries that go on for longer than the provider remembers an idempotency key (here: minutes)."""

from datetime import timedelta
from typing import Any

import pytest

from everycent.domain.payment import Authorised, PaymentDeclined, Refunded, Voided
from everycent.errors import Bug, Unknown
from everycent.simulator.desk import Options

# A window of 15 s in which a call may arrive, and a key that lives for 20 s.
LIFETIME = timedelta(seconds=20)
PAST_LIFETIME_SECONDS = 25


@pytest.fixture
def provider_options() -> Options:
    return Options(idempotency_lifetime=LIFETIME)


@pytest.mark.requirement("I2", "T23", "AC18.2")
@pytest.mark.parametrize("operation", ["create", "confirm"])
async def test_a_payment_whose_key_is_forgotten_is_looked_up_and_not_opened_again(
    till: Any, operation: str
) -> None:
    """Red when: the create is sent again without a look-up."""
    await till.rule("timeout_after", operation)
    with pytest.raises(Unknown):
        await till.authorise()
    await till.move_clocks(PAST_LIFETIME_SECONDS)
    assert isinstance(await till.authorise(), Authorised)
    assert len(await till.intents()) == 1


@pytest.mark.requirement("I2", "T7")
async def test_a_refund_whose_key_is_forgotten_is_looked_up_and_not_made_again(till: Any) -> None:
    """Red when: the refund is sent again without a look-up."""
    await till.captured()
    await till.rule("timeout_after", "refund")
    with pytest.raises(Unknown):
        await till.refund(1_000)
    await till.move_clocks(PAST_LIFETIME_SECONDS)
    assert isinstance(await till.refund(1_000), Refunded)
    assert [refund["amount_minor"] for refund in await till.refunds()] == [1_000]


@pytest.mark.requirement("I2")
async def test_what_never_arrived_is_sent_anew_once_it_cannot_arrive_any_more(till: Any) -> None:
    """Red when: 'not found' never counts as a no, so that the step is stuck for ever."""
    await till.rule("timeout_before", "create")
    with pytest.raises(Unknown):
        await till.authorise()
    first = await till.call("create")
    await till.move_clocks(PAST_LIFETIME_SECONDS)
    assert isinstance(await till.authorise(), Authorised)
    assert (await till.call("create")).sent_at > first.may_arrive_until


@pytest.mark.requirement("I2")
async def test_between_a_dying_key_and_a_flying_call_nothing_is_sent(till: Any) -> None:
    """Red when: a call is sent that may arrive after the provider has forgotten its key."""
    await till.rule("timeout_before", "create")
    with pytest.raises(Unknown):
        await till.authorise()
    await till.move_clocks(10)  # The key lives for 10 s more, a call may take 15.
    with pytest.raises(Unknown, match="none is sent now"):
        await till.authorise()
    assert await till.intents() == []
    with pytest.raises(Unknown):  # For the same reason a void cannot be sure yet.
        await till.void()
    await till.move_clocks(10)
    assert await till.void() == Voided(amount_minor=0)
    assert await till.intents() == []


@pytest.mark.requirement("I2")
async def test_without_a_look_up_a_forgotten_key_is_never_used_again(till: Any) -> None:
    """Red when: the call is made all the same and charges twice."""
    await till.rule("timeout_after", "create")
    with pytest.raises(Unknown):
        await till.authorise()
    till.provider.can_look_up = False
    await till.move_clocks(PAST_LIFETIME_SECONDS)
    with pytest.raises(Unknown, match="a person"):
        await till.authorise()
    till.provider.can_look_up = True
    assert isinstance(await till.authorise(), Authorised)


async def test_without_a_look_up_a_living_key_is_used_again(till: Any) -> None:
    await till.rule("timeout_after", "confirm")
    with pytest.raises(Unknown):
        await till.authorise(card_token="tok_visa")
    till.provider.can_look_up = False
    assert isinstance(await till.authorise(), Authorised)


async def test_a_late_decline_is_found_after_the_key_is_forgotten(till: Any) -> None:
    declined = till.wanted(card_token="tok_declined")
    with pytest.raises(Exception, match="confirm"):
        await till.cut("confirm", after=True).authorise_all([declined])
    await till.move_clocks(PAST_LIFETIME_SECONDS)
    assert await till.payments.authorise_all([declined]) == [PaymentDeclined(code="card_declined")]


@pytest.mark.requirement("T23")
async def test_a_memory_shorter_than_a_call_may_take_is_refused_at_the_start(till: Any) -> None:
    """Red when: the service starts with a provider that forgets keys while calls are flying."""
    till.provider.idempotency_lifetime = timedelta(seconds=15)
    with pytest.raises(Bug):
        till.behind(till.provider)
    till.provider.idempotency_lifetime = LIFETIME
