"""The one place that reads the wall clock; everything else gets the time as an argument."""

from datetime import UTC, datetime


def now() -> datetime:
    """Return the present moment in UTC; for starters and edges only, never for a decision."""
    return datetime.now(UTC)
