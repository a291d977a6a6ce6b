"""Finds every guard in the SQL of the services and their migrations, and how to take it away.

A guard is a place in a file whose text keeps a wrong write out: a constraint, an arm of a trigger,
ON CONFLICT, a lock and its order, a condition of a write beside the names of its rows, the count of
the rows that a write hit, a privilege. Each is found by pattern: a new one cannot be missed.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATABASE = ROOT / "everycent" / "database"

# These only read; a test holds them to it.
READERS = ("reads.py", "audit_reads.py", "audit_rows.py")
WRITES = re.compile(r"\b(INSERT INTO|UPDATE [\w{]|DELETE FROM)")

# Their statements stand in functions of the database.
FUNCTIONS = ("fence_sql.py",)

_CONSTRAINT = re.compile(
    r"CONSTRAINT (?P<name>[\w{}]+)(?:\"\s*f?\")?\s+(?P<kind>CHECK|UNIQUE|PRIMARY KEY)\s*\("
)
_TRIGGER = re.compile(r"CREATE TRIGGER (?P<name>[\w{}]+).*?FOR EACH (?:ROW|STATEMENT) ", re.S)
_IF = re.compile(r"\bIF (?P<condition>(?:(?!\bIF\b).)*?) THEN\s+RAISE EXCEPTION", re.S)
_RULE = re.compile(r"CONSTRAINT = '(?P<name>[\w{}]+)'")
_ALWAYS = re.compile(r"ALTER TABLE [\w{}]+ ENABLE ALWAYS TRIGGER [\w{}]+")
_ARROW = re.compile(r"(NEW|OLD)\.(state|decision) (=|IN)")
_CONFLICT = re.compile(r"ON CONFLICT \([^)]*\) DO (?:NOTHING|UPDATE.*)", re.S)
_LOCK = re.compile(r"FOR (?:NO KEY )?UPDATE(?: SKIP LOCKED)?(?=[\"' ;]|$)")
_ORDER = re.compile(r"ORDER BY (?:\w+ COLLATE \"C\"(?:, \w+ COLLATE \"C\")*|place)")
_PATIENCE = re.compile(r"SET LOCAL lock_timeout = '[^']+'")
_PRIVILEGE = re.compile(r"(?:REVOKE|GRANT (?:SELECT|INSERT)) [^\"]*")
_NAMES_THE_ROW = re.compile(
    r"\(?\w+\.(key|opened_on|case_key|tenant|order_id|account|currency|sku|customer|item)\b"
    r"[^=]*=\s*\(?\w+\.\w+"
    r"|\w*key (= ANY|IN \()|\(\w+(, \w+)+\)\s+IN \(|\(a\.tenant, a\.account, a\.currency\)\s"
    r"|(?:lane|key|opened_on) = :(?:lane|key|day)\b|\{_THESE\}"
    r"|\{_over|\(\{fence\.key\}\) IN|datname|rolname|fence\.key = its_key"
)

_JOINT = re.compile(r"([\"']\s*f?[\"']|\s)+$")  # Between two texts that stand side by side.

# Conditions that are handed to a statement, and so stand in a text of their own.
_HANDED = re.compile(
    r"(?<=\")status = 'NEW'|(?<=\")capture_refusal IS NULL(?=\")"
    r"|state IN \('REFUSED', 'CANCELLED'\)|opened_on < :before|(?<=\")captured_minor = 0"
    r"|(?<=\")request IS NULL(?=\")"
    r"|NOT EXISTS \(SELECT FROM transfer_leg[^)]*\)"
)
_VERSION = re.compile(r"(?<=a\.currency, )a\.version")


@dataclass(frozen=True)
class Guard:
    """A place in a file, and the text that takes its guard away or weakens it."""

    file: str
    name: str
    start: int
    end: int
    weaker: str

    @property
    def id(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def path(self) -> Path:
        return DATABASE / self.file

    def taken_from(self, text: str) -> str:
        """Return the file's text without the guard."""
        return text[: self.start] + self.weaker + text[self.end :]


