"""What a person asks of a service's messages: to try again what was given up."""

from collections.abc import Mapping

from temporalio import activity

from activities.boundary import errors_for_temporal
from everycent.database import inbox, lanes
from everycent.database.engine import Database
from everycent.domain.messaging import Replayed, ReplayMessages
from everycent.errors import InvalidRequest
from everycent.settings import ServiceName


class MessageActivities:
    """The messages of the services of one worker, by their databases."""

    def __init__(self, databases: Mapping[ServiceName, Database]) -> None:
        self._databases = databases

    @activity.defn(name="messages.replay")
    async def replay(self, request: ReplayMessages) -> Replayed:
        """Let dead messages be tried again, from the start of their patience; others stay."""
        with errors_for_temporal():
            if request.service not in self._databases:
                raise InvalidRequest(f"this worker has no messages of {request.service}")
            async with self._databases[request.service].transaction() as tx:
                received = await inbox.replay_received(tx, request.keys, at=request.at)
                sent = await lanes.replay_sent(tx, request.keys, at=request.at)
        return Replayed(received=tuple(received), sent=tuple(sent))
