"""The DDL of a fence: columns, named rules and the trigger that keeps the arrows of design rule 3.

For our own migrations, and for anybody who wants the fence in her own database. What a migration
has used once stays as it is here: a change of the rules is a new migration with new text.
"""

from collections.abc import Mapping

_COLUMNS = """
    key text COLLATE "C" NOT NULL,
    opened_on date NOT NULL,
    state text NOT NULL,
    request_hash text,
    hash_version smallint,
    try_answer jsonb,
    end_answer jsonb,
    reason text,
    tried_at timestamptz,
    ended_at timestamptz"""


def fence_table(
    name: str, columns: Mapping[str, str] | None = None, *, aging: bool = False
) -> list[str]:
    """Return the statements that create a fence named `name` with these columns of its resource.

    `columns` maps a name to its type; all of them are NULL on a tombstone and never change after.
    An `aging` fence is parted by the order's opening day and begins with one part for every day;
    `partitions.make_partitions` cuts it into months.
    """
    extra = {} if columns is None else columns
    unique, parted = ("opened_on, key", " PARTITION BY RANGE (opened_on)") if aging else ("key", "")
    parts = [first_partition(name)] if aging else []
    more = "".join(f",\n    {column} {kind}" for column, kind in extra.items())
    fixed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in _fixed(extra))
    return [
        f"""
CREATE TABLE {name} ({_COLUMNS}{more},
    CONSTRAINT {name}_pkey PRIMARY KEY ({unique}),
    CONSTRAINT {name}_state_is_known
        CHECK (state IN ('TRIED', 'REFUSED', 'CONFIRMED', 'CANCELLED')),
    CONSTRAINT {name}_hash_unless_tombstone
        CHECK ((request_hash IS NOT NULL AND hash_version IS NOT NULL) OR state = 'CANCELLED'),
    CONSTRAINT {name}_end_is_answered
        CHECK (state <> 'REFUSED' OR try_answer IS NOT NULL)
){parted}""",
        f"""
CREATE FUNCTION {name}_arrows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state NOT IN ('TRIED', 'CANCELLED') THEN
            RAISE EXCEPTION '% begins as %', NEW.key, NEW.state
                USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_begins_tried_or_cancelled';
        END IF;
        RETURN NEW;
    END IF;
    IF {fixed} THEN
        RAISE EXCEPTION '% would change what was asked for', OLD.key
            USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_request_is_fixed';
    END IF;
    IF (OLD.try_answer IS NOT NULL AND NEW.try_answer IS DISTINCT FROM OLD.try_answer)
        OR (OLD.end_answer IS NOT NULL AND NEW.end_answer IS DISTINCT FROM OLD.end_answer) THEN
        RAISE EXCEPTION '% would change its first answer', OLD.key
            USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_answer_is_fixed';
    END IF;
    IF NOT (NEW.state = OLD.state
        OR (OLD.state = 'TRIED' AND NEW.state = 'REFUSED' AND OLD.try_answer IS NULL)
        OR (OLD.state = 'TRIED' AND NEW.state = 'CONFIRMED' AND NEW.try_answer IS NOT NULL)
        OR (OLD.state IN ('TRIED', 'REFUSED') AND NEW.state = 'CANCELLED')) THEN
        RAISE EXCEPTION '% cannot go from % to %', OLD.key, OLD.state, NEW.state
            USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_state_moves_forward';
    END IF;
    RETURN NEW;
END $$""",
        f"""
CREATE TRIGGER {name}_arrows BEFORE INSERT OR UPDATE ON {name}
    FOR EACH ROW EXECUTE FUNCTION {name}_arrows()""",
        *parts,
    ]


def first_partition(name: str) -> str:
    """Return the statement that gives a table parted by `opened_on` its first part: every day.

    So no insert ever lacks a partition, also before the keeper comes for the first time.
    """
    return f"CREATE TABLE {name}_first PARTITION OF {name} FOR VALUES FROM (MINVALUE) TO (MAXVALUE)"


def _fixed(columns: Mapping[str, str]) -> list[str]:
    return ["key", "opened_on", "request_hash", "hash_version", *columns]
