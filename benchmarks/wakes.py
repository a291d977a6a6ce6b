"""What a NOTIFY costs a transaction that writes a message: in it, after it, or none.

`python -m benchmarks.wakes`: eight sessions insert one row and commit, fsync on, for some seconds.
"""

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from benchmarks.machine import describe
from everycent.stack.postgres import PostgresServer

SECONDS, SESSIONS, ROUNDS = 3.0, 8, 3
WAYS = ("none", "inside", "after")


async def one(dsn: str, way: str, until: float) -> int:
    connection = await asyncpg.connect(dsn)
    done = 0
    while time.monotonic() < until:
        async with connection.transaction():
            await connection.execute("INSERT INTO message (says) VALUES ('x')")
            if way == "inside":
                await connection.execute("SELECT pg_notify('wake', '')")
        if way == "after":
            await connection.execute("SELECT pg_notify('wake', '')")
        done += 1
    await connection.close()
    return done


async def measure(dsn: str) -> None:
    listener = await asyncpg.connect(dsn)
    await listener.execute("CREATE TABLE message (id bigserial PRIMARY KEY, says text)")
    await listener.add_listener("wake", lambda *_: None)
    for number in range(ROUNDS):
        for way in WAYS:
            until = time.monotonic() + SECONDS
            done = await asyncio.gather(*(one(dsn, way, until) for _ in range(SESSIONS)))
            print(f"round {number + 1}, notify {way:6}: {sum(done) / SECONDS:7.0f} commits/s")
    await listener.close()


def main() -> None:
    with TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder) / "pg")
        server.start()
        try:
            print(describe())
            asyncio.run(measure(server.dsn()))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