def guards() -> list[Guard]:
    """Return every guard, each under a name that no other has."""
    found = [guard for path in files() for guard in _of_file(path)]
    names = Counter(guard.id for guard in found)
    seen: Counter[str] = Counter()
    unique = []
    for guard in found:
        seen[guard.id] += 1
        again = f" #{seen[guard.id]}" if names[guard.id] > 1 else ""
        unique.append(Guard(guard.file, guard.name + again, guard.start, guard.end, guard.weaker))
    return unique


def files() -> list[Path]:
    """Return the files that write, and those that make the tables."""
    return [
        path
        for path in sorted(DATABASE.rglob("*.py"))
        if path.name not in (*READERS, "__init__.py", "env.py", "engine.py")
    ]


def _of_file(path: Path) -> Iterator[Guard]:
    text, file = path.read_text(), str(path.relative_to(DATABASE))
    for start, end in _strings(text):
        sql = text[start:end]
        for name, first, last, weaker in _of_sql(sql):
            yield Guard(file, name, start + first, start + last, weaker)
        if WRITES.search(sql) and ("CREATE " not in sql or file in FUNCTIONS):
            for name, first, last in _conditions(sql):
                yield Guard(file, name, start + first, start + last, "true")
        if file == "migrate.py":
            for found in _PRIVILEGE.finditer(sql):
                weaker = _more(found.group())
                yield Guard(file, found.group(), start + found.start(), start + found.end(), weaker)
    yield from _in_python(text, file)


