"""Which flows exist, and what each is made of: workers and the command line read it here."""

from datetime import timedelta
from typing import Any

from everycent.domain.mode import Mode
from workflows import checkout_plan
from workflows.checkout import Checkout
from workflows.protocols import PROTOCOLS
from workflows.steps import Plan

FLOWS: tuple[type[Any], ...] = (Checkout,)


def name_of(flow: type[Any]) -> str:
    """Return a flow's name in Temporal, the first part of its workflows' ids."""
    return str(vars(flow)["__temporal_workflow_definition"].name)


FLOW_NAMES: tuple[str, ...] = tuple(map(name_of, FLOWS))
# A worker refuses to start with a flow that is missing here (workers/registration.py).
PLANS: dict[type[Any], Plan] = {
    Checkout: Plan.of(checkout_plan, window=timedelta(days=30)),  # The longest payment window.
}
# The modes that a flow can be switched to; a worker that knows them runs each of them.
MODES: dict[type[Any], tuple[Mode, ...]] = {Checkout: tuple(PROTOCOLS)}
