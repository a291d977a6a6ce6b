"""The data folder: everything a running embedded stack knows, and by which others find it.

version.json   who made it; another format or an older server is refused
lock           held by the supervisor for its life; says its pid
settings/      what `everycent.settings.load` reads: common, one file per part
secrets.json   passwords and keys, made once
logs/ run/     one log per process; ready files and the supervisor's status
pg/ temporal.db simulator.db
"""

import errno
import fcntl
import importlib.metadata
import json
import os
import re
import secrets
import tomllib
from pathlib import Path
from typing import Any

from everycent.clock import now
from everycent.settings import SERVICES
from everycent.stack.ports import LOOPBACK, Ports, StackError

FORMAT = 1
ROLES = ("", "_read", "_owner", "_relay")
LONG_LOG_BYTES = 10 * 1024 * 1024


def write_private(path: Path, text: str) -> None:
    """Write a file only its owner may read, all of it or nothing."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


class DataFolder:
    """The paths and small files of one data folder; nothing is written before `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.settings = self.path / "settings"
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.temporal_database = self.path / "temporal.db"
        self._lock: int | None = None

    def open(self, *, postgres_major: int, temporal_version: str) -> None:
        """Make the folder ours: create or check it, and hold its lock until `close`.

        Raises StackError for a folder that cannot be written, is somebody else's, is of another
        version, or has a running supervisor.
        """
        try:
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._refuse_foreign_folder()
            self._take_lock()
        except OSError as error:
            raise StackError(
                f"cannot write to the data folder {self.path}: {error.strerror};"
                " choose another with --data-dir or change its owner"
            ) from error
        try:
            self._check_version(postgres_major, temporal_version)
            for folder, mode in ((self.settings, 0o700), (self.logs, 0o711), (self.run, 0o700)):
                folder.mkdir(mode=mode, exist_ok=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the lock back; the next `up` may have the folder."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def supervisor_pid(self) -> int | None:
        """Return the pid of the supervisor that holds this folder, None when there is none."""
        try:
            probe = os.open(self.path / "lock", os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise StackError(f"cannot read the data folder {self.path}: be its owner") from error
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._pid_in_lock()
        else:
            return None
        finally:
            os.close(probe)

    def secrets(self) -> dict[str, str]:
        """Return the passwords and keys of this folder, made once."""
        file = self.path / "secrets.json"
        kept: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        wanted = dict.fromkeys(_role_names(), "") | {
            "api_key": "sk_",
            "webhook_secret": "whsec_",
        }
        complete = {
            name: kept.get(name) or prefix + secrets.token_urlsafe(24)
            for name, prefix in wanted.items()
        }
        if complete != kept:
            write_private(file, json.dumps(complete, indent=1))
        return complete

    def remembered_ports(self) -> dict[str, int]:
        """Return the ports of the last run, nothing for a new folder."""
        file = self.settings / "common.toml"
        if not file.exists():
            return {}
        kept = tomllib.loads(file.read_text()).get("stack", {})
        return {name: int(port) for name, port in kept.items()}

    def write_settings(self, ports: Ports, *, together: bool = False) -> None:
        """Write what workers, starters and `migrate` read, each only what its part may know.

        `together` sends new runs to the workers that host everything.
        """
        keys = self.secrets()
        address = f"{LOOPBACK}:{ports.postgres}"
        dsns: list[dict[str, str]] = [
            {
                str(service): f"postgresql://{role}:{keys[role]}@{address}/everycent_{service}"
                for service in SERVICES
                for role in (role_name(service, suffix),)
            }
            for suffix in ROLES
        ]
        worker, read, owner, relay = dsns
        common: dict[str, Any] = {
            "steps": "together" if together else "apart",
            "temporal": {
                "address": f"{LOOPBACK}:{ports.temporal}",
                "namespace": "default",
                "ui": f"http://{LOOPBACK}:{ports.ui}",
            },
            "provider": {
                "url": f"http://{LOOPBACK}:{ports.provider}",
                "api_key": keys["api_key"],
                "webhook_secret": keys["webhook_secret"],
            },
            "stack": ports.as_dict(),
        }
        self._write_part("common", common)
        for service in SERVICES:
            self._write_part(service, {"database": {service: worker[service]}})
        self._write_part("together", {"database": worker})
        self._write_part("reader", {"read": read})
        self._write_part("relay", {"relay": relay})
        everything = {"owner": owner, "database": worker, "read": read, "relay": relay}
        self._write_part("owner", everything)

    def set_long_logs_aside(self) -> None:
        """Begin new logs where the old ones have grown long; one older file of each is kept."""
        for log in self.logs.glob("*.log"):
            if log.stat().st_size > LONG_LOG_BYTES:
                log.replace(log.with_suffix(".log.old"))

    def write_status(self, status: dict[str, Any]) -> None:
        """Say for other processes how the supervised ones are."""
        write_private(self.run / "status.json", json.dumps(status))

    def read_status(self) -> dict[str, Any] | None:
        """Return what the last supervisor said, None when none ever ran."""
        try:
            status: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status

    def _write_part(self, part: str, values: dict[str, Any]) -> None:
        # A JSON string is a TOML string. What stands in no table comes first.
        plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
        lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
        for table, inner in values.items():
            if isinstance(inner, dict):
                lines.append(f"[{table}]")
                lines += [f"{name} = {json.dumps(value)}" for name, value in inner.items()]
        write_private(self.settings / f"{part}.toml", "\n".join(lines) + "\n")

    def _refuse_foreign_folder(self) -> None:
        names = {entry.name for entry in self.path.iterdir()}
        if names - {"lock"} and "version.json" not in names:
            raise StackError(
                f"{self.path} is not empty and no data folder of everycent:"
                " choose an empty or new one with --data-dir"
            )

    def _take_lock(self) -> None:
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StackError(
                f"a stack already runs on {self.path} (pid {self._pid_in_lock()}):"
                f" stop it with: everycent down --data-dir '{self.path}'"
            ) from error
        os.ftruncate(lock, 0)
        os.write(lock, json.dumps({"pid": os.getpid(), "since": now().isoformat()}).encode())
        self._lock = lock

    def _pid_in_lock(self) -> int | None:
        try:
            return int(json.loads((self.path / "lock").read_text())["pid"])
        except (ValueError, KeyError):  # Its holder is just writing it.
            return None

    def _check_version(self, postgres_major: int, temporal_version: str) -> None:
        """Refuse data that the installed code or servers cannot read; say who can."""
        file = self.path / "version.json"
        ours = {
            "format": FORMAT,
            "everycent": package_version(),
            "postgres": postgres_major,
            "temporal": temporal_version,
        }
        kept = json.loads(file.read_text()) if file.exists() else ours
        fix = (
            f"use everycent {kept.get('everycent')}, which made it,"
            " or start on a new folder with --data-dir"
        )
        if kept.get("format") != FORMAT:
            raise StackError(
                f"{self.path} has data format {kept.get('format')}, this everycent reads format"
                f" {FORMAT}: {fix}"
            )
        if kept.get("postgres") != postgres_major:
            raise StackError(
                f"{self.path} was made by PostgreSQL {kept.get('postgres')}, installed is"
                f" {postgres_major}: {fix}"
            )
        if _numbers(str(kept.get("temporal"))) > _numbers(temporal_version):
            raise StackError(
                f"{self.path} was written by Temporal server {kept.get('temporal')}, installed is"
                f" {temporal_version}: {fix}"
            )
        if kept != ours or not file.exists():
            write_private(file, json.dumps(ours))


def role_name(service: str, suffix: str = "") -> str:
    """Return the name of a service's role: worker, `_read`, `_owner` or `_relay`."""
    return f"everycent_{service}{suffix}"


def package_version() -> str:
    """Return our version: of the installed package or, in a bare checkout, of pyproject.toml."""
    try:
        return importlib.metadata.version("everycent")
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def _role_names() -> list[str]:
    return [role_name(name, suffix) for name in SERVICES for suffix in ROLES]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
