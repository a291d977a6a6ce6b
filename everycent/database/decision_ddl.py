"""The DDL of a decision table: for flows that have no row of their own to decide in.

What a migration has used once stays as it is here: a change of the rules is a new migration.
"""


def decision_table(name: str) -> list[str]:
    """Return the statements that create a table of decisions, one row per transaction (xid)."""
    return [
        f"""
CREATE TABLE {name} (
    key text COLLATE "C" NOT NULL,
    decision text NOT NULL DEFAULT 'OPEN',
    reason text NOT NULL DEFAULT '',
    pivot_refusal jsonb,
    driver text NOT NULL,
    opened_at timestamptz NOT NULL,
    decided_at timestamptz,
    closed_at timestamptz,
    CONSTRAINT {name}_pkey PRIMARY KEY (key)
)""",
        f"""
CREATE FUNCTION {name}_arrows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.decision <> 'OPEN' THEN
            RAISE EXCEPTION '% begins as %', NEW.key, NEW.decision
                USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_begins_open';
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.key <> OLD.key THEN
        RAISE EXCEPTION '% would change its name', OLD.key
            USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_key_is_fixed';
    END IF;
    IF NOT (NEW.decision = OLD.decision
        OR (OLD.decision = 'OPEN' AND NEW.decision IN ('COMMITTING', 'ABORTING'))
        OR (OLD.decision = 'COMMITTING' AND NEW.decision = 'COMMITTED')
        OR (OLD.decision = 'COMMITTING' AND NEW.decision = 'ABORTING'
            AND NEW.pivot_refusal IS NOT NULL)
        OR (OLD.decision = 'ABORTING' AND NEW.decision = 'ABORTED')) THEN
        RAISE EXCEPTION '% cannot go from % to %', OLD.key, OLD.decision, NEW.decision
            USING ERRCODE = 'check_violation', CONSTRAINT = '{name}_moves_forward';
    END IF;
    RETURN NEW;
END $$""",
        f"""
CREATE TRIGGER {name}_arrows BEFORE INSERT OR UPDATE ON {name}
    FOR EACH ROW EXECUTE FUNCTION {name}_arrows()""",
    ]
