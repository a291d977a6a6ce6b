"""What the business may answer is a value; a refusal is one that a caller has to look at."""

from everycent.domain.message import Message


class Refusal(Message):
    """Base of every business "no": a stored answer with its facts, never an exception."""
