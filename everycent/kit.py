"""The parts for people who have flows, databases and a Temporal of their own; README shows them.

Each name is imported when it is asked for: a workflow that takes `Saga` gets Temporal's SDK and the
standard library, and no database driver into its sandbox.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from everycent.database.partitions import (
        AgingTable,
        Month,
        drop_partitions,
        make_partitions,
    )
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
    from everycent.proof.audit import audit
    from everycent.proof.conformance import BrokenPromise, assert_idempotent, one_by_one
    from everycent.proof.conformance_participant import Participant, Steps, assert_participant
    from everycent.proof.report import AuditReport
    from workflows.saga import ParkedStep, Saga, uninterrupted
    from workflows.tcc import Branch, Ending, Tcc, Wanted

__all__ = (
    "AgingTable", "AuditReport", "BeginDecision", "Branch", "BrokenPromise", "Claims",
    "CloseDecision", "Decision", "DecisionStands", "Ending", "FenceState", "FenceTable",
    "Message", "Month", "MoveDecision", "ParkedStep", "Participant", "Refusal", "Saga",
    "StepRequest", "Steps", "Tcc", "Wanted", "assert_idempotent", "assert_participant", "audit",
    "claim_cancels", "claim_tries", "decision_table", "drop_partitions", "fence_table",
    "lock_for_confirm", "make_partitions", "one_by_one", "settle_decisions", "store_ends",
    "store_tries", "uninterrupted",
)  # fmt: skip

# In a wheel our `workflows` lies inside our own name: somebody else's may be installed beside us.
_BUNDLED = (Path(__file__).parent / "_bundle").is_dir()
_WORKFLOWS = "everycent._bundle.workflows" if _BUNDLED else "workflows"
_HOMES = {
    f"{_WORKFLOWS}.saga": ("ParkedStep", "Saga", "uninterrupted"),
    f"{_WORKFLOWS}.tcc": ("Branch", "Ending", "Tcc", "Wanted"),
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
    "everycent.domain.decision": (
        "BeginDecision", "CloseDecision", "DecisionStands", "MoveDecision",
    ),
    "everycent.domain.fence": ("FenceState",),
    "everycent.domain.message": ("Message", "StepRequest"),
    "everycent.domain.order": ("Decision",),
    "everycent.domain.outcome": ("Refusal",),
    "everycent.proof.audit": ("audit",),
    "everycent.proof.conformance": ("BrokenPromise", "assert_idempotent", "one_by_one"),
    "everycent.proof.conformance_participant": ("Participant", "Steps", "assert_participant"),
    "everycent.proof.report": ("AuditReport",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import one of our names; Python asks here for what this module does not have yet."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
