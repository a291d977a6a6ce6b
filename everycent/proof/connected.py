"""The audit of a running platform: Temporal tells the drivers, the provider its books."""

import httpx

from everycent.proof.audit import audit
from everycent.proof.drivers import TemporalDrivers
from everycent.proof.provider_books import SimulatorBooks
from everycent.proof.report import AuditReport
from everycent.settings import Settings
from starters.client import connect


async def audit_connected(
    settings: Settings, *, tenant: str | None = None, reread_seconds: float = 5.0
) -> AuditReport:
    """Audit all that the settings name. Raises Unreachable if a part does not answer."""
    client = await connect(settings)
    url, patience = settings.provider.url, settings.provider.timeout_seconds
    async with httpx.AsyncClient(base_url=url, timeout=patience, trust_env=False) as http:
        return await audit(
            settings,
            tenant=tenant,
            reread_seconds=reread_seconds,
            drivers=TemporalDrivers(client),
            provider=SimulatorBooks(http),
        )
