"""`fence.sql`: the fence for services in other languages, as a table and three functions.

The table is the one that our own participants have (`fence_ddl`), so both can share it. A service
calls the functions in its own transaction: `fence_claim` (Try, Confirm) or `fence_tombstone`
(Cancel), then its own writes, then `fence_finish`. They are VOLATILE: each statement in them sees
what was committed before it began, so the lock sees the row of whoever won the insert.
"""

from everycent.database.participant import fence_tables

_HEAD = """\
-- The fence of a participant: run once, as the owner, in the service's database (PostgreSQL 15+).
--
-- In the service's own transaction, READ COMMITTED, and before anything else of it is touched:
--   Try      SELECT * FROM fence_claim('try', key, hash, day, at)
--   Confirm  SELECT * FROM fence_claim('confirm', key, NULL, day, at)
--   Cancel   SELECT * FROM fence_tombstone(key, day, at, reason)
-- verdict 'proceed': do the work (answer: what the Try held; NULL: it holds nothing), then
--   SELECT fence_finish('hold' | 'refuse' | 'confirm' | 'cancel', key, answer, at)
-- verdict 'repeat': give `answer` again and write nothing. Any other verdict is the error's name.
-- `day` is the order's opening day, `at` the caller's time: nothing here asks a clock.
"""

_FUNCTIONS = [
    """
CREATE FUNCTION fence_claim(
    operation text, its_key text, its_hash text, its_day date, its_time timestamptz,
    OUT verdict text, OUT answer jsonb
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    made integer := 0;
    held fence%ROWTYPE;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the fence needs READ COMMITTED'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'fence_needs_read_committed';
    END IF;
    IF operation = 'try' THEN
        INSERT INTO fence (key, opened_on, tried_at, request_hash, hash_version, state)
            VALUES (its_key, its_day, its_time, its_hash, 1, 'TRIED')
            ON CONFLICT (key) DO NOTHING;
        GET DIAGNOSTICS made = ROW_COUNT;
    END IF;
    IF made = 1 THEN
        verdict := 'proceed';
        RETURN;
    END IF;
    SELECT * INTO held FROM fence WHERE fence.key = its_key FOR UPDATE;
    IF operation = 'try' THEN
        verdict := CASE
            WHEN held.state = 'CANCELLED' THEN 'AlreadyCancelled'
            WHEN held.request_hash IS DISTINCT FROM its_hash THEN 'KeyReused'
            WHEN held.try_answer IS NULL THEN 'proceed'
            ELSE 'repeat' END;
        answer := held.try_answer;
    ELSIF operation = 'confirm' THEN
        verdict := CASE
            WHEN held.key IS NULL THEN 'NothingTried'
            WHEN (held.state, held.end_answer IS NULL) = ('CONFIRMED', false) THEN 'repeat'
            WHEN (held.state, held.try_answer IS NULL) = ('TRIED', false) THEN 'proceed'
            ELSE 'NotConfirmable' END;
        answer := CASE verdict WHEN 'repeat' THEN held.end_answer ELSE held.try_answer END;
    ELSE
        RAISE EXCEPTION 'fence_claim is for try and confirm, not for %', operation;
    END IF;
END $$""",
    """
CREATE FUNCTION fence_tombstone(
    its_key text, its_day date, its_time timestamptz, its_reason text,
    OUT verdict text, OUT answer jsonb
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    made integer;
    held fence%ROWTYPE;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the fence needs READ COMMITTED'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'fence_needs_read_committed';
    END IF;
    INSERT INTO fence (key, opened_on, state, reason)
        VALUES (its_key, its_day, 'CANCELLED', its_reason)
        ON CONFLICT (key) DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    IF made = 1 THEN
        verdict := 'proceed';
        RETURN;
    END IF;
    SELECT * INTO held FROM fence WHERE fence.key = its_key FOR UPDATE;
    IF held.state = 'CONFIRMED' THEN
        verdict := 'AlreadyConfirmed';
    ELSIF held.state = 'CANCELLED' THEN
        verdict := 'repeat';
        answer := held.end_answer;
    ELSE
        UPDATE fence SET reason = its_reason WHERE fence.key = its_key;
        verdict := 'proceed';
        answer := CASE held.state WHEN 'TRIED' THEN held.try_answer END;
    END IF;
END $$""",
    """
CREATE FUNCTION fence_finish(
    operation text, its_key text, its_answer jsonb, its_time timestamptz
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    written integer;
BEGIN
    IF operation IN ('hold', 'refuse') THEN
        UPDATE fence SET try_answer = its_answer,
            state = CASE operation WHEN 'refuse' THEN 'REFUSED' ELSE 'TRIED' END
            WHERE fence.key = its_key AND state = 'TRIED' AND try_answer IS NULL;
    ELSIF operation = 'confirm' THEN
        UPDATE fence SET state = 'CONFIRMED', end_answer = its_answer, ended_at = its_time
            WHERE fence.key = its_key AND state = 'TRIED';
    ELSIF operation = 'cancel' THEN
        UPDATE fence SET state = 'CANCELLED', end_answer = its_answer, ended_at = its_time
            WHERE fence.key = its_key AND state IN ('TRIED', 'REFUSED', 'CANCELLED')
            AND end_answer IS NULL;
    END IF;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written IS DISTINCT FROM 1 THEN
        RAISE EXCEPTION '% of % hit no open row', operation, its_key
            USING ERRCODE = 'check_violation', CONSTRAINT = 'fence_finish_hits_one_row';
    END IF;
END $$""",
]


def fence_sql_statements() -> list[str]:
    """Return the statements of `fence.sql`, one by one."""
    return [*fence_tables(), *_FUNCTIONS]


def fence_sql() -> str:
    """Return the text of `fence.sql`, as `everycent new fence` writes it."""
    return _HEAD + "".join(f"{statement};\n" for statement in fence_sql_statements())
