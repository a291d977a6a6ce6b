"""`everycent up`, `down` and `status`, typed on a shell, with the real servers."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from everycent.settings import load
from everycent.stack.folder import DataFolder

Result = subprocess.CompletedProcess[str]
POSTGRES = ("--part", "postgres")
BOTH = (*POSTGRES, "--part", "temporal")
SERVERS = (*BOTH, "--part", "simulator")


class Shell(Protocol):
    """See conftest.py."""

    folder: Path

    def __call__(self, command: str, *options: str, folder: Path | None = None) -> Result: ...
    def up(self, *options: str) -> Result: ...
    def in_foreground(self, *options: str) -> subprocess.Popen[str]: ...
    def children(self) -> list[psutil.Process]: ...
    def wait_until(self, condition: Any) -> None: ...


def rows(everycent: Shell) -> dict[str, dict[str, Any]]:
    """Return the processes of `status --json` by name."""
    return {
        row["name"]: row for row in json.loads(everycent("status", "--json").stdout)["processes"]
    }


def said(everycent: Shell) -> dict[str, dict[str, Any]]:
    """Return what `status` would read, without a process for each look."""
    known = DataFolder(everycent.folder).read_status()
    assert known is not None
    return {row["name"]: row for row in known["processes"]}


def one_line(result: Result) -> str:
    """Return the error of a refused command: exit code 4 and exactly one line."""
    assert result.returncode == 4, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_up_returns_when_all_answers_and_down_leaves_nothing(everycent: Shell) -> None:
    everycent.up(*SERVERS)
    settings = load(everycent.folder)
    for url in (settings.temporal.ui, f"{settings.provider.url}/healthz"):
        assert urllib.request.urlopen(url).status == 200
    status = everycent("status")
    assert status.returncode == 0
    assert [line.split()[2] for line in status.stdout.splitlines()[2:]] == ["ready"] * 3

    assert everycent("down").returncode == 0
    assert everycent.children() == []
    assert everycent("status").returncode == 4


def test_each_part_reads_only_its_own_secrets(running: Shell) -> None:
    inventory = load(running.folder, "inventory")
    assert list(inventory.database) == ["inventory"]
    assert not inventory.read
    assert not inventory.owner
    owner = load(running.folder, "owner")
    assert (len(owner.owner), len(owner.database), len(owner.read)) == (6, 6, 6)
    for file in (running.folder / "settings").iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_who_is_killed_is_restarted(everycent: Shell) -> None:
    """Red when: the supervisor does not restart what died."""
    everycent.up(*BOTH)
    before = rows(everycent)
    for row in before.values():
        os.kill(row["pid"], signal.SIGKILL)
    everycent.wait_until(
        lambda: all(
            row["restarts"] >= 1 and row["state"] == "ready" for row in said(everycent).values()
        )
    )
    after = rows(everycent)
    assert all(after[name]["pid"] != before[name]["pid"] for name in before)


def test_kill_9_of_the_supervisor_leaves_no_orphan_and_no_damage(everycent: Shell) -> None:
    """Red when: children outlive the supervisor, or the next `up` trips over what it left."""
    everycent.up(*BOTH)
    ports = (everycent.folder / "settings" / "common.toml").read_text()
    supervisor = json.loads(everycent("status", "--json").stdout)["pid"]
    os.kill(supervisor, signal.SIGKILL)
    everycent.wait_until(lambda: everycent.children() == [])

    assert everycent("status").returncode == 4
    again = everycent("up", "--detach", *BOTH)
    assert again.returncode == 0, again.stderr
    assert (everycent.folder / "settings" / "common.toml").read_text() == ports


@pytest.mark.slow
def test_the_whole_stack_comes_up_heals_and_dies_with_its_supervisor(everycent: Shell) -> None:
    """Red when: a worker is not restarted, or lives on as an orphan."""
    everycent.up()
    workers = {n: row["pid"] for n, row in rows(everycent).items() if n.startswith("worker-")}
    assert len(workers) == 8  # With the relay.
    for name, pid in workers.items():
        words = " ".join(psutil.Process(pid).cmdline())
        assert f"everycent worker {name.removeprefix('worker-')} " in words
        assert words.endswith(f"--data-dir {everycent.folder}")

    os.kill(workers["worker-inventory"], signal.SIGKILL)
    everycent.wait_until(
        lambda: (
            rows(everycent)["worker-inventory"]["restarts"] == 1
            and everycent("status").returncode == 0
        )
    )
    os.kill(json.loads(everycent("status", "--json").stdout)["pid"], signal.SIGKILL)
    everycent.wait_until(lambda: everycent.children() == [])


def test_a_leftover_that_ignored_its_death_signal_is_ended_by_the_next_up(
    everycent: Shell,
) -> None:
    """Red when: `up` does not look for processes of a killed supervisor."""
    everycent.up(*POSTGRES)
    environment = {**os.environ, "EVERYCENT_STACK_FOLDER": str(everycent.folder)}
    everycent("down")
    left = subprocess.Popen(["sleep", "600"], env=environment)
    up = everycent("up", "--detach", *POSTGRES)
    assert f"pid {left.pid}" in up.stderr
    assert left.wait(timeout=10) == -signal.SIGTERM


def test_a_second_up_on_the_folder_is_refused_and_names_the_first(running: Shell) -> None:
    pid = json.loads(running("status", "--json").stdout)["pid"]
    assert f"(pid {pid})" in one_line(running("up", *POSTGRES))
    assert f"(pid {pid})" in one_line(running("up", "--detach", *POSTGRES))
    assert running("status").returncode == 0


def test_data_and_ports_survive_down_and_up(everycent: Shell) -> None:
    everycent.up(*POSTGRES)
    settings = load(everycent.folder, "owner")
    long = everycent.folder / "logs" / "long.log"
    long.write_bytes(b"x" * 11 * 1024 * 1024)
    _sql(settings.owner["order"], "CREATE TABLE kept AS SELECT 7 AS n")
    everycent("down")
    everycent.up(*POSTGRES)
    assert load(everycent.folder, "owner") == settings
    assert _sql(settings.owner["order"], "SELECT n FROM kept") == "7"
    assert not long.exists()


def test_a_taken_port_that_was_named_is_refused_in_one_line(everycent: Shell) -> None:
    with _listener() as port:
        line = one_line(everycent("up", "--postgres-port", str(port), *POSTGRES))
    assert f"port {port} (postgres) is taken" in line
    assert "--postgres-port" in line


def test_a_remembered_port_that_is_taken_is_replaced_and_told(everycent: Shell) -> None:
    everycent.up(*POSTGRES)
    everycent("down")
    port = int(_database_port(everycent))
    with _listener(port):
        up = everycent("up", "--detach", *POSTGRES)
        assert up.returncode == 0, up.stderr
        assert f"port {port} (postgres) is taken" in up.stderr
        assert int(_database_port(everycent)) != port


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("format", 99, "format 99"),
        ("postgres", 12, "PostgreSQL 12"),
        ("temporal", "9.9.9", "9.9.9"),
    ],
)
def test_a_folder_of_another_version_is_refused_untouched(
    everycent: Shell, key: str, value: object, names: str
) -> None:
    everycent.folder.mkdir()
    version = {"format": 1, "everycent": "0.0.1", "postgres": 18, "temporal": "1.0.0", key: value}
    (everycent.folder / "version.json").write_text(json.dumps(version))
    line = one_line(everycent("up", *POSTGRES))
    assert names in line
    assert "0.0.1" in line
    assert {file.name for file in everycent.folder.iterdir()} == {"version.json", "lock"}


def test_somebody_elses_folder_is_refused_untouched(everycent: Shell) -> None:
    everycent.folder.mkdir()
    (everycent.folder / "thesis.tex").touch()
    assert "is not empty" in one_line(everycent("up", *POSTGRES))
    assert [file.name for file in everycent.folder.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(everycent: Shell) -> None:
    file = everycent.folder.parent / "a file"
    file.touch()
    line = one_line(everycent("up", *POSTGRES, folder=file / "below"))
    assert "cannot write to the data folder" in line
    assert "--data-dir" in line


@pytest.mark.usefixtures("plain_user")
def test_who_is_not_root_runs_the_servers_as_himself(everycent: Shell) -> None:
    everycent.up(*POSTGRES)
    assert everycent("status").returncode == 0
    users = {process.uids().real for process in everycent.children()}
    assert users == {everycent.folder.stat().st_uid}


@pytest.mark.usefixtures("plain_user")
def test_a_read_only_folder_is_refused_in_one_line(everycent: Shell) -> None:
    everycent.folder.chmod(0o500)
    assert "cannot write to the data folder" in one_line(everycent("up", *POSTGRES))


def test_ctrl_c_stops_everything_and_says_so(everycent: Shell) -> None:
    supervisor = everycent.in_foreground(*BOTH)
    assert supervisor.stderr is not None
    assert any("all ready" in line for line in supervisor.stderr)
    supervisor.send_signal(signal.SIGINT)
    _, said = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0
    assert {"postgres: stopped", "temporal: stopped"} <= {
        line.split(" ", 1)[1] for line in said.splitlines()
    }
    assert everycent.children() == []


def test_a_server_that_cannot_come_up_is_shown_with_its_last_lines(everycent: Shell) -> None:
    """Red when: a failed start is retried for ever, or leaves the others running."""
    everycent.folder.mkdir()
    version = {"format": 1, "everycent": "0.1.0", "postgres": 18, "temporal": "1.0.0"}
    (everycent.folder / "version.json").write_text(json.dumps(version))
    (everycent.folder / "temporal.db").mkdir()  # SQLite cannot open a folder.
    up = everycent("up", "--detach", *BOTH)
    assert up.returncode == 4
    assert "the end of" in up.stderr
    assert up.stderr.strip().splitlines()[-1].startswith("error: temporal did not start")
    assert everycent.children() == []


def test_down_without_a_stack_does_nothing(everycent: Shell) -> None:
    down = everycent("down")
    assert down.returncode == 0
    assert not everycent.folder.exists()


def test_an_impossible_port_is_invalid_input(everycent: Shell) -> None:
    assert everycent("up", "--ui-port", "70000").returncode == 2


def test_missing_servers_are_told_in_one_line(tmp_path: Path) -> None:
    without_psutil = (
        "import sys; sys.modules['psutil'] = None;"
        f"sys.argv = ['everycent', 'up', '--data-dir', {str(tmp_path / 'new')!r}];"
        "from everycent.__main__ import main; main()"
    )
    up = subprocess.run([sys.executable, "-c", without_psutil], capture_output=True, text=True)
    assert "pip install 'everycent[embedded]'" in one_line(up)


class _listener:  # noqa: N801 - reads as a function where it is used
    """Hold a port as another program would."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))

    def __enter__(self) -> int:
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _database_port(everycent: Shell) -> str:
    return load(everycent.folder, "owner").owner["order"].rsplit(":", 1)[1].split("/")[0]


def _sql(dsn: str, statement: str) -> str:
    from everycent.stack.postgres import binaries

    command = [str(binaries() / "psql"), "-XqAt", dsn, "-c", statement]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
