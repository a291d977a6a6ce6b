"""The embedded PostgreSQL keeps what it was given, and comes up whatever happened before."""

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from everycent.stack import launch
from everycent.stack.postgres import PostgresServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A running server below a path with a space, which only its owner may enter."""
    folder = Path(tmp_path_factory.mktemp("a closed")) / "folder"
    folder.mkdir(mode=0o700)
    server = PostgresServer(folder)
    server.start()
    yield server
    server.stop()


async def test_a_client_comes_in_with_the_password(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.dsn())
    assert await connection.fetchval("SHOW server_version_num") >= "180000"
    await connection.close()


async def test_nobody_comes_in_without_the_password(server: PostgresServer) -> None:
    """Red when: initdb is told `--auth=trust`."""
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.dsn(password="guess"))


def test_it_writes_through_to_the_disk(server: PostgresServer) -> None:
    """Red when: fsync, full_page_writes or synchronous_commit is switched off."""
    shown = server.execute("SHOW fsync; SHOW full_page_writes; SHOW synchronous_commit;")
    assert shown.split() == ["on", "on", "on"]


def test_it_listens_on_the_loopback_interface_only(server: PostgresServer) -> None:
    assert server.process is not None
    listening = [
        c.laddr.ip
        for c in psutil.Process(server.process.pid).net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_the_password_file_is_for_its_owner_only(server: PostgresServer) -> None:
    assert (server.folder / "postgres.json").stat().st_mode & 0o077 == 0


def test_committed_rows_and_the_port_survive_kill_9(server: PostgresServer) -> None:
    server.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
    port = server.port
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    server.start()
    assert server.execute("SELECT n FROM kept").strip() == "7"
    assert server.port == port


def test_a_pid_file_that_names_a_living_stranger_does_not_stop_it(server: PostgresServer) -> None:
    """After a reboot the old number may be anybody's. Red when: the stale pid file is left."""
    server.stop()
    # One of its own user's: of others' it is told that it may not signal them.
    stranger = launch.start(["sleep", "600"], output=server.log, user=server.user)
    try:
        (server.data / "postmaster.pid").write_text(f"{stranger.pid}\n{server.data}\n")
        server.start()
        assert server.answers()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_second_server_object_finds_port_and_password(server: PostgresServer) -> None:
    assert PostgresServer(server.folder).dsn() == server.dsn()
