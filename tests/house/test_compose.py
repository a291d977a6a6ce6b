"""The production shape is true: the file is valid, and each of our entries runs as it says."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everycent.settings import SERVICES
from everycent.stack import temporal
from everycent.stack.embedded import EmbeddedStack
from tests.house import compose_file
from tests.house.compose_file import FILE, ROOT, Entry

PATIENCE_SECONDS = 45.0
BIN = Path(sys.executable).parent
WORKERS = ("workflows", *SERVICES, "relay")


def test_the_compose_file_follows_the_schema() -> None:
    checker = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(checker, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_there_is_a_container_per_worker_and_each_of_ours_restarts_and_tells_its_health() -> None:
    ours = compose_file.our_services()
    assert {s["command"][1] for s in ours.values() if s["command"][0] == "worker"} == set(WORKERS)
    for name in (*WORKERS, "simulator"):
        assert ours[name]["restart"] == "unless-stopped", name
        assert ours[name]["healthcheck"]["test"][:3] == ["CMD", "everycent", "check"], name
    assert ours["simulator"]["profiles"] == ["simulator"], "nobody starts a fake provider unasked"


def test_no_secret_stands_in_the_file() -> None:
    """Every password, key and DSN is a required variable, without a default."""
    for name, service in compose_file.services().items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|PWD|KEY|SECRET|__(ORDER|INVENTORY|PAYMENT|ACCOUNT)", variable):
                assert re.fullmatch(r"\$\{\w+:\?\}", value), f"{name}: {variable}"
    assert "://" not in re.sub(r"http://(simulator|127\.0\.0\.1):\d+", "", FILE.read_text())


def test_each_worker_is_given_the_database_of_its_service_and_no_other() -> None:
    """Only `migrate` knows an owner; a worker knows its own database as its worker's role.

    Red when: a second DSN is added to a worker in docker-compose.yml.
    """
    for name, service in compose_file.our_services().items():
        known = {k for k in service.get("environment", {}) if re.match("EVERYCENT_[A-Z]+__", k)}
        dsns = {k for k in known if k.split("_")[1] in ("DATABASE", "READ", "OWNER", "RELAY")}
        everything = {
            f"EVERYCENT_{role}__{s.upper()}"
            for role in ("OWNER", "DATABASE", "READ", "RELAY")
            for s in SERVICES
        }
        expected = {
            "migrate": everything,
            "shell": {f"EVERYCENT_READ__{s.upper()}" for s in SERVICES},
            "workflows": set[str](),
            "simulator": set[str](),
            "relay": {f"EVERYCENT_RELAY__{s.upper()}" for s in SERVICES},
        }.get(name, {f"EVERYCENT_DATABASE__{name.upper()}"})
        assert dsns == expected, name


def test_the_recipe_of_the_operations_page_makes_every_variable_that_is_required(
    tmp_path: Path,
) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    recipe = re.search(r"```sh\n(umask 077\n.*?)```", page, re.DOTALL)
    assert recipe, "the page has lost its recipe for .env"
    subprocess.run(["sh", "-euc", recipe[1]], cwd=tmp_path, check=True)
    lines = (tmp_path / ".env").read_text().splitlines()
    made = dict(line.split("=", 1) for line in lines)
    assert compose_file.required_variables() <= set(made)
    assert all(made.values())
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """The servers that the entries talk to; `migrate` and the workers are the entries' own job."""
    folder = Path(tmp_path_factory.mktemp("compose")) / "data"
    with EmbeddedStack(folder, parts=("postgres", "temporal")) as stack:
        yield stack


@pytest.fixture(scope="module")
def variables(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an operator's `.env` would say, for these servers."""
    settings = stack.settings
    port = str(stack.ports.provider)
    return {
        "EVERYCENT_TEMPORAL__ADDRESS": settings.temporal.address,
        "EVERYCENT_PROVIDER__URL": f"http://127.0.0.1:{port}",
        "EVERYCENT_PROVIDER__API_KEY": "sk_house",
        "EVERYCENT_PROVIDER__WEBHOOK_SECRET": "whsec_house",
        "EVERYCENT_DATA_DIR": str(tmp_path_factory.mktemp("simulator")),
        "SIMULATOR_HOST": "127.0.0.1",
        "SIMULATOR_PORT": port,
        **{
            f"EVERYCENT_{role}__{service.upper()}": dsn
            for role, dsns in (
                ("DATABASE", settings.database),
                ("READ", settings.read),
                ("OWNER", settings.owner),
                ("RELAY", settings.relay),
            )
            for service, dsn in dsns.items()
        },
    }


def test_what_the_namespace_container_runs_makes_a_namespace_with_our_attributes(
    stack: EmbeddedStack,
) -> None:
    """It may run any number of times, and names the attributes of the embedded server."""
    script = compose_file.services()["temporal-namespace"]["command"][0]
    named = re.findall(r"--name (\w+) --type (\w+)", script)
    assert dict(named) == temporal.SEARCH_ATTRIBUTES
    environment = {
        "PATH": f"{temporal.binary().parent}:{os.environ['PATH']}",
        "HOME": str(stack.folder.path),
        "TEMPORAL_ADDRESS": stack.settings.temporal.address,
        "TEMPORAL_NAMESPACE": "house",
    }
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-euc", script.replace("$$", "$")],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.timeout(180)
def test_each_of_our_entries_runs_with_its_command_environment_and_health_check(
    stack: EmbeddedStack, variables: dict[str, str], tmp_path: Path
) -> None:
    """Nothing beside the file's own words is given to them: no data folder, no setting of ours."""
    entries = compose_file.our_entries(variables)
    assert _run(entries["migrate"], tmp_path).returncode == 0
    sick = _run_health(entries["inventory"], tmp_path)
    assert sick.returncode == 4, "a worker that does not run is not well"
    assert "no worker polls from this host" in sick.stdout

    started = [
        _start(entry, tmp_path)
        for name, entry in entries.items()
        if name not in ("migrate", "shell")
    ]
    try:
        with ThreadPoolExecutor(max_workers=3) as nurses:
            patients = [entries[name] for name in ("simulator", *WORKERS)]
            list(nurses.map(lambda entry: _wait_until_well(entry, tmp_path), patients))
        audit = _run(entries["shell"], tmp_path)
        assert audit.returncode == 0, audit.stderr
        for process in started:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(timeout=30) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _start(entry: Entry, folder: Path) -> subprocess.Popen[bytes]:
    log = (folder / f"{entry.name}.log").open("wb")
    with log:
        return subprocess.Popen(
            [str(BIN / "everycent"), *entry.command],
            env=_environment(entry), cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _run(entry: Entry, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "everycent"), *entry.command]
    return subprocess.run(
        command, env=_environment(entry), cwd=folder, capture_output=True, text=True, timeout=60
    )


def _run_health(entry: Entry, folder: Path) -> subprocess.CompletedProcess[str]:
    assert entry.health is not None, f"{entry.name} has no health check"
    program, *words = entry.health
    return subprocess.run(
        [str(BIN / program), *words],
        env=_environment(entry), cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def _wait_until_well(entry: Entry, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (health := _run_health(entry, folder)).returncode != 0:
        log = (folder / f"{entry.name}.log").read_text()
        assert time.monotonic() < deadline, f"{entry.name}: {health.stdout}{health.stderr}{log}"


def _environment(entry: Entry) -> dict[str, str]:
    """Return what the container would have: the image's few variables, and the entry's own."""
    return {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **entry.environment}
