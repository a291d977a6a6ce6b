"""The selection guide as a page: the rules of `everycent.domain.advice`, whole."""

from collections.abc import Iterator

from everycent.domain.advice import MANY_PER_SECOND, RULES, Requirements, Way, advise

# What each requirement asks, and what its values mean.
QUESTIONS = {
    "binds": "What has to happen together?",
    "databases": "Where are the effects written?",
    "isolation": "What may an outside reader meet before all is decided?",
    "third_party": "What can the least able company outside do?",
    "reversibility": "How is our own least reversible effect taken back?",
    "duration": "How long until everybody is done?",
    "latency": "When does the caller have to know?",
    "volume": "How many flows a second, at the peak?",
    "team": "Who writes the services?",
}
VALUES = {
    ("binds", "all"): "all effects or none",
    ("binds", "core"): "a core, all or none; the rest follows and cannot undo it",
    ("binds", "follows"): "one fact stands, whoever cares catches up for sure",
    ("binds", "told"): "somebody should hear of it; who does not, asks",
    ("databases", "one"): "in one database",
    ("databases", "own"): "each service has its own",
    ("isolation", "seen"): "values that may be taken back, and he may use them",
    ("isolation", "held"): "that something is on its way; nobody can use it",
    ("isolation", "hidden"): "nothing at all, at no instant",
    ("third_party", "none"): "no company outside takes part",
    ("third_party", "holds"): "hold, and confirm or release",
    ("third_party", "undo"): "act at once, and take it back",
    ("third_party", "final"): "act at once, for good",
    ("reversibility", "held"): "it can be held first",
    ("reversibility", "undone"): "done at once, undone by another step",
    ("reversibility", "never"): "never",
    ("duration", "instant"): "within a second",
    ("duration", "minutes"): "minutes: a customer pays",
    ("duration", "days"): "days: parcels, returns, clearing",
    ("latency", "at-once"): "within tens of milliseconds",
    ("latency", "seconds"): "within seconds",
    ("latency", "later"): "later: it is told, or it looks",
    ("volume", "few"): f"fewer than {MANY_PER_SECOND}",
    ("volume", "many"): f"{MANY_PER_SECOND} and more",
    ("team", "one"): "one team",
    ("team", "several"): "several, none of which owns a flow through the others' services",
}
# Below it stands what `make bench-protocols` has written.
MEASURED = "<!-- measured by `make bench-protocols` -->\n"
_HEAD = """# Choosing a way

The rules on this page are written by `everycent advise --document docs/choosing.md`, as `everycent
advise` itself weighs them (`everycent/domain/advice.py`); the figures at its end by
`make bench-protocols`.

`everycent advise --third-party undo --duration days` ranks the ways for a flow, with what speaks
for and against each. A way that cannot be is not ranked: it says why. The points of the others are
added up; equal ones stand in the order of the table, the simpler one first.
"""


def page() -> str:
    """Return the rules as Markdown."""
    return "\n".join((_HEAD, *_ordinary(), *_rules())) + "\n"


def rewritten(document: str) -> str:
    """Return the page with the rules of today, and with what was measured and stands in it."""
    _, marker, measured = document.partition(MEASURED)
    return page() + ("\n" + marker + measured if marker else "")


def _ordinary() -> Iterator[str]:
    told = advise(Requirements())
    yield "## An ordinary order"
    yield ""
    yield "Lines paid by card within minutes, all or nothing, each service with its own database:"
    yield ""
    yield "| way | points | why, or why not |"
    yield "| --- | --- | --- |"
    for choice in told.choices:
        points = str(choice.points) if choice.possible else "cannot be"
        why = "; ".join(choice.reasons or (*choice.against, *choice.notes))
        yield f"| {choice.way} | {points} | {why} |"
    yield ""


def _rules() -> Iterator[str]:
    yield "## The rules"
    for requirement, question in QUESTIONS.items():
        yield ""
        yield f"### {question}"
        yield ""
        yield f"`--{requirement.replace('_', '-')}`"
        yield ""
        yield "| answer | " + " | ".join(Way) + " |"
        yield "| --- |" + " --- |" * len(Way)
        for (name, value), meaning in VALUES.items():
            if name == requirement:
                cells = (_cell(name, value, way) for way in Way)
                yield f"| `{value}`: {meaning} | " + " | ".join(cells) + " |"


def _cell(requirement: str, value: str, way: Way) -> str:
    for rule in RULES:
        if rule.requirement == requirement and rule.way is way and value in rule.values:
            points = "cannot be" if rule.points is None else f"{rule.points:+d}".replace("+0", "0")
            return f"{points}: {rule.reason}"
    return ""
