"""Run the simulator as a process of its own."""

import signal
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from everycent.simulator.api import create_app
from everycent.simulator.desk import Options


def serve(host: str, port: int, store: Path, options: Options | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then end with exit code 0; every answer given is on disk."""
    # uvicorn raises the signal once more when it has shut down; that must not read as a crash.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    options = options or Options(public_url=f"http://{host}:{port}")
    uvicorn.run(
        create_app(store, options),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
