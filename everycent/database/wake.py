"""Be woken by another process's NOTIFY; who hears nothing looks again by himself."""

import asyncio
import contextlib
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

CONNECT_SECONDS = 5.0


class Wake:
    """Listens on a channel of one database, with a connection of its own that comes back."""

    def __init__(self, dsn: str, channel: str) -> None:
        url = make_url(dsn).set(drivername="postgresql")
        self._dsn = url.render_as_string(hide_password=False)
        self._channel = channel
        self._woken = asyncio.Event()
        self._connection: asyncpg.Connection[Any] | None = None

    async def wait(self, seconds: float) -> None:
        """Return when the channel was notified since the last time, or after so many seconds."""
        await self._listen()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()

    async def close(self) -> None:
        """Stop listening."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _listen(self) -> None:
        if self._connection is not None and not self._connection.is_closed():
            return
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
            connection = await asyncpg.connect(
                self._dsn, timeout=CONNECT_SECONDS, server_settings={"application_name": "wake"}
            )
            self._connection = connection
            await connection.add_listener(self._channel, self._on_notify)

    def _on_notify(self, *_: object) -> None:
        self._woken.set()
