"""Golden histories: one per outcome and version, recorded from real runs and replayed for ever.

A recorded history stands for the orders that a release has in flight: it is never recorded anew.
Run as `python -m everycent.proof.histories FOLDER`: it records what this version lacks there.
"""

import asyncio
import gzip
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHistory

from everycent.domain.mode import Mode
from everycent.domain.order import PlaceOrder
from everycent.proof.stories import STORIES, Scene, Story, fill_shop, tell
from everycent.proof.world import World, hush, world_of
from everycent.stack.embedded import EmbeddedStack, Part
from starters.client import DATA_CONVERTER

TENANT = "golden"
SUFFIX = ".json.gz"
RECORDER = "everycent-histories"  # Said by every part of a history; no machine has this name.
# Where the database steps of the runs are, as sagas; and what another protocol asks for.
MODES = ("remote", "together", "tcc")
SERVERS: tuple[Part, ...] = ("postgres", "migrate", "temporal", "simulator")


def folder_of(root: Path, mode: str) -> Path:
    """Return where this version's histories of a mode lie."""
    return root / version("everycent") / mode


async def record(world: World, folder: Path, **more: Any) -> list[Path]:
    """Tell every story that has no history yet and keep its; `more` are fields of the orders."""
    await fill_shop(world, TENANT)
    missing = _missing(folder)
    orders = [story.order(world, TENANT, story.name, **more) for story in missing]
    recordings = (_record(world, *each, folder) for each in zip(missing, orders, strict=True))
    return list(await asyncio.gather(*recordings))


def histories(root: Path) -> dict[str, WorkflowHistory]:
    """Read the histories of all versions and modes: `<version>/<mode>/<story>` -> history."""
    read = {}
    for file in sorted(root.glob(f"*/*/*{SUFFIX}")):
        name = str(file.relative_to(root)).removesuffix(SUFFIX)
        read[name] = WorkflowHistory.from_json(name, gzip.decompress(file.read_bytes()).decode())
    return read


def _missing(folder: Path) -> list[Story]:
    folder.mkdir(parents=True, exist_ok=True)
    return [story for story in STORIES if not (folder / f"{story.name}{SUFFIX}").exists()]


async def _record(world: World, story: Story, order: PlaceOrder, folder: Path) -> Path:
    await tell(story, Scene(world, order))
    history = await world.client.get_workflow_handle(order.workflow_id()).fetch_history()
    file = folder / f"{story.name}{SUFFIX}"
    text = json.dumps(_without_traces(history.to_json_dict()), separators=(",", ":"))
    file.write_bytes(gzip.compress(text.encode(), mtime=0))
    return file


def _without_traces(told: Any) -> Any:
    """Return a history without stack traces: they name a machine's folders and decide nothing."""
    if isinstance(told, dict):
        return {k: _without_traces(v) for k, v in told.items() if k != "stackTrace"}
    return [_without_traces(item) for item in told] if isinstance(told, list) else told


async def _main(root: Path) -> None:
    for mode in MODES:
        protocol = Mode(mode) if mode in tuple(Mode) else None  # An order of old names none.
        files = await _recorded(folder_of(root, mode), together=mode == "together", mode=protocol)
        sys.stdout.writelines(f"{file}\n" for file in files)


async def _recorded(root: Path, *, together: bool, mode: Mode | None) -> list[Path]:
    with (
        tempfile.TemporaryDirectory(prefix="everycent-histories-") as folder,
        EmbeddedStack(Path(folder) / "data", parts=SERVERS) as stack,
    ):
        client = await Client.connect(
            stack.settings.temporal.address, data_converter=DATA_CONVERTER, identity=RECORDER
        )
        async with world_of(stack.settings, client, together=together) as world:
            return await record(world, root, mode=mode)


if __name__ == "__main__":
    hush()
    asyncio.run(_main(Path(sys.argv[1])))
