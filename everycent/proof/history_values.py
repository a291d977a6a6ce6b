"""How values of a history are read: times, lengths, keys, and failures in one line."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent


def attributes_of(event: HistoryEvent) -> str:
    """Return the name of the field that holds what the event says."""
    return event.WhichOneof("attributes") or ""


def key_of(activity: str, request: Any) -> str:
    """Return the key of a step; one of the order's own row has the name of what it does to it."""
    if not isinstance(request, dict):
        return ""
    if key := request.get("key") or request.get("case_key"):
        return str(key)
    order = request.get("order") or request
    verb = activity.partition(".")[2].partition("_")[0]
    return f"{order.get('tenant')}/{order.get('order_id')}/{verb}"


def time(stamp: Timestamp) -> datetime:
    """Return a time of the server."""
    return stamp.ToDatetime(tzinfo=UTC)


def moment(stamp: dict[str, int]) -> datetime:
    """Return a time that the SDK has written into a marker."""
    return time(Timestamp(seconds=stamp["seconds"], nanos=stamp["nanos"]))


def between(begun: HistoryEvent, end: HistoryEvent) -> float:
    """Return the seconds from one event to another."""
    return (time(end.event_time) - time(begun.event_time)).total_seconds()


def text(failure: Failure) -> str:
    """Say a failure in one line: the class and text of what went wrong first."""
    while failure.HasField("cause"):
        failure = failure.cause
    kind = failure.application_failure_info.type
    return " ".join(f"{kind}: {failure.message}".removeprefix(": ").split())