def _strings(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each text of the file stands, quotes included; a docstring is none."""
    tree = ast.parse(text)
    lines = [0, *(found.end() for found in re.finditer(r"\n", text))]
    spoken = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    inner = {id(c) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for c in ast.walk(n)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner
        )
        if is_text and id(node) not in spoken:
            assert isinstance(node, ast.expr)
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            yield (
                lines[node.lineno - 1] + node.col_offset,
                lines[node.end_lineno - 1] + node.end_col_offset,
            )


def _of_sql(sql: str) -> Iterator[tuple[str, int, int, str]]:
    """Yield name, place and weaker text of the guards that a pattern alone tells."""
    for found in _CONSTRAINT.finditer(sql):
        end = _closing(sql, found.end() - 1) + 1
        yield f"{found['kind']} {found['name']}", found.start("kind"), end, "CHECK (true)"
    for found in _TRIGGER.finditer(sql):
        yield f"TRIGGER {found['name']}", found.end(), found.end(), "WHEN (false) "
    for found in _ALWAYS.finditer(sql):
        yield "ENABLE ALWAYS", found.start(), found.end(), "SELECT 1"
    for found in _IF.finditer(sql):
        rule = _RULE.search(sql, found.end())
        name = rule["name"] if rule else "?"
        for part, first, last, weaker in _arms(found["condition"]):
            offset = found.start("condition")
            yield f"{name}: {part}", offset + first, offset + last, weaker
    for found in _CONFLICT.finditer(sql):
        end = found.end() - (0 if found.group().endswith("NOTHING") else 1)
        name = " ".join(found.group().split()[:5])
        yield name, found.start(), end, ""
    for found in _HANDED.finditer(sql):
        yield f"WHERE {_short(found.group())}", found.start(), found.end(), "true"
    for found in _VERSION.finditer(sql):
        yield "WHERE the version is as it was read", found.start(), found.end(), "new.version"
    for found in _LOCK.finditer(sql):
        weaker = "FOR UPDATE" if found.group().endswith("SKIP LOCKED") else ""
        yield found.group(), found.start(), found.end(), weaker
    for found in _PATIENCE.finditer(sql):
        yield "SET LOCAL lock_timeout", found.start(), found.end(), "SELECT 1"
    for found in _ORDER.finditer(sql):
        turned = ", ".join(f"{column} DESC" for column in found.group().split(", "))
        yield found.group().partition(",")[0], found.start(), found.end(), turned


def _arms(condition: str) -> Iterator[tuple[str, int, int, str]]:
    """Yield the alternatives of a trigger's IF; of `NOT (allowed)` the whole and extra terms."""
    if not condition.startswith("NOT ("):
        for first, last in _split(condition, "OR"):
            yield _short(condition[first:last]), first, last, "false"
        return
    yield "NOT (…)", 0, len(condition), "false"
    begin = condition.index("(") + 1
    inside = condition[begin : _closing(condition, begin - 1)]
    for first, last in _split(inside, "OR"):
        arm = inside[first:last]
        if not arm.startswith("("):
            continue
        for low, high in _split(arm[1:-1], "AND"):
            term = arm[1:-1][low:high]
            if not _ARROW.match(term):
                yield _short(term), begin + first + 1 + low, begin + first + 1 + high, "true"


def _split(text: str, word: str) -> Iterator[tuple[int, int]]:
    """Yield the parts between the words that stand in no parentheses."""
    first, depth = 0, 0
    for found in re.finditer(rf"[()]|\s+{word}\s+", text):
        if found.group() in "()":
            depth += 1 if found.group() == "(" else -1
        elif depth == 0:
            yield first, found.start()
            first = found.end()
    yield first, len(text)


def _conditions(sql: str) -> Iterator[tuple[str, int, int]]:
    """Yield the conditions of a write that are more than the names of its rows."""
    depth, first, level, between = 0, None, 0, False
    for found in re.finditer(
        r"[()]|\b(WHERE|AND|BETWEEN|RETURNING|ORDER BY|FOR UPDATE|ON CONFLICT|LIMIT)\b|;|[\"']\s*$",
        sql,
    ):
        token = found.group()
        if token == "(":
            depth += 1
            continue
        if token == "BETWEEN":
            between = True
            continue
        if token == "AND" and between:
            between = False
            continue
        ends = first is not None and (depth < level or (token != ")" and depth <= level))
        if token == ")":
            ends = first is not None and depth <= level
        if ends and first is not None:
            condition = _JOINT.sub("", sql[first : found.start()])
            if not _NAMES_THE_ROW.match(condition):
                yield f"WHERE {_short(condition)}", first, first + len(condition)
            first = None
        if token == ")":
            depth -= 1
        elif first is None and (token == "WHERE" or (token == "AND" and depth == level)):
            first, level = found.end() + 1, depth
            gap = re.match(r"\"\s*f?\"\s*", sql[first - 1 :])
            if gap:
                first += gap.end() - 1


def _in_python(text: str, file: str) -> Iterator[Guard]:
    """Yield what Python adds: the count of the rows that a write hit, and what is append-only."""
    for found in re.finditer(r"^ +((?:fence\.)?assert_all_written\(result, .*\))$", text, re.M):
        yield Guard(file, found.group(1), found.start(1), found.end(1), "pass")
    for found in re.finditer(r"^ +(assert (?:tuple\(|len\(locked).*)$", text, re.M):
        yield Guard(file, found.group(1)[:40], found.start(1), found.end(1), "pass")
    for found in re.finditer(r"^    \"\w+\": (\((\"\w+\", ?)+.*\)),$", text, re.M):
        if file == "migrate.py":
            yield Guard(file, f"APPEND_ONLY {found.group(1)}", found.start(1), found.end(1), "()")
    for found in re.finditer(r"^    if not writes:\n        return\n", text, re.M):
        if file == "migrate.py":
            yield Guard(file, "if not writes", found.start(), found.end(), "")


def _more(privilege: str) -> str:
    """Return a statement that gives more than this one."""
    if privilege.startswith("REVOKE"):
        return "SELECT 1 --"
    privilege = privilege.replace("GRANT INSERT ON", "GRANT INSERT, DELETE ON")
    return privilege.replace("INSERT, UPDATE", "INSERT, UPDATE, DELETE").replace(
        "GRANT SELECT", "GRANT SELECT, INSERT"
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(text[opening : opening + 60])


def _short(text: str) -> str:
    return " ".join(re.sub(r"\"\s*f?\"", "", text).split())
