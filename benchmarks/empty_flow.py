"""The workflow that does nothing: what a Temporal server costs before any business is in it."""

from temporalio import workflow


@workflow.defn(name="empty")
class Empty:
    """Returns at once."""

    @workflow.run
    async def run(self) -> None:
        """Do nothing."""
