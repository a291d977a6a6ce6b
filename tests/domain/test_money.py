"""Amounts as people read them."""

import pytest

from everycent.domain.money import readable


@pytest.mark.parametrize(
    ("amount_minor", "currency", "text"),
    [
        (2933, "EUR", "29.33 EUR"),
        (5, "EUR", "0.05 EUR"),
        (12, "EUR", "0.12 EUR"),
        (123, "EUR", "1.23 EUR"),
        (0, "USD", "0.00 USD"),
        (-2933, "USD", "-29.33 USD"),
        (123456789, "USD", "1,234,567.89 USD"),
        (2933, "JPY", "2,933 JPY"),
        (2933, "KWD", "2.933 KWD"),
    ],
)
def test_an_amount_is_said_to_its_last_digit(amount_minor: int, currency: str, text: str) -> None:
    assert readable(amount_minor, currency) == text
