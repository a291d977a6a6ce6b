"""Which flows exist; workers, queues and the command line read it here."""

from typing import Any

from workflows.checkout import Checkout

FLOWS: tuple[type[Any], ...] = (Checkout,)


def name_of(flow: type[Any]) -> str:
    """Return a flow's name in Temporal, the first part of its workflows' ids."""
    return str(vars(flow)["__temporal_workflow_definition"].name)


FLOW_NAMES: tuple[str, ...] = tuple(map(name_of, FLOWS))
