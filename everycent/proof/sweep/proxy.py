"""A byte-level proxy before PostgreSQL that loses, delays or holds back a session's next COMMIT."""

import asyncio
import contextlib
import struct
from types import TracebackType
from typing import Literal, Self

from everycent.stack.ports import LOOPBACK

Fate = Literal["lose commit", "lose reply", "stall commit", "commit late"]
_COMMIT = b"COMMIT"
_CHUNK = 65536


class _Session:
    """One session of a client: what it is known by, and what becomes of its next COMMIT."""

    def __init__(self, proxy: "CommitProxy") -> None:
        self._proxy = proxy
        self.fate: tuple[Fate, float] | None = None
        self.struck = asyncio.Event()
        self._mute = False
        self._greeting = b""
        self._backend: int | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_connection(LOOPBACK, self._proxy.target_port)
        ways = [
            asyncio.create_task(self._to_server(reader, server, writer)),
            asyncio.create_task(self._to_client(server_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (server, writer):
                with contextlib.suppress(OSError):
                    end.close()
            if self._backend is not None:
                self._proxy.sessions.pop(self._backend, None)

    async def _to_server(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            if self.fate is not None:
                chunk = await _whole_message(chunk, reader)
                if _is_commit(chunk):
                    if not await self._goes_on(chunk, server, client):
                        return
                    continue
            server.write(chunk)
            await server.drain()

    async def _goes_on(
        self, commit: bytes, server: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> bool:
        """Let the fate happen and tell whether the session goes on: only after a stall."""
        assert self.fate is not None, "somebody has set it"
        (fate, seconds), self.fate = self.fate, None
        if fate == "lose commit":
            client.transport.abort()
        elif fate == "lose reply":
            self._mute = True
            server.write(commit)
            await server.drain()
            await self.struck.wait()  # Until the server has answered: the COMMIT is done.
            client.transport.abort()
        elif fate == "commit late":
            self._mute = True
            client.transport.abort()
            await asyncio.sleep(seconds)
            server.write(commit)
            await server.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.struck.wait(), 5)
        else:
            await asyncio.sleep(seconds)
            server.write(commit)
            await server.drain()
        self.struck.set()
        return fate == "stall commit"

    async def _to_client(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while chunk := await server.read(_CHUNK):
            if self._backend is None:
                self._learn_backend(chunk)
            if self._mute:
                self.struck.set()
                continue
            client.write(chunk)
            await client.drain()

    def _learn_backend(self, chunk: bytes) -> None:
        """Find the session's process id in the greeting: the message BackendKeyData."""
        self._greeting += chunk
        if self._greeting[:1] in (b"N", b"S") and len(self._greeting) == 1:
            self._greeting = b""  # The answer to a question for TLS.
            return
        at = 0
        while at + 5 <= len(self._greeting):
            kind = self._greeting[at : at + 1]
            (length,) = struct.unpack_from("!i", self._greeting, at + 1)
            if at + 1 + length > len(self._greeting):
                return
            if kind == b"K":
                (self._backend,) = struct.unpack_from("!i", self._greeting, at + 5)
                self._proxy.sessions[self._backend] = self
                self._greeting = b""
                return
            at += 1 + length


class CommitProxy:
    """Listens on a free port of its own and passes every session on to `target_port`."""

    def __init__(self, target_port: int = 0) -> None:
        self.target_port = target_port
        self.sessions: dict[int, _Session] = {}
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    def doom(self, backend: int, fate: Fate, seconds: float = 0.0) -> asyncio.Event:
        """Set the fate of a session's next COMMIT; the event tells that it has happened."""
        session = self.sessions[backend]
        session.struck.clear()
        session.fate = (fate, seconds)
        return session.struck

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._take, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut every session and close."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await _Session(self).serve(reader, writer)
        except OSError:
            writer.transport.abort()


def _is_commit(message: bytes) -> bool:
    """Tell a simple query that is a COMMIT, as the driver sends it."""
    return message[:1] == b"Q" and message[5:].startswith(_COMMIT)


async def _whole_message(chunk: bytes, reader: asyncio.StreamReader) -> bytes:
    """Read on until the chunk holds its first message whole."""
    while len(chunk) < 5 or len(chunk) < 1 + struct.unpack_from("!i", chunk, 1)[0]:
        more = await reader.read(_CHUNK)
        if not more:
            break
        chunk += more
    return chunk
