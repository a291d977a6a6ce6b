"""The names of the task queues: one per service, a second lane for what frees or finishes.

A saturated Try must never hold up a release, so Confirm, Cancel and refund have workers and pools
of their own.
"""

from typing import Final

WORKFLOWS: Final = "everycent-workflows"
SWEEPER: Final = "everycent-sweeper"

# The queue of workers that host the flows and every service: what is started there runs its
# database steps where the run itself is.
TOGETHER: Final = "everycent-together"


def tries(service: str) -> str:
    """Return the queue of a service's Try steps and single steps."""
    return f"everycent-{service}"


def finishes(service: str) -> str:
    """Return the queue of a service's Confirm and Cancel steps."""
    return f"everycent-{service}-finish"


def sweeps(service: str) -> str:
    """Return the queue by which the sweeper reads a service: a long look keeps no step waiting."""
    return f"everycent-{service}-sweep"
