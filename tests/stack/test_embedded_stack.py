"""The stack as tests and programs use it, and what its Temporal server is given."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from everycent.errors import Bug
from everycent.settings import SERVICES
from everycent.stack import launch, ports, temporal
from everycent.stack.embedded import EmbeddedStack
from everycent.stack.ports import StackError
from starters.bookings import Bookings
from starters.client import connect


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """PostgreSQL and Temporal, as the children of this process."""
    folder = Path(tmp_path_factory.mktemp("stack")) / "data"
    with EmbeddedStack(folder, parts=("postgres", "temporal")) as stack:
        yield stack


async def test_the_namespace_keeps_closed_orders_for_thirty_days(stack: EmbeddedStack) -> None:
    client = await Client.connect(stack.settings.temporal.address)
    answer = await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace=stack.settings.temporal.namespace)
    )
    retention = answer.config.workflow_execution_retention_ttl.ToTimedelta()
    assert retention == timedelta(days=30)


async def test_orders_can_be_found_by_each_of_our_search_attributes(stack: EmbeddedStack) -> None:
    assert set(temporal.SEARCH_ATTRIBUTES) <= await _search_attributes(stack.ports)


def test_each_service_has_a_database_its_owner_and_no_stranger(stack: EmbeddedStack) -> None:
    for service in SERVICES:
        name = stack.postgres.execute(
            "SELECT pg_get_userbyid(datdba), has_database_privilege('everycent_order_read', oid,"
            f" 'CONNECT') FROM pg_database WHERE datname = 'everycent_{service}'"
        )
        assert name.strip() == f"everycent_{service}_owner|f"


def test_the_folder_is_taken_while_it_runs(stack: EmbeddedStack) -> None:
    with pytest.raises(StackError, match="already runs"):
        EmbeddedStack(stack.folder.path).start()


def test_its_processes_can_be_found_and_killed(stack: EmbeddedStack) -> None:
    assert set(stack.processes) == {"postgres", "temporal"}
    assert all(view.pid and view.state == "ready" for view in stack.processes.values())


async def test_an_older_server_file_gets_the_missing_search_attributes(tmp_path: Path) -> None:
    """Red when: `is_ready` leaves it to the start option, which reaches new namespaces only."""
    used, _ = ports.choose({}, {})
    command = temporal.command(tmp_path / "temporal.db", used)
    bare = [word for word in command if word != "--search-attribute" and "=Key" not in word]
    with _running([word for word in bare if "=Int" not in word], tmp_path / "log"):
        _wait_until(lambda: ports.accepts(used.temporal_http) and ports.accepts(used.temporal))
    with _running(command, tmp_path / "log"):
        _wait_until(lambda: temporal.is_ready(used))
        assert set(temporal.SEARCH_ATTRIBUTES) <= await _search_attributes(used)


async def test_a_stack_is_its_own_whatever_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that speaks to another shop starts a demo: no worker and no client goes there.

    Red when: a child is given our environment as it is (its worker never becomes ready), or the
    stack's settings or the client let a variable stand above the folder.
    """
    elsewhere = "127.0.0.9:9"
    for name in ("TEMPORAL_ADDRESS", "EVERYCENT_TEMPORAL__ADDRESS"):
        monkeypatch.setenv(name, elsewhere)
    monkeypatch.setenv("EVERYCENT_PROVIDER__URL", f"http://{elsewhere}")
    for role in ("DATABASE", "READ", "OWNER"):
        monkeypatch.setenv(f"EVERYCENT_{role}__ORDER", f"postgresql://nobody@{elsewhere}/none")
    with EmbeddedStack(tmp_path / "data", workers=("order",)) as stack:
        told = stack.settings
        client = await connect(told)
        with pytest.raises(Bug, match="there is no case"):  # So says its own database.
            await Bookings(client).settle_case("t", "o-1", "t/o-1/none", by="ada", reason="a test")
    assert elsewhere not in told.model_dump_json()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = launch.start(command, output=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


async def _search_attributes(used: ports.Ports) -> set[str]:
    client = await Client.connect(f"127.0.0.1:{used.temporal}")
    answer = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace="default")
    )
    return set(answer.custom_attributes)
