"""Which flows exist; workers, queues and the command line read it here."""

from typing import Any

from workflows.checkout import Checkout

FLOWS: tuple[type[Any], ...] = (Checkout,)
