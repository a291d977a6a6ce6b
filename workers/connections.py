"""How many connections a process may open, so that all of them together stay within limits."""

from collections.abc import Sequence

from everycent.database.lanes import TO_OTHERS, TO_SERVICES
from everycent.settings import SERVICES, ServiceName, Settings
from workers import message_points
from workers.composition import WorkerName, sweep_reads_of

LANES = 2  # Of a service: what tries, and what finishes.
WAKES = 1  # Connections of a loop to be woken by.


def connections_of(name: WorkerName, settings: Settings) -> dict[str, int]:
    """Return how many connections a worker process may open, by the DSN of the database.

    A lane has `pool.size`, the inbox a few and one to be woken by, the sweeper's eyes have one.
    """
    size = settings.pool.size
    services: Sequence[ServiceName] = () if name == "workflows" else SERVICES
    return {
        settings.database[service]: (size if name == "together" else LANES * size)
        + (message_points.connections(size) + WAKES)
        + (1 if sweep_reads_of(service) else 0)
        for service in services
        if name in (service, "together") and service in settings.database
    }


def connections_of_relay(settings: Settings) -> dict[str, int]:
    """Return how many connections a relay may open, by the DSN of the database."""
    per_database = settings.pool.size + WAKES * len((TO_SERVICES, TO_OTHERS))
    return dict.fromkeys(settings.relay.values(), per_database)
