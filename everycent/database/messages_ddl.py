"""The DDL of a service's messages: outbox, its lanes and numbers, and inbox (decision 0009).

What a migration has used once stays as it is here: a change of the rules is a new migration.
"""

from everycent.database.fence_ddl import first_partition

LANES = 16  # How many relays can share one outbox at most.
NOTIFY_LANES = 4  # And beside them the lanes to other systems, which may be slow.

_MESSAGE = """
    key text COLLATE "C" NOT NULL,
    opened_on date NOT NULL,
    aggregate text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    type text NOT NULL,
    schema_version smallint NOT NULL,
    payload jsonb NOT NULL,
    content_hash text NOT NULL,
    at timestamptz NOT NULL,
    state text NOT NULL,
    attempts int NOT NULL DEFAULT 0,
    next_retry_at timestamptz NOT NULL,
    last_error text NOT NULL DEFAULT '',"""

_ARROWS = """
CREATE FUNCTION {name}_arrows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF ROW(NEW.key, NEW.opened_on, NEW.aggregate, NEW.number, NEW.type, NEW.content_hash)
        IS DISTINCT FROM ROW(OLD.key, OLD.opened_on, OLD.aggregate, OLD.number, OLD.type,
            OLD.content_hash) THEN
        RAISE EXCEPTION 'message % would change', OLD.key
            USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_message_is_fixed';
    END IF;
    IF OLD.state = 'CONSUMED' AND NEW.state <> 'CONSUMED' THEN
        RAISE EXCEPTION 'message % was consumed', OLD.key
            USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_consumed_is_final';
    END IF;
    RETURN NEW;
END $$"""

_TRIGGER = """
CREATE TRIGGER {name}_arrows BEFORE UPDATE ON {name}
    FOR EACH ROW EXECUTE FUNCTION {name}_arrows()"""


def message_tables() -> list[str]:
    """Return the statements that create outbox and inbox, parted by the order's opening day."""
    return [*_outbox(), *_inbox()]


def _outbox() -> list[str]:
    return [
        """
CREATE TABLE outbox_number (
    opened_on date NOT NULL,
    aggregate text COLLATE "C" NOT NULL,
    last bigint NOT NULL,
    CONSTRAINT outbox_number_pkey PRIMARY KEY (opened_on, aggregate)
) PARTITION BY RANGE (opened_on)""",
        f"""
CREATE TABLE outbox ({_MESSAGE}
    sink text COLLATE "C" NOT NULL,
    lane smallint NOT NULL,
    sent_at timestamptz,
    consumed_at timestamptz,
    CONSTRAINT outbox_pkey PRIMARY KEY (opened_on, key, sink),
    CONSTRAINT outbox_state_is_known CHECK (state IN ('PENDING', 'SENT', 'CONSUMED', 'DEAD')),
    CONSTRAINT outbox_dead_says_why CHECK (state <> 'DEAD' OR last_error <> '')
) PARTITION BY RANGE (opened_on)""",
        """
CREATE INDEX outbox_unfinished ON outbox (lane, sink, opened_on, aggregate, number)
    WHERE state <> 'CONSUMED'""",
        """
CREATE INDEX outbox_dead ON outbox (key) WHERE state = 'DEAD'""",
        """
CREATE INDEX outbox_of_sink ON outbox (sink, at)""",
        """
CREATE TABLE outbox_lane (
    lane smallint NOT NULL,
    fence bigint NOT NULL DEFAULT 0,
    holder text NOT NULL DEFAULT '',
    claimed_at timestamptz,
    held_until timestamptz,
    CONSTRAINT outbox_lane_pkey PRIMARY KEY (lane)
)""",
        f"INSERT INTO outbox_lane (lane) SELECT generate_series(0, {LANES + NOTIFY_LANES - 1})",
        _ARROWS.format(name="outbox"),
        _TRIGGER.format(name="outbox"),
        first_partition("outbox_number"),
        first_partition("outbox"),
    ]


def _inbox() -> list[str]:
    return [
        f"""
CREATE TABLE inbox ({_MESSAGE}
    source text COLLATE "C" NOT NULL,
    received_at timestamptz NOT NULL,
    consumed_at timestamptz,
    CONSTRAINT inbox_pkey PRIMARY KEY (opened_on, key),
    CONSTRAINT inbox_state_is_known CHECK (state IN ('RECEIVED', 'CONSUMED', 'DEAD')),
    CONSTRAINT inbox_dead_says_why CHECK (state <> 'DEAD' OR last_error <> '')
) PARTITION BY RANGE (opened_on)""",
        """
CREATE INDEX inbox_unfinished ON inbox (next_retry_at) WHERE state = 'RECEIVED'""",
        """
CREATE INDEX inbox_of_aggregate ON inbox (opened_on, aggregate, source, number)""",
        _ARROWS.format(name="inbox"),
        _TRIGGER.format(name="inbox"),
        first_partition("inbox"),
    ]
