"""What the tests of the workers share."""

from collections.abc import AsyncIterator

import pytest
from temporalio.testing import WorkflowEnvironment

from tests.proof.sweeper_site import temporal_server


@pytest.fixture(scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """A whole Temporal server: it runs activities that belong to no workflow."""
    async with temporal_server() as env:
        yield env
