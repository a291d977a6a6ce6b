"""Run one worker process until it is told to stop."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from everycent.database.capacity import within_limits
from everycent.settings import Settings
from starters.client import connect
from workers import fault_points, meters
from workers.composition import (
    WorkerName,
    consumers_of,
    relays,
    workers_of,
)
from workers.connections import connections_of, connections_of_relay
from workers.loop import running


async def run_worker(name: WorkerName, settings: Settings) -> None:
    """Serve the worker's queues until SIGTERM or SIGINT; then finish what runs and leave.

    Writes its pid into the file named by EVERYCENT_READY_FILE once it polls.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    fault_points.arm(settings)
    meters.serve(settings)
    client = await connect(settings)
    async with contextlib.AsyncExitStack() as stack:
        wanted = connections_of(name, settings)
        await stack.enter_async_context(within_limits(f"worker {name}", wanted))
        workers = await stack.enter_async_context(workers_of(name, client, settings))
        for worker in workers:
            await stack.enter_async_context(worker)
        loops = await stack.enter_async_context(consumers_of(name, settings))
        await stack.enter_async_context(running(loops))
        _tell_ready()
        await stop.wait()


async def run_relay(settings: Settings) -> None:
    """Carry the messages of all outboxes until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    fault_points.arm(settings)
    wanted = connections_of_relay(settings)
    async with (
        within_limits("worker relay", wanted),
        relays(settings) as loops,
        running(loops),
    ):
        _tell_ready()
        await stop.wait()


def _tell_ready() -> None:
    if file := os.environ.get("EVERYCENT_READY_FILE"):
        Path(file).write_text(str(os.getpid()))
