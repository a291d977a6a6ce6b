"""A bundle: one order's story in a file that can be given away, and replayed anywhere.

It holds the timeline and the history of each run, both redacted (`redaction.py`). The timeline is
told anew from redacted facts, by the code that tells it anyway, so nothing can slip past into a
sentence. Replay runs the workflow code of today, in the full sandbox, and needs nothing up.
"""

import dataclasses
import gzip
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from everycent.domain.message import Message
from everycent.errors import InvalidRequest
from everycent.proof.fetched_run import FetchedRun
from everycent.proof.heard import Broken, Heard
from everycent.proof.redaction import Redactor
from everycent.proof.run_story import retell
from everycent.proof.timeline import Timeline
from starters.client import DATA_CONVERTER
from workflows.catalog import FLOWS, name_of

_MOST_BYTES = 256 * 2**20  # Of a bundle, unpacked: a history has at most 50 MiB.


class History(Message):
    """What one run did: `events` as Temporal writes them in JSON."""

    run_id: str
    flow: str
    events: dict[str, Any]


class Bundle(Message):
    """The file's content; `everycent` is the version that made it."""

    format: Literal["everycent bundle 1"] = "everycent bundle 1"
    everycent: str
    timeline: Timeline
    histories: tuple[History, ...]


class Replayed(Message):
    """How a run fared under the code of today; `differs` is empty where it replays."""

    run_id: str
    flow: str
    differs: str = ""


async def bundle_of(heard: Heard) -> Bundle:
    """Redact all that was heard of an order, and make its bundle."""
    redactor = Redactor(heard.tenant, heard.order_id, heard.workflow_id)
    fetched = [run.fetched for run in heard.runs]
    redactor.learn(
        (message for run in fetched for message in (run.description, *run.events)),
        [*(row.facts for row in heard.rows), *heard.entries],
    )
    if not fetched:  # Nobody can tell which reason a person has typed: any may be.
        redactor.take_as_typed(row.facts.get("reason", "") for row in heard.rows)
    redacted = await _redacted(heard, redactor)
    return Bundle(
        everycent=version("everycent"),
        timeline=redacted.told(),
        histories=tuple(_history(run.fetched) for run in redacted.runs),
    )


def write_bundle(bundle: Bundle, file: Path) -> None:
    """Write a bundle into a compressed file. Raises InvalidRequest if it cannot be written."""
    try:
        file.write_bytes(gzip.compress(bundle.model_dump_json().encode(), mtime=0))
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}") from error


def read_bundle(file: Path) -> Bundle:
    """Read a bundle. Raises InvalidRequest if the file is none."""
    unpack = zlib.decompressobj(wbits=31)  # As gzip writes it.
    try:
        content = unpack.decompress(file.read_bytes(), _MOST_BYTES)
        if unpack.unconsumed_tail or not unpack.eof:
            raise InvalidRequest(f"{file} is cut off, or too large for a bundle")
        return Bundle.model_validate_json(content)
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from error
    except (zlib.error, ValidationError) as error:
        raise InvalidRequest(f"{file} is no bundle of `everycent explain --bundle`") from error


async def replay(bundle: Bundle, flows: Sequence[type[Any]] = ()) -> list[Replayed]:
    """Replay each run of a bundle under these flows (the catalog's), and say where they differ."""
    flows = flows or FLOWS
    known = {name_of(flow) for flow in flows}
    replayer = Replayer(
        workflows=flows,
        workflow_runner=SandboxedWorkflowRunner(),
        data_converter=DATA_CONVERTER,
    )
    replayed = []
    for each in bundle.histories:
        if each.flow in known:
            history = WorkflowHistory.from_json(bundle.timeline.workflow_id, each.events)
            done = await replayer.replay_workflow(history, raise_on_replay_failure=False)
            differs = _one_line(done.replay_failure) if done.replay_failure else ""
        else:
            differs = f"there is no flow {each.flow} here"
        replayed.append(Replayed(run_id=each.run_id, flow=each.flow, differs=differs))
    return replayed


async def _redacted(heard: Heard, redactor: Redactor) -> Heard:
    runs = [
        dataclasses.replace(
            run.fetched,
            description=redactor.protocol(run.fetched.description),
            events=tuple(map(redactor.protocol, run.fetched.events)),
        )
        for run in heard.runs
    ]
    rows = [row.model_copy(update={"facts": redactor.row(row.facts)}) for row in heard.rows]
    return dataclasses.replace(
        heard,
        runs=await retell(runs, DATA_CONVERTER),
        rows=rows,
        entries=[redactor.facts(entry) for entry in heard.entries],
        broken=[Broken(each.rule, each.key) for each in heard.broken],
        silent={who: redactor.hidden(why) for who, why in heard.silent.items()},
    )


def _history(run: FetchedRun) -> History:
    begun = run.events[0].workflow_execution_started_event_attributes
    told = WorkflowHistory(run.workflow_id, run.events).to_json_dict()
    return History(run_id=run.run_id, flow=begun.workflow_type.name, events=told)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
