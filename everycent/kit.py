"""The parts for people who have flows, databases and a Temporal of their own; README shows them.

Each name is imported when it is asked for: a workflow that takes `Saga` gets Temporal's SDK and the
standard library, and no database driver into its sandbox.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activities.participant import participant_workers
    from activities.url_participant import url_workers
    from everycent.database.counted import Counted
    from everycent.database.decision import settle_decisions
    from everycent.database.decision_ddl import decision_table
    from everycent.database.fence import (
        Claims,
        FenceTable,
        claim_cancels,
        claim_tries,
        lock_for_confirm,
        store_ends,
        store_tries,
    )
    from everycent.database.fence_ddl import fence_table
    from everycent.database.idempotent import idempotent
    from everycent.database.participant import Participant, fence_tables
    from everycent.database.partitions import (
        AgingTable,
        Month,
        drop_partitions,
        make_partitions,
    )
    from everycent.domain.counted import NoSuchItem, NotEnough, TakeUnits, UnitsHeld
    from everycent.domain.decision import (
        BeginDecision,
        CloseDecision,
        DecisionStands,
        MoveDecision,
    )
    from everycent.domain.fence import FenceState
    from everycent.domain.message import Message, StepRequest
    from everycent.domain.order import Decision
    from everycent.domain.outcome import Refusal
    from everycent.domain.participant import (
        BranchRequest,
        CancelBranch,
        Cancelled,
        ConfirmBranch,
        Confirmed,
        RemoteParticipant,
    )
    from everycent.gateways.url_participant import UrlParticipant
    from everycent.proof.audit import audit
    from everycent.proof.bench import flow_server, service_database
    from everycent.proof.conformance import BrokenPromise, assert_idempotent, one_by_one
    from everycent.proof.conformance_participant import Steps, assert_participant
    from everycent.proof.report import AuditReport
    from everycent.proof.trial import Trial
    from workflows.branches import Branches, NotDone, Refused, all_or_nothing, hold
    from workflows.ready_made import BALANCE, POINTS, STOCK
    from workflows.saga import ParkedStep, Saga, uninterrupted
    from workflows.tcc import Branch, Ending, Tcc, Wanted

__all__ = (
    "BALANCE",
    "POINTS",
    "STOCK",
    "AgingTable",
    "AuditReport",
    "BeginDecision",
    "Branch",
    "BranchRequest",
    "Branches",
    "BrokenPromise",
    "CancelBranch",
    "Cancelled",
    "Claims",
    "CloseDecision",
    "ConfirmBranch",
    "Confirmed",
    "Counted",
    "Decision",
    "DecisionStands",
    "Ending",
    "FenceState",
    "FenceTable",
    "Message",
    "Month",
    "MoveDecision",
    "NoSuchItem",
    "NotDone",
    "NotEnough",
    "ParkedStep",
    "Participant",
    "Refusal",
    "Refused",
    "RemoteParticipant",
    "Saga",
    "StepRequest",
    "Steps",
    "TakeUnits",
    "Tcc",
    "Trial",
    "UnitsHeld",
    "UrlParticipant",
    "Wanted",
    "all_or_nothing",
    "assert_idempotent",
    "assert_participant",
    "audit",
    "claim_cancels",
    "claim_tries",
    "decision_table",
    "drop_partitions",
    "fence_table",
    "fence_tables",
    "flow_server",
    "hold",
    "idempotent",
    "lock_for_confirm",
    "make_partitions",
    "one_by_one",
    "participant_workers",
    "service_database",
    "settle_decisions",
    "store_ends",
    "store_tries",
    "uninterrupted",
    "url_workers",
)  # fmt: skip

# In a wheel our `workflows` lies inside our own name: somebody else's may be installed beside us.
_BUNDLED = (Path(__file__).parent / "_bundle").is_dir()
_FOLDERS = "everycent._bundle." if _BUNDLED else ""
_HOMES = {
    f"{_FOLDERS}workflows.saga": ("ParkedStep", "Saga", "uninterrupted"),
    f"{_FOLDERS}workflows.branches": (
        "Branches", "NotDone", "Refused", "all_or_nothing", "hold",
    ),
    f"{_FOLDERS}workflows.ready_made": ("BALANCE", "POINTS", "STOCK"),
    f"{_FOLDERS}activities.participant": ("participant_workers",),
    f"{_FOLDERS}activities.url_participant": ("url_workers",),
    "everycent.gateways.url_participant": ("UrlParticipant",),
    "everycent.database.counted": ("Counted",),
    f"{_FOLDERS}workflows.tcc": ("Branch", "Ending", "Tcc", "Wanted"),
    "everycent.database.decision": ("settle_decisions",),
    "everycent.database.decision_ddl": ("decision_table",),
    "everycent.database.fence": (
        "Claims", "FenceTable", "claim_cancels", "claim_tries", "lock_for_confirm", "store_ends",
        "store_tries",
    ),
    "everycent.database.fence_ddl": ("fence_table",),
    "everycent.database.partitions": (
        "AgingTable", "Month", "drop_partitions", "make_partitions",
    ),
    "everycent.database.idempotent": ("idempotent",),
    "everycent.database.participant": ("Participant", "fence_tables"),
    "everycent.domain.counted": ("NoSuchItem", "NotEnough", "TakeUnits", "UnitsHeld"),
    "everycent.domain.decision": (
        "BeginDecision", "CloseDecision", "DecisionStands", "MoveDecision",
    ),
    "everycent.domain.fence": ("FenceState",),
    "everycent.domain.message": ("Message", "StepRequest"),
    "everycent.domain.order": ("Decision",),
    "everycent.domain.outcome": ("Refusal",),
    "everycent.domain.participant": (
        "BranchRequest", "CancelBranch", "Cancelled", "ConfirmBranch", "Confirmed",
        "RemoteParticipant",
    ),
    "everycent.proof.audit": ("audit",),
    "everycent.proof.bench": ("flow_server", "service_database"),
    "everycent.proof.conformance": ("BrokenPromise", "assert_idempotent", "one_by_one"),
    "everycent.proof.conformance_participant": ("Steps", "assert_participant"),
    "everycent.proof.report": ("AuditReport",),
    "everycent.proof.trial": ("Trial",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import one of our names; Python asks here for what this module does not have yet."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
