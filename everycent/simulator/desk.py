"""The front desk: faults happen to requests here, and each key is executed exactly once."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from fastapi import Request

from everycent.simulator import events, faults
from everycent.simulator.faults import Faults, Operation
from everycent.simulator.intents import Answer, Moment, Problem, failure
from everycent.simulator.store import Store, Transaction, as_text, read_clock

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What one simulated provider promises, and its secrets."""

    api_key: str = "sk_test_everycent"
    webhook_secret: str = "whsec_test_everycent"
    public_url: str = ""
    idempotency_lifetime: timedelta = timedelta(hours=24)
    authorisation_lifetime: timedelta = timedelta(days=7)
    webhook_ladder: tuple[float, ...] = events.DEFAULT_LADDER


@dataclass(frozen=True)
class Call:
    """One request: what it does, by which names faults find it, and the key it runs under."""

    operation: Operation
    action: Callable[[Transaction, Moment], Answer]
    intent_id: str | None = None
    reference: str | None = None
    card_token: str | None = None
    key: str | None = None
    fingerprint: str = ""


@dataclass
class Desk:
    """Takes calls; what it began it ends, also when the client has gone away."""

    store: Store
    options: Options
    wake_deliverer: Callable[[], None]
    _running: set[asyncio.Task[Any]] = field(default_factory=set)
    _held: set[asyncio.Event] = field(default_factory=set)

    async def take(self, request: Request, call: Call) -> Answer:
        """Let the faults of the moment happen to the call and answer it, if at all."""
        header = request.headers.get("Simulate-Fault")
        try:
            picked = await self.store.run(lambda tx: _pick(tx, call, header))
        except ValueError:
            return failure(400, "invalid_fault", f"there is no fault {header!r}")
        # The work is a task of its own: a client that hangs up neither stops nor halves it.
        return await asyncio.shield(self._detach(self._answer(request, call, picked)))

    def release_held(self) -> int:
        """Let every held request go now; returns how many there were."""
        held = list(self._held)
        for gate in held:
            gate.set()
        return len(held)

    def count_held(self) -> int:
        """Return how many requests are held and not executed yet."""
        return sum(not gate.is_set() for gate in self._held)

    def close(self) -> None:
        """Drop what is held, as a provider that is switched off would."""
        for task in self._running:
            task.cancel()

    async def _answer(self, request: Request, call: Call, picked: Faults) -> Answer:
        if picked.kind == "down":
            return failure(503, "down", "the provider is down; nothing was done")
        if picked.kind == "timeout_before":
            return await _never_answer(request, picked.seconds)
        if picked.kind == "hold":
            await self._hold(picked.seconds)
        answer = await self.store.run(lambda tx: self._execute(tx, call, picked))
        self.wake_deliverer()
        if picked.kind == "delay":
            await asyncio.sleep(picked.seconds)
        if picked.kind == "timeout_after":
            return await _never_answer(request, picked.seconds)
        if picked.kind == "server_error":
            return failure(500, "internal", "something went wrong here")
        return answer

    async def _hold(self, seconds: float) -> None:
        gate = asyncio.Event()
        self._held.add(gate)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gate.wait(), seconds)
        finally:
            self._held.discard(gate)

    def _execute(self, tx: Transaction, call: Call, picked: Faults) -> Answer:
        at = read_clock(tx)
        stored = _find(tx, call, at)
        if stored is not None:
            return stored
        ordered = picked.code if picked.kind == "decline" else None
        bookmark = events.last_event(tx)
        try:
            answer = call.action(tx, Moment(at, self.options.authorisation_lifetime, ordered))
        except Problem as problem:
            return problem.answer
        if picked.late_by_seconds is not None:
            events.delay_since(tx, bookmark, seconds=picked.late_by_seconds)
        if picked.duplicate_after_seconds is not None:
            events.duplicate_since(tx, bookmark, seconds=picked.duplicate_after_seconds)
        _keep(tx, call, answer, at + self.options.idempotency_lifetime)
        return answer

    def _detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _pick(tx: Transaction, call: Call, header: str | None) -> Faults:
    names = [call.reference] if call.reference else []
    if call.operation == "create":
        faults.plant(tx, call.card_token, call.reference or "")
    if call.intent_id is not None:
        row = tx.execute("SELECT reference FROM intent WHERE id = ?", (call.intent_id,)).fetchone()
        names += [row["reference"]] if row else []
    return faults.pick(tx, call.operation, tuple(names), header)


def _find(tx: Transaction, call: Call, at: datetime) -> Answer | None:
    """Return the answer kept under the call's key, if its lifetime is not over."""
    tx.execute(
        "DELETE FROM idempotency_key WHERE key = ? AND expires_at <= ?", (call.key, as_text(at))
    )
    row = tx.execute("SELECT * FROM idempotency_key WHERE key = ?", (call.key,)).fetchone()
    if row is None:
        return None
    if row["fingerprint"] != call.fingerprint:
        return failure(422, "idempotency_key_reused", "another request was sent under this key")
    kept = Answer(row["status"], json.loads(row["body"]))
    return replace(kept, headers={"Idempotent-Replayed": "true"})


def _keep(tx: Transaction, call: Call, answer: Answer, expires_at: datetime) -> None:
    if call.key is not None:
        tx.execute(
            "INSERT INTO idempotency_key (key, fingerprint, status, body, expires_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (call.key, call.fingerprint, answer.status, json.dumps(answer.body),
             as_text(expires_at)),
        )  # fmt: skip


async def _never_answer(request: Request, seconds: float) -> Answer:
    """Hold the connection until the client hangs up, or for so long that a proxy would step in."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    return failure(504, "no_answer", "the provider did not answer")
