"""The one place around a run's activations: what its worker remembers is checked, faults strike.

A worker that is asked a query about a run it does not remember computes the run out of its whole
history, also what no workflow task has begun yet, and goes on from there. What it writes next is in
another order than any replay has (docs/reliability.md, "A run that can never go on"). The SDK gives
each activation the time at which its task began and the length of the history before it: a history
that has grown since the last one, in a task of the same time, was not given by a task.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

Activate = Callable[[WorkflowActivation], WorkflowActivationCompletion]
AfterTask = Callable[[], None]
_NO_MOVE = frozenset(("query_workflow", "remove_from_cache"))


class StateAheadError(RuntimeError):
    """The worker remembers more of a run than its tasks have made: forget it, and replay."""


class Ahead:
    """Whether what is remembered of one run is ahead of the tasks that have made it.

    A new one lets everything pass until the run has moved on, so that whatever is refused, rightly
    or not, passes after one replay.
    """

    def __init__(self) -> None:
        self._task: tuple[int, int] | None = None
        self._length = 0
        self._ahead = False

    def check(self, act: WorkflowActivation) -> None:
        """Raise StateAheadError if the run was moved on by no task before this activation."""
        if not _moves(act):
            return
        if self._ahead:
            raise StateAheadError(
                f"run {act.run_id} was moved on by a query; it is replayed before its next task"
            )
        task, length = (act.timestamp.seconds, act.timestamp.nanos), act.history_length
        # Within one task, after a local activity, the length stays as it is.
        self._ahead = not act.is_replaying and task == self._task and length > self._length
        self._task, self._length = task, length


class Activations(WorkflowRunner):
    """Runs each workflow in its runner, with the check before each of its activations.

    `after_task` returns what is to be called behind each task that moves a run on, if anything is.
    """

    def __init__(
        self,
        runner: WorkflowRunner,
        after_task: Callable[[WorkflowInstanceDetails], AfterTask | None] = lambda det: None,
    ) -> None:
        self._runner = runner
        self._after_task = after_task

    def prepare_workflow(self, defn: Any) -> None:
        """Let the runner prepare."""
        self._runner.prepare_workflow(defn)

    def set_worker_level_failure_exception_types(self, types: Any) -> None:
        """Tell the runner."""
        self._runner.set_worker_level_failure_exception_types(types)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        """Wrap the instance's activation."""
        instance = self._runner.create_instance(det)
        # Weak, or a run that was let go would stay until somebody looks for cycles.
        activate = WeakMethod(instance.activate)
        around = _around(activate, Ahead(), self._after_task(det))
        instance.activate = around  # type: ignore[assignment,method-assign]
        return instance


def _around(activate: WeakMethod[Any], ahead: Ahead, after_task: AfterTask | None) -> Activate:
    def checked(act: WorkflowActivation) -> WorkflowActivationCompletion:
        ahead.check(act)
        run: Activate | None = activate()
        assert run is not None, "who calls it holds the instance"
        completion = run(act)
        if after_task is not None and not act.is_replaying and _moves(act):
            after_task()
        return completion

    return checked


def _moves(act: WorkflowActivation) -> bool:
    """Tell what a task, or a replay of one, brings from a question and an eviction."""
    return any(job.WhichOneof("variant") not in _NO_MOVE for job in act.jobs)
