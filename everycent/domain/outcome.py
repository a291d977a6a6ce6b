"""What the business may answer is a value; a refusal is one that a caller has to look at."""

from everycent.domain.message import Message
from everycent.domain.money import readable


class Refusal(Message):
    """Base of every business "no": a stored answer with its facts, never an exception."""


def told(refusal: Refusal, currency: str) -> str:
    """Say a refusal with its facts in one line."""
    facts = refusal.model_dump(mode="json", exclude_defaults=True)
    kind = str(getattr(refusal, "kind", "refused")).replace("_", " ")
    return ", ".join([kind, *(_fact(name, value, currency) for name, value in facts.items())])


def _fact(name: str, value: object, currency: str) -> str:
    if name.endswith("_minor") and isinstance(value, int):
        name, value = name.removesuffix("_minor"), readable(value, currency)
    return f"{name.replace('_', ' ')} {value}"
