"""The way to Temporal: one client per process, with the converter that every part shares."""

from typing import Any

import pydantic
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
)
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from everycent.errors import Unreachable
from everycent.settings import Settings


class _StrictJSON(PydanticJSONPlainPayloadConverter):
    """A workflow whose input cannot be read fails at once instead of being retried for ever."""

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        try:
            return super().from_payload(payload, type_hint)
        except pydantic.ValidationError as error:
            raise ApplicationError(
                f"unreadable payload: {error}", type="InvalidRequest", non_retryable=True
            ) from error


class _Converter(CompositePayloadConverter):
    def __init__(self) -> None:
        super().__init__(
            *(
                _StrictJSON() if isinstance(converter, JSONPlainPayloadConverter) else converter
                for converter in DefaultPayloadConverter.default_encoding_payload_converters
            )
        )


DATA_CONVERTER = DataConverter(payload_converter_class=_Converter)


async def connect(settings: Settings) -> Client:
    """Connect to Temporal: TEMPORAL_* variables and profiles first, then our settings.

    The server of an embedded stack is reached as its folder says: they speak of other servers.
    Raises Unreachable with the address when nobody answers there, and when no address was given:
    a server that happens to listen at the usual port is somebody else's.
    """
    profile = {} if settings.stack else _profile()
    if "temporal" not in settings.model_fields_set and "target_host" not in profile:
        raise Unreachable(
            f"no stack runs in {settings.data_dir}; start one with `everycent up`,"
            " or set TEMPORAL_ADDRESS"
        )
    config: dict[str, Any] = {
        "target_host": settings.temporal.address,
        "namespace": settings.temporal.namespace,
        **{name: value for name, value in profile.items() if value is not None},
    }
    try:
        return await Client.connect(**config, data_converter=DATA_CONVERTER)
    except (RPCError, RuntimeError) as error:
        raise Unreachable(
            f"Temporal does not answer at {config['target_host']}: {_cause(error)};"
            " try `everycent up`"
        ) from error


def address_of(client: Client) -> str:
    """Return where a client is connected to, whoever named it."""
    return client.service_client.config.target_host


def _profile() -> dict[str, Any]:
    return {**ClientConfig.load_client_connect_config()}


def _cause(error: Exception) -> str:
    """Return what a person needs of the SDK's error, without its Rust types."""
    return "connection refused" if "Connection refused" in str(error) else str(error)
