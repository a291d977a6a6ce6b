"""The calls to the provider in SQL: written before they are made, answered after (design rule 10).

A row belongs to a payment or refund and is only touched under that row's lock. Its answer never
changes (a trigger says so); who comes second leaves it as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import sql
from everycent.domain.payment import (
    CallName,
    CallPlan,
    ProviderSays,
    RefundSays,
    SentCall,
    plan_call,
)
from everycent.errors import EverycentError


@dataclass(frozen=True)
class Sending:
    """When an attempt begins, until when its calls may arrive, how long a key is remembered."""

    at: datetime
    until: datetime
    key_lifetime: timedelta


@dataclass(frozen=True)
class Heard:
    """What came of a talk: the last word or an error, each call's answer, what never left."""

    outcome: ProviderSays | RefundSays | EverycentError
    answers: Mapping[CallName, BaseModel] = field(default_factory=dict)
    unsent: frozenset[CallName] = frozenset()


def call_key(key: str, name: CallName) -> str:
    """Return the key of a call: a refund is one call, a payment has several."""
    return key if name == "refund" else f"{key}/{name}"


async def open_calls(
    tx: AsyncConnection,
    owners: Mapping[str, str],
    names: Sequence[CallName],
    sending: Sending,
) -> dict[str, dict[CallName, CallPlan]]:
    """Write down that these calls of each owner (its key and request hash) are about to be sent.

    Returns what the attempt may do with each of them. A call that it may not send is not written.
    """
    if not owners:
        return {}
    calls = {call_key(owner, name): (owner, name) for owner in owners for name in names}
    earlier = await _read_calls(tx, list(calls))
    plans: dict[str, dict[CallName, CallPlan]] = {owner: {} for owner in owners}
    writes: list[tuple[str, str, str, datetime]] = []
    for key in sorted(calls, key=str.encode):
        owner, name = calls[key]
        plan = plan_call(
            earlier.get(key),
            at=sending.at,
            until=sending.until,
            key_lifetime=sending.key_lifetime,
        )
        plans[owner][name] = plan
        if plan is not CallPlan.LOOK_ONLY and not (key in earlier and earlier[key].answered):
            same_key = plan is CallPlan.SAME_KEY
            sent_at = earlier[key].sent_at if same_key else sending.at
            writes.append((key, f"{owner}:{name}", owners[owner], sent_at))
    await _write(tx, writes, sending.until)
    return plans


async def note_calls(tx: AsyncConnection, heard: Mapping[str, Heard], at: datetime) -> None:
    """Store what each call was answered, and take back the sendings that never left."""
    answers = {
        call_key(owner, name): answer
        for owner, item in heard.items()
        for name, answer in item.answers.items()
    }
    await answer_calls(tx, answers, at)
    unsent = [call_key(owner, name) for owner, item in heard.items() for name in item.unsent]
    if unsent:
        await tx.execute(
            sql(
                "UPDATE provider_call SET open_sends = open_sends - 1"
                " WHERE key = ANY(CAST(:keys AS text[])) AND answer IS NULL"
            ),
            {"keys": unsent},
        )


async def answer_calls(tx: AsyncConnection, answers: Mapping[str, BaseModel], at: datetime) -> None:
    """Store the answers of the calls that have none yet."""
    if not answers:
        return
    await tx.execute(
        sql(
            "UPDATE provider_call AS c SET answer = new.answer::jsonb, answered_at = :at"
            " FROM unnest(CAST(:keys AS text[]), CAST(:answers AS text[])) AS new (key, answer)"
            " WHERE c.key = new.key AND c.answer IS NULL"
        ),
        {
            "at": at,
            "keys": list(answers),
            "answers": [answer.model_dump_json() for answer in answers.values()],
        },
    )


async def read_ever_sent(tx: AsyncConnection, owners: Sequence[str]) -> set[str]:
    """Return the payments for which something may have been opened at the provider."""
    calls = await _read_calls(tx, [call_key(owner, "create") for owner in owners])
    return {
        owner
        for owner in owners
        if (call := calls.get(call_key(owner, "create"))) and (call.answered or call.open_sends)
    }


async def _read_calls(tx: AsyncConnection, keys: Sequence[str]) -> dict[str, SentCall]:
    if not keys:
        return {}
    result = await tx.execute(
        sql(
            "SELECT key, sent_at, may_arrive_until, open_sends, answer IS NOT NULL AS answered"
            " FROM provider_call WHERE key = ANY(CAST(:keys AS text[]))"
        ),
        {"keys": list(keys)},
    )
    return {
        row.key: SentCall(
            sent_at=row.sent_at,
            may_arrive_until=row.may_arrive_until,
            open_sends=row.open_sends,
            answered=row.answered,
        )
        for row in result
    }


async def _write(
    tx: AsyncConnection, writes: Sequence[tuple[str, str, str, datetime]], until: datetime
) -> None:
    """Insert the intents, in key order, or count one more sending of those that are there."""
    if not writes:
        return
    keys, provider_keys, hashes, sent = zip(*writes, strict=True)
    result = await tx.execute(
        sql(
            "INSERT INTO provider_call AS c"
            " (key, provider_key, request_hash, sent_at, may_arrive_until, open_sends)"
            " SELECT key, provider_key, request_hash, sent_at, CAST(:until AS timestamptz), 1"
            " FROM unnest(CAST(:keys AS text[]), CAST(:provider_keys AS text[]),"
            " CAST(:hashes AS text[]), CAST(:sent AS timestamptz[]))"
            " AS new (key, provider_key, request_hash, sent_at)"
            ' ORDER BY key COLLATE "C"'
            " ON CONFLICT (key) DO UPDATE SET sent_at = excluded.sent_at,"
            " may_arrive_until = greatest(c.may_arrive_until, excluded.may_arrive_until),"
            " open_sends = c.open_sends + 1"
            " WHERE c.answer IS NULL AND c.request_hash = excluded.request_hash"
        ),
        {
            "until": until,
            "keys": list(keys),
            "provider_keys": list(provider_keys),
            "hashes": list(hashes),
            "sent": list(sent),
        },
    )
    fence.assert_all_written(result, len(writes))
