"""A byte-level proxy before PostgreSQL that loses, delays or holds back a session's next COMMIT."""

import asyncio
import contextlib
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from everycent.stack.ports import LOOPBACK

Fate = Literal["lose commit", "lose reply", "stall commit", "commit late"]
_COMMIT = b"COMMIT"
_CHUNK = 65536
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Doom:
    """What becomes of a COMMIT; `go` ends the wait of one that stalls or comes late early."""

    fate: Fate
    seconds: float
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Wait until it is time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.go.wait(), self.seconds)


class _Session:
    """One session of a client: what it is known by, and what becomes of its next COMMIT."""

    def __init__(self, proxy: "CommitProxy") -> None:
        self._proxy = proxy
        self.doom: Doom | None = None
        self._answered = asyncio.Event()
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
            if self.doom is not None:
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
        assert self.doom is not None, "somebody has set it"
        doom, self.doom = self.doom, None
        fate = doom.fate
        doom.begun.set()
        if fate == "lose commit":
            client.transport.abort()
        elif fate == "lose reply":
            self._mute = True
            server.write(commit)
            await server.drain()
            await self._answered.wait()  # The COMMIT is done.
            client.transport.abort()
        elif fate == "commit late":
            self._mute = True
            client.transport.abort()
            await doom.wait()
            server.write(commit)
            await server.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._answered.wait(), ANSWER_SECONDS)
        else:
            await doom.wait()
            server.write(commit)
            await server.drain()
        doom.struck.set()
        return fate == "stall commit"

    async def _to_client(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while chunk := await server.read(_CHUNK):
            if self._backend is None:
                self._learn_backend(chunk)
            if self._mute:
                self._answered.set()
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

    def doom(self, backend: int, fate: Fate, seconds: float = 0.0) -> Doom:
        """Set the fate of a session's next COMMIT."""
        doom = Doom(fate, seconds)
        self.sessions[backend].doom = doom
        return doom

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
