"""How the consistency of an order is kept; every mode ends an order in the same states."""

from enum import StrEnum


class Mode(StrEnum):
    """The protocols that a flow can run by; which of them it offers is in its plan's catalog."""

    SAGA = "saga"  # One step after the other; what was done is undone, newest first.
    TCC = "tcc"  # Every branch holds at once; then all confirm, the pivot first, or all cancel.
    MIXED = "mixed"  # A TCC core, and extensions that follow by messages.
    CHOREOGRAPHED = "choreographed"  # No central flow: services follow each other's messages.
