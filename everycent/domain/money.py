"""How people read money: `29.33 EUR`. Everything that counts uses minor units instead."""

# ISO 4217: the currencies whose minor unit is not the hundredth.
_DIGITS = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND",
         "VUV", "XAF", "XOF", "XPF"),
        0,
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}  # fmt: skip


def digits_of(currency: str) -> int:
    """Return how many decimal places the currency's main unit has."""
    return _DIGITS.get(currency, 2)


def readable(amount_minor: int, currency: str) -> str:
    """Say an amount in the currency's main unit, to its last digit."""
    digits = digits_of(currency)
    sign, text = ("-" if amount_minor < 0 else ""), str(abs(amount_minor)).zfill(digits + 1)
    whole, part = (text[:-digits], f".{text[-digits:]}") if digits else (text, "")
    return f"{sign}{int(whole):,}{part} {currency}"
