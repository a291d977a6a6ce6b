"""What a worker measures, beside what the SDK does: served to Prometheus where the settings say."""

from datetime import timedelta

from temporalio import activity
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from everycent.errors import InvalidRequest
from everycent.settings import Settings

CONNECTION_HELD = "everycent_connection_held"
HELD_BUCKETS = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
)  # Seconds.


def serve(settings: Settings) -> None:
    """Serve the meters of this process, if `EVERYCENT_METRICS` names an address for them.

    Before its first client: the SDK has one runtime per process. Raises InvalidRequest if the
    address cannot be had.
    """
    if not settings.metrics:
        return
    metrics = PrometheusConfig(
        bind_address=settings.metrics,
        durations_as_seconds=True,
        histogram_bucket_overrides={CONNECTION_HELD: HELD_BUCKETS},
    )
    try:
        Runtime.set_default(Runtime(telemetry=TelemetryConfig(metrics=metrics)))
    except (RuntimeError, ValueError) as error:
        raise InvalidRequest(f"EVERYCENT_METRICS ({settings.metrics}): {error}") from error


def note_held(seconds: float) -> None:
    """Note how long the running step had a connection; the SDK adds its activity and queue."""
    if not activity.in_activity():
        return
    meter = activity.metric_meter()
    held = meter.create_histogram_timedelta(
        CONNECTION_HELD, "how long a step had a database connection", "s"
    )
    held.record(timedelta(seconds=seconds))
