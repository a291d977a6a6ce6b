"""The four classes of exceptions; retry, undo and alarm follow from the class (docs/glossary.md).

What the business may answer ("out of stock", "card declined") is a value, never one of these.
"""

from collections.abc import Iterator


class EverycentError(Exception):
    """Base of all our errors; never raised itself."""


class Transient(EverycentError):
    """It did not happen and may work later: try again."""


class Unknown(EverycentError):
    """It may have happened: look it up or send the same operation again, never assume a no."""


class Bug(EverycentError):
    """An invariant broke: stop this item, write nothing more, raise the alarm. Never retried."""


class InvalidRequest(EverycentError):
    """The caller's fault, told before anything was written. Never retried, no alarm."""


class PoolTimeout(Transient):
    """No database connection became free in time."""


class Unreachable(Transient):
    """A dependency could not be reached at all; the request was not sent."""


class NotPaidYet(Transient):
    """The customer has not paid on the redirect page yet, and still may."""


class NothingTried(Bug):
    """A Confirm came for a key that no Try has claimed; nothing was written."""


class AlreadyConfirmed(Bug):
    """A Cancel came for a confirmed row; nothing moved."""


class NotConfirmable(Bug):
    """A Confirm came for a refused or cancelled row; nothing moved."""


class KeyReused(Bug):
    """Another request was sent under a key that is taken; nothing moved."""


class NoBranch(InvalidRequest):
    """A call came whose key names no transaction and branch; nothing was written."""


class AlreadyCancelled(InvalidRequest):
    """A Try came after its Cancel: the tombstone refuses it, nothing is held."""


CLASSES: tuple[type[EverycentError], ...] = (Transient, Unknown, Bug, InvalidRequest)


def by_name(name: str) -> type[EverycentError] | None:
    """Return our error class of that name, or None; the way back from Temporal's `type` string."""
    return next((cls for cls in _all(EverycentError) if cls.__name__ == name), None)


def class_of(error: type[EverycentError]) -> type[EverycentError]:
    """Return which of the four classes an error is of."""
    return next(cls for cls in CLASSES if issubclass(error, cls))


def _all(root: type[EverycentError]) -> Iterator[type[EverycentError]]:
    for child in root.__subclasses__():
        yield child
        yield from _all(child)
